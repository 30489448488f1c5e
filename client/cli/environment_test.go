// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/internal/reason"
)

// imported is the environment of a container.
func imported(entries ...string) *daemonpb.Environment {
	e := &daemonpb.Environment{Container: "app", Pod: "orders-0", Declared: []string{"TMPDIR", "DB"}}
	for _, v := range append(entries, "DB=postgres://u:$p@h", "PATH=/app/bin", "HOME=/root",
		"HOSTNAME=orders-0", "TMPDIR=/scratch", "JAVA_VERSION=21", "JAVA_HOME=/opt/java") {
		e.Variables = append(e.Variables, []byte(v))
	}
	return e
}

const interceptID = "TELEPRESENCE_INTERCEPT_ID=" + testSession + ":orders\n"

func read(t *testing.T, path string) string {
	t.Helper()
	text, err := os.ReadFile(path)
	require.NoError(t, err)
	info, err := os.Stat(path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm(), path)
	return string(text)
}

func TestTheEnvironmentOfTheContainerIsWritten(t *testing.T) {
	w := withOrders(t)
	w.daemon.environment = imported("KEY=-----BEGIN-----\nx\n", "my.key=a b", "BYTES=\xff")
	dir := t.TempDir()
	file, object := filepath.Join(dir, "orders.env"), filepath.Join(dir, "orders.json")
	require.NoError(t, os.WriteFile(file, []byte("as it was"), 0o644))
	require.NoError(t, os.Symlink(file, filepath.Join(dir, "link")))

	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "-e", filepath.Join(dir, "link"), "-j",
		object), w.stderr.String())
	assert.Equal(t, daemonpb.InterceptRequest_REQUIRED,
		request[*daemonpb.InterceptRequest](t, w).GetEnvironment())
	assert.Equal(t, "DB=postgres://u:$p@h\nJAVA_VERSION=21\nTELEPRESENCE_CONTAINER=app\n"+interceptID+
		"TMPDIR=/scratch\nmy.key=a b\n", read(t, file))
	assert.JSONEq(t, `{"DB": "postgres://u:$p@h", "JAVA_VERSION": "21", "KEY": "-----BEGIN-----\nx\n", "TELEPRESENCE_CONTAINER": "app",
		"TELEPRESENCE_INTERCEPT_ID": "`+testSession+`:orders", "TMPDIR": "/scratch", "my.key": "a b"}`, read(t, object))
	says := strings.ReplaceAll(w.stderr.String(), dir, "")
	assert.Contains(t, says, "warning: not in /link, because the syntax wants UTF-8: BYTES\n")
	assert.Contains(t, says, "warning: not in /link, because the syntax does not allow values of several "+
		"lines: KEY\n")
	assert.Contains(t, says, "warning: not in /orders.json, because the syntax wants UTF-8: BYTES\n")
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 3, "no other file is left")
	assert.NotContains(t, w.stdout.String(), "postgres", "nor on the screen")

	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--env-file", file, "--env-syntax",
		"sh:export"), w.stderr.String())
	assert.Contains(t, read(t, file), "export KEY='-----BEGIN-----\nx\n'\n")
	assert.Contains(t, w.stderr.String(), "because the syntax does not allow the name: my.key\n")
}

func TestTheEnvironmentCanBePrinted(t *testing.T) {
	w := withOrders(t)
	w.daemon.environment = imported()
	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--env-file", "-", "--env-syntax", "sh"))
	assert.Equal(t, "DB='postgres://u:$p@h'\nJAVA_VERSION='21'\nTELEPRESENCE_CONTAINER='app'\nTELEPRESENCE_INTERCEPT_ID='"+testSession+":orders'\nTMPDIR='/scratch'\n", w.stdout.String())
	assert.Contains(t, w.stderr.String(), "Intercept name: orders\n")

	fifo := filepath.Join(t.TempDir(), "fifo") // as a shell's <( ) makes it
	require.NoError(t, syscall.Mkfifo(fifo, 0o600))
	reader := exec.Command("cat", fifo)
	var got bytes.Buffer
	reader.Stdout = &got
	require.NoError(t, reader.Start())
	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--env-file", fifo))
	require.NoError(t, reader.Wait())
	assert.Contains(t, got.String(), "JAVA_VERSION=21\n")
}

