// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"errors"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/client/cli/env"
)

func TestHelmCommands(t *testing.T) {
	w := newWorld(t)
	text := ""
	for _, args := range [][]string{
		{"helm", "install"}, {"helm", "upgrade"}, {"helm", "uninstall"}, {"helm", "install", "--quiet"},
		{"helm", "install", "--progress", "plain"}, {"helm", "install", "-u"},
		{"helm", "upgrade", "--reset-values", "--reuse-values"}, {"helm", "install", "x"},
	} {
		text += w.transcript(args...) + "\n"
	}
	assert.Equal(t, []string{"install", "upgrade", "uninstall", "install", "install", "upgrade"},
		w.cluster.calls)
	w.cluster.err = errors.New(
		"the traffic manager v1.2.3 is already installed in namespace sidestep — use 'helm upgrade' to change it")
	text += w.transcript("helm", "install")
	golden(t, "helm", text)
	assert.Zero(t, w.launches)
}

func TestHelmFlags(t *testing.T) {
	w := newWorld(t)
	require.Zero(t, w.do("helm", "install", "--set", "a=1,b=2", "--set", "c=3", "--set-string", "d=4",
		"-f", "v.yaml", "--set-file", "e=f", "--set-json", `g={}`,
		"--create-namespace=false", "--no-hooks", "--wait=false", "--timeout", "1m", "--context",
		"staging"), w.stderr.String())
	s := w.cluster.settings
	assert.Equal(t, []string{"a=1,b=2", "c=3"}, s.Values.Values)
	assert.Equal(t, []string{"d=4"}, s.Values.StringValues)
	assert.Equal(t, []string{"v.yaml"}, s.Values.ValueFiles)
	assert.Equal(t, []string{"e=f"}, s.Values.FileValues)
	assert.Equal(t, []string{"g={}"}, s.Values.JSONValues)
	assert.False(t, s.CreateNamespace)
	assert.True(t, s.NoHooks)
	assert.False(t, s.Wait)
	assert.Equal(t, time.Minute, s.Timeout)
	assert.Equal(t, "staging", w.cluster.options.KubeFlags.Lookup("context").Value.String())
	assert.Equal(t, testVersion, w.cluster.options.Version)

	require.Zero(t, w.do("helm", "install"))
	assert.True(t, w.cluster.settings.CreateNamespace)
	assert.True(t, w.cluster.settings.Wait)
	assert.Equal(t, 5*time.Minute, w.cluster.settings.Timeout)
}

func TestTheNamespaceOfHelmIsTheManagers(t *testing.T) {
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"helm", "install"}, "sidestep"},
		{[]string{"helm", "install", "-n", "tools"}, "tools"},
		{[]string{"helm", "install", "--manager-namespace", "tools"}, "tools"},
		{[]string{"uninstall", "--everything", "--manager-namespace", "tools", "-n", "shop"}, "tools"},
	} {
		w := newWorld(t)
		require.Zero(t, w.do(c.args...))
		assert.Equal(t, c.want, w.cluster.options.Namespace)
	}
}

func TestUninstallEverything(t *testing.T) {
	w := newWorld(t).connected(true)
	text := w.transcript("uninstall", "--everything")
	assert.Equal(t, []string{"remove everything"}, w.cluster.calls)
	assert.Equal(t, 1, w.cleaned)
	_, _, err := w.Dial(t.Context())
	assert.True(t, env.NotRunning(err), "the daemon has ended")
	text += "\n" + w.transcript("uninstall", "-e")
	assert.Equal(t, 2, w.cleaned, "and without a daemon too")
	for _, args := range [][]string{
		{"uninstall"}, {"uninstall", "orders"}, {"uninstall", "--agent", "orders"},
		{"uninstall", "--all-agents"}, {"uninstall", "--all-agents", "--everything"},
	} {
		text += "\n" + w.transcript(args...)
	}
	w.cluster.err = errors.New(
		"the cluster at https://10.0.0.1:6443 does not answer — check --context and your network")
	text += "\n" + w.transcript("uninstall", "--everything")
	assert.Equal(t, 2, w.cleaned, "what is on the laptop stays to try again")
	golden(t, "uninstall", text)
}
