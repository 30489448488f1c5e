// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
)

func TestDockerRun(t *testing.T) {
	run := func(w *world, args ...string) int {
		return w.do(append([]string{"intercept", "orders", "--docker-run"}, args...)...)
	}
	id := "TELEPRESENCE_INTERCEPT_ID=" + testSession + ":orders"
	t.Run("publishes the container's port where the intercept delivers, and leaves it afterwards",
		func(t *testing.T) {
			w := withOrders(t)
			w.tools = []string{"podman", "docker"}
			w.programCode = 4
			assert.Equal(t, 4, run(w, "-p", "9000:8080", "--", "-v", "/data:/data", "orders:dev", "--verbose"))
			assert.Equal(t, [][]string{{
				"/usr/bin/docker", "run", "--rm", "--name", "intercept-orders-9000", "-p",
				"127.0.0.1:9000:8080", "-e", id,
				"-v", "/data:/data", "orders:dev", "--verbose",
			}}, w.programs)
			r := request[*daemonpb.InterceptRequest](t, w)
			assert.Equal(t, int32(9000), r.GetLocalPort())
			assert.Empty(t, r.GetPortIdentifier())
			assert.Equal(t, []string{"orders"}, w.left())
		})
	t.Run("uses podman without docker, and keeps the name that is given", func(t *testing.T) {
		w := withOrders(t)
		w.tools = []string{"podman"}
		assert.Zero(t, run(w, "-p", "9000:8080:http", "--address", "::1", "--", "--name", "mine", "orders:dev"))
		assert.Equal(t, []string{"/usr/bin/podman", "run", "--rm", "-p", "[::1]:9000:8080", "-e", id,
			"--name", "mine", "orders:dev"}, w.programs[0])
		assert.Equal(t, "http", request[*daemonpb.InterceptRequest](t, w).GetPortIdentifier())
	})
	t.Run("without either nothing is intercepted", func(t *testing.T) {
		w := withOrders(t)
		assert.Equal(t, exitError, run(w, "-p", "9000:8080", "--", "orders:dev"))
		assert.Equal(t, "sidestep intercept: error: --docker-run: neither docker nor podman is on the PATH — "+
			"install one, or run the container by yourself and intercept with --port\n", w.stderr.String())
		assert.Empty(t, w.daemon.requests)
	})
}

func TestAnImageIsBuiltAndRun(t *testing.T) {
	id := "TELEPRESENCE_INTERCEPT_ID=" + testSession + ":orders"
	runs := []string{"/usr/bin/docker", "run", "--rm", "--name", "intercept-orders-9000", "-p",
		"127.0.0.1:9000:8080", "-e", id}
	// builder is a docker whose builds end with a code; its image is called sha256:1.
	builder := func(t *testing.T, code int) *world {
		w := withOrders(t)
		w.tools = []string{"docker"}
		run := w.Run
		w.Run = func(ctx context.Context, p env.Program) (int, error) {
			if p.Args[1] != "build" {
				return run(ctx, p)
			}
			assert.True(t, p.Aside, "the standard output is for something else")
			assert.Empty(t, w.daemon.requests, "before anything is intercepted")
			require.NoError(t, os.WriteFile(p.Args[3], []byte("sha256:1\n"), 0o600))
			w.programs = append(w.programs, append([]string{"build"}, p.Args[4:]...))
			return code, nil
		}
		return w
	}
	for name, c := range map[string]struct{ args, build, run []string }{
		"by itself": {[]string{"--docker-build", "."}, []string{"."}, []string{"sha256:1"}},
		"with options and arguments": {
			[]string{"--docker-build=./orders", "--docker-build-opt", "tag=orders:dev",
				"--docker-build-opt", "no-cache", "--", "-v", "/data:/data", "IMAGE", "--verbose", "-d"},
			[]string{"--tag=orders:dev", "--no-cache", "./orders"},
			[]string{"-v", "/data:/data", "sha256:1", "--verbose", "-d"},
		},
		"for a debugger": {[]string{"--docker-debug", "."}, []string{"."},
			[]string{"--security-opt", "apparmor=unconfined", "--cap-add", "SYS_PTRACE", "sha256:1"}},
	} {
		t.Run(name, func(t *testing.T) {
			w := builder(t, 0)
			assert.Zero(t, w.do(append([]string{"intercept", "orders", "-p", "9000:8080"},
				c.args...)...), w.stderr.String())
			assert.Equal(t, [][]string{append([]string{"build"}, c.build...),
				slices.Concat(runs, c.run)}, w.programs)
			assert.Equal(t, []string{"orders"}, w.left())
		})
	}
	t.Run("a build that fails is all that happens", func(t *testing.T) {
		w := builder(t, 3)
		assert.Equal(t, exitError, w.do("intercept", "orders", "-p", "9000:8080", "--docker-build", "."))
		assert.Equal(t, "sidestep intercept: error: build the image from .: docker build ended with exit code 3 "+
			"— nothing is intercepted\n", w.stderr.String())
		assert.Len(t, w.programs, 1)
		assert.Empty(t, w.daemon.requests)
	})
}

