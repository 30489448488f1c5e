// SPDX-License-Identifier: Apache-2.0

// Package debian installs what a node needs of the distribution: the container runtime, the CNI
// plugins and the tools that kubelet and kube-proxy call.
package debian

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
)

// CNIPlugins is where the distribution puts the CNI plugins.
const CNIPlugins = "/usr/lib/cni"

// needed maps each file that must be there to the package that has it.
var needed = map[string]string{
	"containerd":               "containerd",
	"containerd-shim-runc-v2":  "containerd",
	"ctr":                      "containerd",
	"runc":                     "runc",
	"iptables":                 "iptables",
	"ip6tables":                "iptables",
	"conntrack":                "conntrack",
	"modprobe":                 "kmod",
	"mount":                    "mount",
	CNIPlugins + "/ptp":        "containernetworking-plugins",
	CNIPlugins + "/host-local": "containernetworking-plugins",
	CNIPlugins + "/portmap":    "containernetworking-plugins",
	CNIPlugins + "/loopback":   "containernetworking-plugins",
}

// programDirs are where the daemons look, whatever is in the user's PATH.
var programDirs = []string{"/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin", "/sbin", "/bin"}

// SearchPath is the PATH that finds what Install installs.
func SearchPath() string { return strings.Join(programDirs, ":") }

// Missing lists the packages to install.
func Missing() []string { return missing(exists) }

func missing(exists func(path string) bool) []string {
	packages := map[string]bool{}
	for file, name := range needed {
		found := exists(file)
		if !filepath.IsAbs(file) {
			found = slices.ContainsFunc(programDirs,
				func(dir string) bool { return exists(filepath.Join(dir, file)) })
		}
		if !found {
			packages[name] = true
		}
	}
	return slices.Sorted(maps.Keys(packages))
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

// Install installs packages.
func Install(ctx context.Context, packages []string) error {
	if _, err := exec.LookPath("apt-get"); err != nil {
		return fmt.Errorf("this is not a Debian: install %s by hand", strings.Join(packages, ", "))
	}
	if err := apt(ctx, "update"); err != nil {
		return err
	}
	return apt(ctx, append([]string{"install", "--yes", "--no-install-recommends"}, packages...)...)
}

func apt(ctx context.Context, args ...string) error {
	var output bytes.Buffer
	command := exec.CommandContext(ctx, "apt-get",
		append([]string{"--quiet", "--option=DPkg::Lock::Timeout=120"}, args...)...)
	command.Env = append(os.Environ(), "DEBIAN_FRONTEND=noninteractive")
	command.Stdout, command.Stderr = &output, &output
	// killing it could leave half a package
	command.Cancel = func() error { return command.Process.Signal(os.Interrupt) }
	if err := command.Run(); err != nil {
		return fmt.Errorf("apt-get %s: %w\n%s", args[0], err, output.String())
	}
	return nil
}
