// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/cluster/internal/pki"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/progress"
	"sidestep.dev/sidestep/tests/cluster/internal/render"
	"sidestep.dev/sidestep/tests/cluster/internal/upstream"
)

var usual = plan.Plan{Name: "sidestep", Nodes: 2, Family: plan.IPv4, HostLink: true}

func newCluster(t *testing.T) *Cluster {
	t.Helper()
	return &Cluster{
		State: filepath.Join(t.TempDir(), "state"),
		Cache: upstream.Cache{Dir: t.TempDir()},
		Out:   progress.New(io.Discard),
	}
}

func TestAPlanIsKeptUntilTheClusterIsDown(t *testing.T) {
	c := newCluster(t)
	_, err := c.Plan()
	require.ErrorIs(t, err, ErrDown)

	require.NoError(t, c.adopt(usual))
	kept, err := c.Plan()
	require.NoError(t, err)
	assert.Equal(t, usual, kept)
	assert.NoError(t, c.adopt(usual), "the same again")

	other := usual
	other.Nodes = 3
	assert.ErrorContains(t, c.adopt(other), "bring it down first")
}

func TestRemovalLeavesForeignFilesAlone(t *testing.T) {
	c := newCluster(t)
	require.NoError(t, c.adopt(usual))
	require.NoError(t, c.configure(usual))
	require.NoError(t, c.remove(usual))
	assert.NoDirExists(t, c.State)

	require.NoError(t, c.adopt(usual))
	precious := filepath.Join(c.State, "precious")
	require.NoError(t, os.WriteFile(precious, nil, 0o600))
	require.NoError(t, c.remove(usual))
	assert.FileExists(t, precious)
}

func TestCredentialsStayAndConfigurationFollows(t *testing.T) {
	c := newCluster(t)
	require.NoError(t, c.adopt(usual))
	require.NoError(t, c.configure(usual))
	read := func(name string) string {
		text, err := os.ReadFile(filepath.Join(c.State, name))
		require.NoError(t, err)
		return string(text)
	}
	credential, config := configFile("node1", render.KubeletCert), configFile("node1", "kubelet.yaml")
	assert.Equal(t, "node1/var/lib/cluster/kubelet.yaml", config)
	before := read(credential)
	require.NoError(t, os.WriteFile(filepath.Join(c.State, config), []byte("old"), 0o600))

	require.NoError(t, c.configure(usual))
	assert.Equal(t, before, read(credential))
	assert.Contains(t, read(config), "KubeletConfiguration")
	assert.Equal(t, read(kubeconfigFile), read(configFile(plan.ControlPlane, render.AdminKubeconfig)))

	authority, err := pki.Open(filepath.Join(c.State, pkiDir))
	require.NoError(t, err)
	assert.Equal(t, string(authority.Certificate()), read(configFile("node2", render.CACertificate)))
}

func TestTwoRunsDoNotOverlap(t *testing.T) {
	c := newCluster(t)
	unlock, err := c.lock()
	require.NoError(t, err)
	second := make(chan func())
	go func() {
		unlock, err := c.lock()
		assert.NoError(t, err)
		second <- unlock
	}()
	select {
	case <-second:
		t.Fatal("both have the lock")
	case <-time.After(100 * time.Millisecond):
	}
	require.NoError(t, os.Remove(c.State), "as down does")
	unlock()
	(<-second)()
	assert.DirExists(t, c.State, "the second has locked a directory that is there")
}

func daemonWithLog(t *testing.T, lines ...string) *daemon {
	t.Helper()
	log := filepath.Join(t.TempDir(), "kubelet.log")
	require.NoError(t, os.WriteFile(log, []byte(strings.Join(lines, "\n")+"\n"), 0o600))
	return &daemon{name: "node1's kubelet", log: log, exited: make(chan struct{})}
}

func TestWaitingEndsWhenADaemonDoesAndShowsItsLog(t *testing.T) {
	d := daemonWithLog(t, "starting", "no such flag")
	close(d.exited)
	err := await(t.Context(), "the node", time.Minute, []*daemon{d},
		func(context.Context) error { return errors.New("not yet") })
	assert.ErrorContains(t, err, "node1's kubelet has ended")
	assert.ErrorContains(t, err, "no such flag")
}

func TestWaitingTooLongTellsWhatWasMissing(t *testing.T) {
	d := daemonWithLog(t, "waiting for the runtime")
	err := await(t.Context(), "the node", time.Millisecond, []*daemon{d},
		func(context.Context) error { return errors.New("not ready") })
	assert.ErrorContains(t, err, "wait for the node: not within 1ms: not ready")
	assert.ErrorContains(t, err, "waiting for the runtime")
}

func TestWaitingEndsWhenTheUserInterrupts(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	err := await(ctx, "the node", time.Minute, nil,
		func(context.Context) error { return errors.New("not ready") })
	assert.ErrorIs(t, err, context.Canceled)
}

func TestTheEndOfALogIsShown(t *testing.T) {
	d := daemonWithLog(t, strings.Repeat("x\n", 100_000)+"last but one", "last")
	assert.Equal(t, "last but one\nlast", tail(d.log, 2))
	assert.Contains(t, tail("/does/not/exist", 2), "no such file")
}