func TestWithoutItsEnvironmentThereIsNoIntercept(t *testing.T) {
	dir := t.TempDir()
	for name, args := range map[string][]string{
		"a directory":           {"--env-file", dir},
		"a directory in a file": {"--env-file", "/dev/null/x"},
		"no directory":          {"--env-json", filepath.Join(dir, "none", "x")},
		"the second of two files": {"--env-file", filepath.Join(dir, "first"), "--env-json",
			filepath.Join(dir, "none", "x")},
	} {
		t.Run(name+" cannot be written", func(t *testing.T) {
			w := withOrders(t)
			assert.Equal(t, exitError, w.do(append([]string{"intercept", "orders", "-p", "9000"}, args...)...))
			assert.Regexp(t, `^sidestep intercept: error: write .* — choose another file\n$`, w.stderr.String())
			assert.Empty(t, w.daemon.requests, "nothing has been asked for")
		})
	}
	t.Run("the daemon says why", func(t *testing.T) {
		w := withOrders(t)
		w.daemon.intercept = func(context.Context, *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo,
			error) {
			return nil, reason.New(codes.PermissionDenied, reason.Forbidden, "ann may not get intercepts/environment.sidestep.dev in namespace shop").
				Advise("ask")
		}
		file := filepath.Join(dir, "kept")
		require.NoError(t, os.WriteFile(file, []byte("as it was"), 0o600))
		assert.Equal(t, exitError, w.do("intercept", "orders", "-p", "9000", "--env-file", file))
		assert.Equal(t, "sidestep intercept: error: ann may not get intercepts/environment.sidestep.dev in "+
			"namespace shop — ask\n", w.stderr.String())
		assert.Equal(t, "as it was", read(t, file))
	})
	t.Run("the disk is full", func(t *testing.T) {
		const full = "sidestep intercept: error: write the environment to /dev/full: write /dev/full: no space " +
			"left on device"
		w := newWorld(t).connected(true)
		w.daemon.environment = imported()
		w.daemon.intercept = func(_ context.Context,
			r *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
			w.daemon.mu.Lock()
			defer w.daemon.mu.Unlock()
			w.daemon.status = statusOf(made(r))
			return made(r), nil
		}
		assert.Equal(t, exitError, w.do("intercept", "orders", "-p", "9000", "--env-file", "/dev/full"))
		assert.Contains(t, w.stderr.String(), full+" — nothing is intercepted\n")
		assert.Equal(t, []string{"orders"}, w.left())
		assert.Equal(t, exitError, w.do("intercept", "orders", "-p", "9001", "--env-file", "/dev/full"))
		assert.Contains(t, w.stderr.String(), full+" — intercept orders is there\n", "one that was there stays")
		assert.Equal(t, []string{"orders"}, w.left())
	})
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	assert.Len(t, entries, 1, "no file is left half made")
}

func TestFlagsOfTheEnvironmentThatCannotBeMeant(t *testing.T) {
	var all strings.Builder
	for _, args := range [][]string{
		{"--env-file", "x", "--env-syntax", "fish"}, {"--env-syntax", "sh"}, {"--env-file", ""},
		{"--env-file", "x", "--env-json", "x"},
		{"--env-file", "-", "--output", "json"},
		{"--env-keep", "LD_PRELOAD=/x"},
	} {
		w := withOrders(t)
		all.WriteString(w.transcript(append([]string{"intercept", "orders", "-p", "9000"}, args...)...) + "\n")
		assert.Empty(t, w.daemon.requests)
	}
	golden(t, "environment-wrong-usage", all.String())
}

func TestTheCommandHasTheEnvironmentOfTheContainer(t *testing.T) {
	w := withOrders(t)
	w.daemon.environment = imported("KEY=a\nb", "BYTES=\xff", "my.key=x")
	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--", "./orders"))
	assert.Equal(t, daemonpb.InterceptRequest_IF_ALLOWED,
		request[*daemonpb.InterceptRequest](t, w).GetEnvironment())
	assert.Equal(t, []string{
		"BYTES=\xff", "DB=postgres://u:$p@h", "JAVA_VERSION=21", "KEY=a\nb",
		"TELEPRESENCE_CONTAINER=app", strings.TrimSpace(interceptID), "TMPDIR=/scratch", "my.key=x",
	}, w.programVars, "and its own PATH and HOME")
	require.Zero(t, w.do("intercept", "orders", "-p", "9000"))
	assert.Equal(t, daemonpb.InterceptRequest_NOT_WANTED,
		request[*daemonpb.InterceptRequest](t, w).GetEnvironment(), "nobody needs it")
}