// withOrders has a daemon that is connected and will know the intercept orders when it is left.
func withOrders(t *testing.T) *world {
	w := newWorld(t)
	w.daemon.status = statusOf(&daemonpb.InterceptInfo{Name: "orders"})
	return w.connected(true)
}

func TestTheCommandKnowsItsIntercept(t *testing.T) {
	w := withOrders(t)
	w.awaitsHold(1)
	require.Zero(t, w.do("intercept", "orders", "--container", "app", "--", "./orders"))
	assert.Equal(t, []string{"TELEPRESENCE_CONTAINER=app", "TELEPRESENCE_INTERCEPT_ID=" + testSession +
		":orders"}, w.programVars)
	assert.Equal(t, []string{"orders"}, w.heldNow())

	w = newWorld(t).connected(false)
	w.awaitsHold(1)
	require.Zero(t, w.do("connect", "--", "./try"))
	assert.Empty(t, w.programVars)
	assert.Equal(t, []string{""}, w.heldNow(), "the session is held")
	require.Zero(t, w.do("connect"))
	require.Zero(t, w.do("connect", "--", "./try"))
	assert.Equal(t, []string{""}, w.heldNow(), "a session that was there before is not")
}

// awaitsHold makes programs end only once the daemon has been asked to hold something n times: on a
// slow machine the command runs them sooner.
func (w *world) awaitsHold(n int) {
	run := w.Run
	w.Run = func(ctx context.Context, p env.Program) (int, error) {
		assert.Eventually(w.t, func() bool { return len(w.heldNow()) >= n }, time.Minute, time.Millisecond)
		return run(ctx, p)
	}
}

func (w *world) heldNow() []string {
	w.daemon.mu.Lock()
	defer w.daemon.mu.Unlock()
	return slices.Clone(w.daemon.held)
}

func TestACommandIsEndedWhenItsInterceptIsLeft(t *testing.T) {
	w := withDaemon(t)
	out, errs := &buffer{}, &buffer{}
	cmd := asProcess(t, w, "intercept", "orders", "--", "sh", "-c",
		`trap 'echo told; exit 6' TERM; echo ready; while :; do sleep 0.05; done`)
	cmd.Stdout, cmd.Stderr = out, errs
	require.NoError(t, cmd.Start())
	out.await(t, "ready")
	close(w.daemon.gone)
	assert.Equal(t, 6, exitOf(t, cmd))
	out.await(t, "told")
	assert.Contains(t, errs.String(), "intercept orders has ended, and so does sh\n")
}

