// SPDX-License-Identifier: Apache-2.0

// Package privilege knows which privileges the node agent needs for which of its features, and gives
// up what it does not need.
package privilege

import (
	"fmt"

	"golang.org/x/sys/unix"
)

// Features are what a node agent does besides steering TCP.
type Features struct {
	Environment bool // read the environment of containers
	UDP         bool // steer UDP ports
	Takeover    bool // end connections that are older than an intercept
}

// All has every feature.
var All = Features{Environment: true, UDP: true, Takeover: true}

// need is a capability that a feature needs.
type need struct {
	capability uint
	name       string
	feature    string
	on         func(Features) bool
}

// needs is the table that the chart's values follow. NET_ADMIN for steering depends on the kernel
// and the datapath: package steer reports it.
var needs = []need{
	{unix.CAP_SYS_ADMIN, "CAP_SYS_ADMIN", "steering", always},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "finding the network namespaces of pods", always},
	{unix.CAP_SYS_PTRACE, "CAP_SYS_PTRACE", "environments", func(f Features) bool { return f.Environment }},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "UDP", func(f Features) bool { return f.UDP }},
	{unix.CAP_NET_ADMIN, "CAP_NET_ADMIN", "older connections", func(f Features) bool { return f.Takeover }},
	{unix.CAP_NET_RAW, "CAP_NET_RAW", "letting go of held packets of older connections at once",
		func(f Features) bool { return f.Takeover }},
}

func always(Features) bool { return true }

// Lack is a capability that a feature needs and this process does not have.
type Lack struct{ Feature, Capability string }

// Lacking returns what the features lack. They work as far as they can without.
func Lacking(f Features) ([]Lack, error) {
	// The header of version 3 is followed by two sets of 32 capabilities.
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData
	if err := unix.Capget(&header, &sets[0]); err != nil {
		return nil, fmt.Errorf("capget: %w", err)
	}
	var lacking []Lack
	for _, n := range needs {
		if n.on(f) && sets[n.capability/32].Effective&(1<<(n.capability%32)) == 0 {
			lacking = append(lacking, Lack{n.feature, n.name})
		}
	}
	return lacking, nil
}
