// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

const hybrid = `28 1 254:0 / / rw,relatime - ext4 /dev/vda rw
33 28 0:24 / /sys rw,relatime shared:7 - sysfs sysfs rw
34 33 0:28 / /sys/fs/cgroup rw,relatime - tmpfs tmpfs rw,mode=755
35 34 0:29 / /sys/fs/cgroup/cpu,cpuacct rw,relatime - cgroup cgroup rw,cpu,cpuacct
36 34 0:30 / /sys/fs/cgroup/memory rw,relatime shared:9 - cgroup cgroup rw,memory,release_agent=/bin/true
37 34 0:37 / /sys/fs/cgroup/systemd rw,relatime - cgroup cgroup rw,xattr,name=systemd
38 34 0:38 / /sys/fs/cgroup/unified rw,relatime - cgroup2 cgroup2 rw,nsdelegate
39 28 0:38 / /mnt/elsewhere rw,relatime - cgroup2 cgroup2 rw
`

const unified = `24 30 0:22 / /proc rw,nosuid - proc proc rw
31 23 0:26 / /sys/fs/cgroup rw,nosuid shared:4 - cgroup2 cgroup2 rw,nsdelegate,memory_recursiveprot
`

func parsed(t *testing.T, text string) []hierarchy {
	t.Helper()
	found, err := parseHierarchies(strings.NewReader(text))
	require.NoError(t, err)
	return found
}

func TestHierarchiesOfBothVersionsAreFound(t *testing.T) {
	assert.Equal(t, []hierarchy{
		{"/sys/fs/cgroup/cpu,cpuacct", false, "cpu,cpuacct"},
		{"/sys/fs/cgroup/memory", false, "memory"},
		{"/sys/fs/cgroup/systemd", false, "name=systemd"},
		{"/sys/fs/cgroup/unified", true, "nsdelegate"},
	}, parsed(t, hybrid))
}

func TestAUnifiedHierarchyIsFound(t *testing.T) {
	found := parsed(t, unified)
	require.Len(t, found, 1)
	assert.Equal(t, cgroupDir, found[0].mountpoint)
	assert.True(t, found[0].unified)
}

func TestOfMountsOnTheSamePlaceTheLastIsSeen(t *testing.T) {
	found := parsed(t, unified+`90 31 0:99 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw
`)
	assert.Len(t, found, 1)
}

func TestAMachineSeesTheSameHierarchiesInTheSamePlaces(t *testing.T) {
	mounts := cgroupMounts(parsed(t, hybrid))
	require.Len(t, mounts, 5)
	assert.Equal(t, "tmpfs", mounts[0].kind)
	assert.Equal(t, cgroupDir, mounts[0].target)
	assert.Equal(t, "cpu,cpuacct", mounts[1].data)
	assert.Equal(t, "name=systemd", mounts[3].data)
	assert.Equal(t, "cgroup2", mounts[4].kind)
	assert.Empty(t, mounts[4].data)

	mounts = cgroupMounts(parsed(t, unified))
	require.Len(t, mounts, 1)
	assert.Equal(t, "cgroup2", mounts[0].kind)
	assert.Equal(t, cgroupDir, mounts[0].target)
}

func TestATreeOfCgroupsIsRemovedFromItsLeaves(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "node1")
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "kubepods", "pod1", "container"), 0o755))
	require.NoError(t, os.MkdirAll(filepath.Join(dir, "daemons"), 0o755))
	require.NoError(t, removeTree(dir))
	assert.NoDirExists(t, dir)
	assert.NoError(t, removeTree(dir), "again")
}

func TestOurProgramsComeFirstInThePath(t *testing.T) {
	env := extendPath([]string{"A=1", "PATH=/usr/bin:/bin"}, []string{"/x", "/y"})
	assert.Equal(t, []string{"A=1", "PATH=/x:/y:/usr/bin:/bin"}, env)
	assert.Equal(t, []string{"PATH=/x"}, extendPath(nil, []string{"/x"}))
	assert.Equal(t, []string{"PATH=/bin"}, extendPath([]string{"PATH=/bin"}, nil))
}

func TestProgramsAreLookedUpInTheGivenPath(t *testing.T) {
	dir := t.TempDir()
	program := filepath.Join(dir, "kubelet")
	require.NoError(t, os.WriteFile(program, nil, 0o755))
	found, err := lookPath("kubelet", []string{"PATH=:/does/not/exist:" + dir})
	require.NoError(t, err)
	assert.Equal(t, program, found)
	found, err = lookPath("./kubelet", nil)
	require.NoError(t, err)
	assert.Equal(t, "./kubelet", found, "a path is a path")
	_, err = lookPath("no-such-program", []string{"PATH=" + dir})
	assert.ErrorContains(t, err, "no-such-program")
}
