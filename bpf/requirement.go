// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/json"
	"errors"
	"fmt"
	"strings"

	"github.com/cilium/ebpf"
)

// A Requirement is what the kernel must have for a feature. As an error it says that this kernel lacks it.
type Requirement struct {
	// Feature is what cannot be done without, such as "steering by TC".
	Feature string `json:"feature"`
	// Linux is the first version that has it, such as "5.8", or empty.
	Linux string `json:"linux,omitempty"`
	// Config is how the kernel must have been built, such as "CONFIG_NET_CLS_ACT", or empty.
	Config string `json:"config,omitempty"`
}

// All requirements. docs/kernels.md lists them.
var (
	// 5.9 has sk_lookup programs, and bpf_ktime_get_ns in them.
	NeedsSkLookup = Requirement{"steering by sk_lookup", "5.9", "CONFIG_BPF_STREAM_PARSER"}
	// 5.7 has bpf_sk_assign, and 5.8 lookups in a sockmap.
	NeedsTC     = Requirement{"steering by TC", "5.8", "CONFIG_NET_CLS_ACT and CONFIG_BPF_STREAM_PARSER"}
	NeedsClsact = Requirement{"attaching to TC with a filter (clsact)", "4.5",
		"CONFIG_NET_SCH_INGRESS and CONFIG_NET_CLS_BPF"}
	NeedsTCX = Requirement{"attaching to TC with a link (tcx)", "6.6", "CONFIG_NET_XGRESS"}
	// 5.8 has ring buffers.
	NeedsHeadwatch = Requirement{"watching open connections", "5.8", ""}
	NeedsDestroy   = Requirement{"ending single connections", "4.5", "CONFIG_INET_DIAG_DESTROY"}
	// 5.7 has bpf_get_netns_cookie in cgroup/connect programs, and 5.14 SO_NETNS_COOKIE.
	NeedsMesh     = Requirement{"recognizing a mesh's proxy", "5.14", "CONFIG_CGROUP_BPF"}
	NeedsPeername = Requirement{"showing apps their clients' addresses", "5.8", "CONFIG_CGROUP_BPF"}
	NeedsTCPStats = Requirement{"counting connections", "5.4", "CONFIG_CGROUP_BPF"}
)

// Requirements returns all of them.
func Requirements() []Requirement {
	return []Requirement{NeedsSkLookup, NeedsTC, NeedsClsact, NeedsTCX, NeedsHeadwatch, NeedsDestroy, NeedsMesh,
		NeedsPeername, NeedsTCPStats}
}

// Error returns a sentence for people. For programs there is Line.
func (r Requirement) Error() string {
	switch {
	case r.Linux == "":
		return fmt.Sprintf("%s needs a Linux built with %s", r.Feature, r.Config)
	case r.Config == "":
		return fmt.Sprintf("%s needs Linux %s", r.Feature, r.Linux)
	}
	return fmt.Sprintf("%s needs Linux %s, built with %s", r.Feature, r.Linux, r.Config)
}

const lineMark = "kernel lacks "

// Line returns the requirement as a line that ParseRequirement reads. Tests that are skipped print it.
func (r Requirement) Line() string {
	text, err := json.Marshal(r)
	if err != nil {
		panic(err) // strings can be marshalled
	}
	return lineMark + string(text)
}

// ParseRequirement returns the requirement of the first line in text that has one.
func ParseRequirement(text string) (r Requirement, ok bool) {
	for line := range strings.Lines(text) {
		if _, after, found := strings.Cut(line, lineMark); found &&
			json.NewDecoder(strings.NewReader(after)).Decode(&r) == nil {
			return r, true
		}
	}
	return Requirement{}, false
}

// check returns the requirement, with the cause, if the kernel does not have what was probed for.
func (r Requirement) check(probed error) error {
	switch {
	case errors.Is(probed, ebpf.ErrNotSupported):
		return fmt.Errorf("%w: %w", r, probed)
	case probed != nil:
		return fmt.Errorf("probe the kernel for %s: %w", r.Feature, explain(probed))
	}
	return nil
}
