// SPDX-License-Identifier: Apache-2.0

package debian

import (
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
)

func TestPackagesAreMissingWhenAFileOfTheirsIs(t *testing.T) {
	all := func(string) bool { return true }
	assert.Empty(t, missing(all))
	none := func(string) bool { return false }
	assert.Equal(t, []string{"conntrack", "containerd", "containernetworking-plugins", "iptables",
		"kmod", "mount", "runc"}, missing(none))
	but := func(name string) func(string) bool {
		return func(path string) bool { return filepath.Base(path) != name }
	}
	assert.Equal(t, []string{"containerd"}, missing(but("ctr")))
	assert.Equal(t, []string{"containernetworking-plugins"}, missing(but("ptp")))
}

func TestProgramsAreFoundInAnyOfTheUsualDirectories(t *testing.T) {
	onlySbin := func(path string) bool {
		return filepath.Dir(path) == "/sbin" || filepath.Dir(path) == CNIPlugins
	}
	assert.Empty(t, missing(onlySbin))
}