func TestTheTerminalOfACommandShowsOnceWhatIsNotAnswered(t *testing.T) {
	w := withOrders(t)
	const line = "warning: a request was not answered here: because — do this\n"
	text := strings.TrimSuffix(strings.TrimPrefix(line, "warning: "), "\n")
	w.daemon.holdWarnings = []string{text, text, "another"}
	errs := &buffer{}
	w.Stderr = errs
	w.Run = func(context.Context, env.Program) (int, error) {
		errs.await(t, "another")
		return 0, nil
	}
	require.Zero(t, w.do("intercept", "orders", "--", "./orders"))
	assert.Equal(t, 1, strings.Count(errs.String(), line))
}

func TestTheDaemonIsToldThatACommandWasKilled(t *testing.T) {
	w := withDaemon(t)
	out := &buffer{}
	cmd := asProcess(t, w, "intercept", "orders", "--", "sh", "-c", `echo ready $$; read line`)
	cmd.Stdout = out
	stdin, err := cmd.StdinPipe() // its end is what ends the orphan
	require.NoError(t, err)
	defer stdin.Close()
	require.NoError(t, cmd.Start())
	out.await(t, "ready")
	require.Eventually(t, func() bool { return w.holds(1, 0) }, 10*time.Second, 5*time.Millisecond,
		"the intercept is held")
	require.NoError(t, cmd.Process.Signal(syscall.SIGKILL))
	require.Eventually(t, func() bool { return w.holds(1, 1) }, 10*time.Second, 5*time.Millisecond,
		"the call breaks off")
	assert.Empty(t, w.left(), "and it is the daemon that leaves")
	_ = stdin.Close()
	_ = cmd.Wait()
}

// holds reports whether Hold was called and broken off that often.
func (w *world) holds(called, broken int) bool {
	w.daemon.mu.Lock()
	defer w.daemon.mu.Unlock()
	return len(w.daemon.held) == called && w.daemon.broken == broken
}

func TestAContainerIsStoppedByItsToolWhenTheInterceptIsLeft(t *testing.T) {
	w := withDaemon(t)
	dir := t.TempDir()
	// The stand-in records how it is called; `run` lasts until `stop` is called.
	require.NoError(t, os.WriteFile(filepath.Join(dir, "docker"), []byte(`#!/bin/sh
cd "$(dirname "$0")"
echo "$@" >>calls
case $1 in
run) while [ ! -e stopped ]; do sleep 0.05; done; exit 137;;
stop) : >stopped;;
esac
`), 0o755))
	cmd := asProcess(t, w, "intercept", "orders", "-p", "9000:80", "--docker-run", "--", "orders:dev")
	for i, v := range cmd.Env {
		if path, ok := strings.CutPrefix(v, "PATH="); ok {
			cmd.Env[i] = "PATH=" + dir + ":" + path
		}
	}
	require.NoError(t, cmd.Start())
	calls := func() string {
		text, _ := os.ReadFile(filepath.Join(dir, "calls"))
		return string(text)
	}
	require.Eventually(t, func() bool { return calls() != "" }, 20*time.Second, 10*time.Millisecond)
	close(w.daemon.gone)
	assert.Equal(t, 137, exitOf(t, cmd))
	assert.Equal(t, "run --rm --name intercept-orders-9000 -p 127.0.0.1:9000:80 -e "+
		"TELEPRESENCE_INTERCEPT_ID="+testSession+":orders orders:dev\n"+
		"stop intercept-orders-9000\n", calls())
}

func TestACommandOutlivesTheDaemon(t *testing.T) {
	w := withOrders(t)
	w.hasSaved = true
	w.Run = func(context.Context, env.Program) (int, error) {
		require.Eventually(t, func() bool { return w.holds(1, 0) }, 10*time.Second, 5*time.Millisecond)
		w.serving.Stop() // as if it had been killed
		require.Eventually(t, func() bool { return w.holds(2, 1) }, 10*time.Second, 5*time.Millisecond,
			"the next daemon holds the intercept")
		return 0, nil
	}
	assert.Zero(t, w.do("intercept", "orders", "--", "./orders"), w.stderr.String())
	assert.Equal(t, 1, w.launches, "of a daemon that takes its place")
	assert.Equal(t, []string{"orders"}, w.left())
}
