// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/mod/modfile"
)

func parse(t *testing.T, upstream, path, version, siblings string) *modfile.File {
	t.Helper()
	text, err := moduleFile([]byte(upstream), path, version, siblings)
	require.NoError(t, err)
	parsed, err := modfile.Parse("go.mod", text, nil)
	require.NoError(t, err, string(text))
	return parsed
}

func requirements(file *modfile.File) map[string]string {
	found := map[string]string{}
	for _, require := range file.Require {
		found[require.Mod.Path] = require.Mod.Version
	}
	return found
}

func replacements(file *modfile.File) map[string]string {
	found := map[string]string{}
	for _, replace := range file.Replace {
		found[replace.Old.Path] = strings.TrimSpace(replace.New.Path + " " + replace.New.Version)
	}
	return found
}

const likeKubernetes = `module k8s.io/kubernetes

go 1.24.0

godebug default=go1.24

require (
	github.com/spf13/cobra v1.9.1
	k8s.io/api v0.0.0
	k8s.io/klog/v2 v2.130.1
	k8s.io/utils v0.0.0-20250604170112-4c0f3b243397
)

require golang.org/x/mod v0.21.0 // indirect

replace (
	github.com/old/thing => github.com/new/thing v1.2.3
	k8s.io/api => ./staging/src/k8s.io/api
	k8s.io/sample-controller => ./staging/src/k8s.io/sample-controller
)
`

func TestDirectoriesOfKubernetesBecomeTheModulesOfTheRelease(t *testing.T) {
	file := parse(t, likeKubernetes, "k8s.io/kubernetes", "v1.34.4", "v0.34.4")

	assert.Equal(t, map[string]string{
		"k8s.io/kubernetes":      "v1.34.4",
		"github.com/spf13/cobra": "v1.9.1",
		"k8s.io/api":             "v0.34.4",
		"k8s.io/klog/v2":         "v2.130.1",
		"k8s.io/utils":           "v0.0.0-20250604170112-4c0f3b243397",
		"golang.org/x/mod":       "v0.21.0",
	}, requirements(file))
	assert.Equal(t, map[string]string{
		"github.com/old/thing":     "github.com/new/thing v1.2.3",
		"k8s.io/api":               "k8s.io/api v0.34.4",
		"k8s.io/sample-controller": "k8s.io/sample-controller v0.34.4",
	}, replacements(file))
	assert.Equal(t, "1.24.0", file.Go.Version)
	require.Len(t, file.Godebug, 1)
	assert.Equal(t, "default=go1.24", file.Godebug[0].Key+"="+file.Godebug[0].Value)
}

const likeEtcd = `module go.etcd.io/etcd/server/v3

go 1.26.0

toolchain go1.26.10

require go.etcd.io/etcd/api/v3 v3.6.16

replace go.etcd.io/etcd/api/v3 => ../api

replace go.etcd.io/etcd => ./FORBIDDEN_DEPENDENCY
`

func TestDirectoriesThatARequirementNamesAVersionForAreDropped(t *testing.T) {
	file := parse(t, likeEtcd, "go.etcd.io/etcd/server/v3", "v3.6.16", "")
	assert.Equal(t, map[string]string{"go.etcd.io/etcd/server/v3": "v3.6.16",
		"go.etcd.io/etcd/api/v3": "v3.6.16"}, requirements(file))
	assert.Empty(t, replacements(file))
	assert.Nil(t, file.Toolchain, "the toolchain is the user's")
}

func TestNonsenseIsRefused(t *testing.T) {
	_, err := moduleFile([]byte("<html>"), "k8s.io/kubernetes", "v1.34.4", "")
	assert.ErrorContains(t, err, "read the go.mod of k8s.io/kubernetes")
}

func TestKubernetesKnowsItsVersions(t *testing.T) {
	source := Kubernetes()
	assert.Equal(t, "v0."+strings.SplitN(KubernetesVersion, ".", 2)[1], source.Siblings)
	assert.Contains(t, strings.Join(source.LinkerFlags, " "), "version.gitVersion="+KubernetesVersion)
	assert.Len(t, source.Programs, 6)
}

func TestBuiltProgramsAppearAllAtOnceAndAreFound(t *testing.T) {
	cache := Cache{Dir: t.TempDir()}
	left := filepath.Join(cache.Dir, ".build-left-by-a-killed-run")
	require.NoError(t, os.Mkdir(left, 0o755))
	unlock, err := cache.Lock()
	require.NoError(t, err)
	defer unlock()

	assert.False(t, cache.Has(Pause()))
	require.NoError(t, cache.Build(t.Context(), Pause()))
	assert.True(t, cache.Has(Pause()))
	assert.NoDirExists(t, left)
	entries, err := os.ReadDir(cache.Dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "nothing but the programs is left")
}

func TestAFailedBuildLeavesNothingAndShowsTheEnd(t *testing.T) {
	cache := Cache{Dir: t.TempDir()}
	broken := Pause()
	broken.Files = map[string][]byte{"main.go": []byte("package main\n\nfunc main() { nonsense() }\n"),
		"go.mod": broken.Files["go.mod"]}
	err := cache.Build(t.Context(), broken)
	assert.ErrorContains(t, err, "undefined: nonsense")
	assert.False(t, cache.Has(broken))
	entries, err := os.ReadDir(cache.Dir)
	require.NoError(t, err)
	assert.Empty(t, entries)
}

func TestAChangeOfOurPartChangesTheCachePath(t *testing.T) {
	cache := Cache{Dir: "/cache"}
	changed := CoreDNS()
	changed.Files = map[string][]byte{"main.go": []byte("package main")}
	assert.NotEqual(t, cache.Path(CoreDNS()), cache.Path(changed))
	assert.Contains(t, cache.Path(Etcd()), "/cache/etcd-"+EtcdVersion)
}

func TestOnlyTheEndOfALongOutputIsShown(t *testing.T) {
	assert.Equal(t, "c\nd", lastLines("a\nb\nc\nd\n", 2))
	assert.Equal(t, "a", lastLines("a", 2))
}
