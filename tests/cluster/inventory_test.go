// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

// inventory is everything of this machine that a cluster must leave as it was.
type inventory map[string][]string

func takeInventory(t *testing.T) inventory {
	t.Helper()
	mounts, err := os.ReadFile("/proc/self/mounts")
	require.NoError(t, err)
	links, err := netlink.LinkList()
	require.NoError(t, err)
	i := inventory{"mounts": strings.Split(string(mounts), "\n")}
	for _, link := range links {
		i["links"] = append(i["links"], link.Attrs().Name)
	}
	i["network namespaces"] = glob(t, "/run/netns/*")
	for _, pattern := range []string{"/sys/fs/cgroup/*", "/sys/fs/cgroup/*/*"} {
		for _, path := range glob(t, pattern) {
			if info, err := os.Stat(path); err == nil && info.IsDir() {
				i["cgroups"] = append(i["cgroups"], path)
			}
		}
	}
	for _, key := range []string{"vm/overcommit_memory", "kernel/panic", "kernel/panic_on_oops",
		"kernel/keys/root_maxkeys"} {
		value, err := os.ReadFile(filepath.Join("/proc/sys", key))
		require.NoError(t, err)
		i["sysctls"] = append(i["sysctls"], key+"="+string(value))
	}
	return i
}

// assertSame compares with the present. Other people's things may have come and gone; those that
// carry the tests' names have not.
func (i inventory) assertSame(t *testing.T) {
	t.Helper()
	now := takeInventory(t)
	for kind, before := range i {
		added := slices.DeleteFunc(now[kind], func(item string) bool {
			return slices.Contains(before, item) || !strings.Contains(item, "ctest") && kind != "sysctls"
		})
		assert.Empty(t, added, "%s that were left", kind)
	}
	assert.Eventually(t, func() bool { return len(processes(t)) == 0 }, 5*time.Second,
		50*time.Millisecond, "processes that were left")
	for _, process := range processes(t) {
		t.Log(process)
	}
}

// processes lists the processes of a cluster of these tests, by their mounts or cgroups.
func processes(t *testing.T) []string {
	t.Helper()
	var found []string
	for _, dir := range glob(t, "/proc/[0-9]*") {
		cgroups, _ := os.ReadFile(filepath.Join(dir, "cgroup"))
		mounts, _ := os.ReadFile(filepath.Join(dir, "mountinfo"))
		command, _ := os.ReadFile(filepath.Join(dir, "cmdline"))
		if strings.Contains(string(cgroups), "/ctest") || strings.Contains(string(mounts), "/state/node") ||
			strings.Contains(string(mounts), "/state/control-plane") {
			found = append(found, dir+": "+strings.ReplaceAll(string(command), "\x00", " "))
		}
	}
	return found
}

func glob(t *testing.T, pattern string) []string {
	t.Helper()
	paths, err := filepath.Glob(pattern)
	require.NoError(t, err)
	return paths
}