// Whoever controls the container controls its environment, which must not make the laptop run code.
func TestVariablesThatCouldRunCodeAreLeftOut(t *testing.T) {
	hostile := []string{"BASH_ENV=/x", "BASH_FUNC_make%%=() { id; }", "DOCKER_HOST=tcp://other", "HTTPS_PROXY=http://other",
		"JAVA_TOOL_OPTIONS=-javaagent:/x", "A\x1b[2J=x"}
	w := withOrders(t)
	w.daemon.environment = imported(hostile...)
	w.daemon.environment.Declared = []string{"BASH_ENV", "DB", "HTTPS_PROXY", "PATH"}
	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--", "./orders"))
	ours := []string{"DB=postgres://u:$p@h", "JAVA_VERSION=21", "TELEPRESENCE_CONTAINER=app", strings.TrimSpace(interceptID)}
	assert.Equal(t, ours, w.programVars)
	assert.Contains(t, w.stderr.String(), "warning: left out of the container's environment, because programs "+
		"could load code or "+
		`take their settings from it: A\x1b[2J, BASH_ENV, BASH_FUNC_make%%, DOCKER_HOST, HTTPS_PROXY, JAVA_TOOL_OPTIONS, PATH; `+
		"keep one with --env-keep NAME\n")

	file := filepath.Join(t.TempDir(), "env")
	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--env-file", file))
	assert.Equal(t, strings.Join(ours, "\n")+"\n", read(t, file))

	require.Zero(t, w.do("intercept", "orders", "-p", "9000", "--env-keep", "JAVA_TOOL_OPTIONS,PATH", "--env-keep", "HOME",
		"--", "./orders"))
	assert.Equal(t, append([]string{"DB=postgres://u:$p@h", "HOME=/root", "JAVA_TOOL_OPTIONS=-javaagent:/x",
		"JAVA_VERSION=21", "PATH=/app/bin"}, ours[2:]...), w.programVars)
	assert.NotContains(t, w.stderr.String(), "JAVA_TOOL")

	w.tools = []string{"docker"}
	require.Zero(t, w.do("intercept", "orders", "-p", "9000:8080", "--env-keep", "DOCKER_HOST", "--docker-run", "--", "orders:dev"))
	assert.Empty(t, w.programVars, "docker's own environment is its user's, whatever is kept")
}

func TestAContainerHasTheEnvironmentOfTheContainer(t *testing.T) {
	w := withOrders(t)
	w.tools = []string{"docker"}
	w.daemon.environment = imported("KEY=a\nb", "BYTES=\xff", "my.key=x")
	var file, text string
	w.Run = func(_ context.Context, p env.Program) (int, error) {
		w.programs, w.programVars = append(w.programs, p.Args), p.Vars
		for i, arg := range p.Args {
			if arg == "--env-file" {
				file = p.Args[i+1]
				text = read(t, file)
				p.Args[i+1] = "FILE"
			}
		}
		return 0, nil
	}
	require.Zero(t, w.do("intercept", "orders", "-p", "9000:8080", "--docker-run", "--", "-e",
		"DB=mine", "orders:dev"), w.stderr.String())
	assert.Equal(t, []string{
		"/usr/bin/docker", "run", "--rm", "--name", "intercept-orders-9000", "-p",
		"127.0.0.1:9000:8080", "--env-file", "FILE",
		"-e", strings.TrimSpace(interceptID), "-e", "TELEPRESENCE_CONTAINER=app", "-e", "DB=mine", "orders:dev",
	}, w.programs[0])
	assert.Equal(t, "DB=postgres://u:$p@h\nJAVA_VERSION=21\nTMPDIR=/scratch\nmy.key=x\n", text)
	assert.Empty(t, w.programVars, "nothing of it is in the environment of docker")
	assert.Contains(t, w.stderr.String(),
		"warning: not in the container's environment, because the syntax does not allow values of several lines: KEY\n")
	assert.Contains(t, w.stderr.String(),
		"warning: not in the container's environment, because the syntax wants UTF-8: BYTES\n")
	assert.NoFileExists(t, file)
}
