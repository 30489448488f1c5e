// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"archive/zip"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/output"
)

func TestConfigView(t *testing.T) {
	w := newWorld(t)
	text := w.transcript("config", "view")
	w.connected(false)
	require.Zero(t, w.do("loglevel", "trace", "-d", "90s"))
	text += "\n" + w.transcript("config", "view")
	require.Zero(t, w.do("connect"))
	text += "\n" + w.transcript("config", "view") + "\n" +
		w.transcript("config", "view", "--client-only", "--output", "json")
	golden(t, "config view", text)
	assert.Zero(t, w.launches, "nothing is started for it")
}

func TestLogLevel(t *testing.T) {
	w := newWorld(t)
	text := ""
	for _, args := range [][]string{
		{"debug"}, {"warning", "-d", "0s"}, {"info", "--quiet"}, {"debug", "--output", "json"},
		{"loud"}, {}, {"debug", "-d", "-1s"}, {"debug", "-r"}, {"debug", "-r", "-l"},
	} {
		text += w.transcript(append([]string{"loglevel"}, args...)...) + "\n"
	}
	golden(t, "loglevel", text)
	assert.Equal(t, 1, w.launches)
}

func TestListContextsAndNamespaces(t *testing.T) {
	kubeconfig := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(kubeconfig, []byte(`
apiVersion: v1
kind: Config
current-context: staging
contexts:
- {name: staging, context: {cluster: one, user: jane, namespace: shop}}
- {name: production, context: {cluster: two, user: root}}
clusters:
- {name: one, cluster: {server: "https://10.0.0.1:6443"}}
`), 0o600))
	t.Setenv("KUBECONFIG", kubeconfig)
	w := newWorld(t)
	text := w.transcript("list-contexts") + "\n" +
		w.transcript("list-contexts", "--context", "production", "--output", "json") +
		"\n" + w.transcript("list-namespaces") + "\n" + w.transcript("list-namespaces", "--output", "yaml")
	w.cluster.err = errors.New("forbidden")
	text += "\n" + w.transcript("list-namespaces")
	t.Setenv("KUBECONFIG", filepath.Join(t.TempDir(), "none"))
	text += "\n" + w.transcript("list-contexts") + "\n" + w.transcript("list-contexts", "--format", "json")
	golden(t, "list contexts and namespaces", text)
}

// unzip reads all files of a zip file.
func unzip(t *testing.T, path string) map[string]string {
	t.Helper()
	archive, err := zip.OpenReader(path)
	require.NoError(t, err)
	defer archive.Close()
	files := map[string]string{}
	for _, f := range archive.File {
		r, err := f.Open()
		require.NoError(t, err)
		text, err := io.ReadAll(r)
		require.NoError(t, err)
		files[f.Name] = string(text)
	}
	return files
}

func TestGatherLogs(t *testing.T) {
	withLogs := func(t *testing.T) *world {
		w := newWorld(t).connected(true)
		dir := t.TempDir()
		for name, text := range map[string]string{"daemon.log": "new", "daemon.log.1": "old",
			"session.json": "secret"} {
			require.NoError(t, os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600))
		}
		w.LogFile = func() string { return filepath.Join(dir, "daemon.log") }
		return w
	}
	t.Run("everything, in a new file of this directory", func(t *testing.T) {
		w := withLogs(t)
		t.Chdir(t.TempDir())
		require.Zero(t, w.do("gather-logs"), w.stderr.String())
		assert.Equal(t, "Logs have been exported to sidestep_logs_2026-01-02T03-04-05Z.zip\n",
			w.stdout.String())
		files := unzip(t, "sidestep_logs_2026-01-02T03-04-05Z.zip")
		names := env.SortedKeys(files)
		assert.Equal(t, []string{
			"cluster/sidestep-manager-1.log", "cluster/sidestep-nodeagent-1.log",
			"cluster/sidestep-nodeagent-2.log",
			"config.json", "daemon/daemon.log", "daemon/daemon.log.1", "status.json", "version.json",
		}, names)
		assert.Equal(t, "old", files["daemon/daemon.log.1"])
		assert.Contains(t, files["status.json"], testSession)
		assert.Contains(t, files["version.json"], testVersion)
		info, err := os.Stat("sidestep_logs_2026-01-02T03-04-05Z.zip")
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	})
	t.Run("not into a file that somebody else has put there", func(t *testing.T) {
		w := withLogs(t)
		dir := t.TempDir()
		theirs, path := filepath.Join(dir, "theirs"), filepath.Join(dir, "x.zip")
		require.NoError(t, os.WriteFile(theirs, []byte("as it was"), 0o666))
		require.NoError(t, os.Symlink(theirs, path))
		require.Zero(t, w.do("gather-logs", "-o", path), w.stderr.String())
		text, err := os.ReadFile(theirs)
		require.NoError(t, err)
		assert.Equal(t, "as it was", string(text))
		info, err := os.Lstat(path)
		require.NoError(t, err)
		assert.Equal(t, os.FileMode(0o600), info.Mode(), "a file, and its owner's alone")
		require.NoError(t, os.Remove(path))
		require.NoError(t, os.Link(theirs, path))
		require.Zero(t, w.do("gather-logs", "-o", path), w.stderr.String())
		text, err = os.ReadFile(theirs)
		require.NoError(t, err)
		assert.Equal(t, "as it was", string(text))
	})
	t.Run("only what is asked for", func(t *testing.T) {
		w := withLogs(t)
		path := filepath.Join(t.TempDir(), "x.zip")
		require.Zero(t, w.do("gather-logs", "-o", path, "--daemons", "none", "--traffic-manager=false",
			"--traffic-agents", "agent-2"), w.stderr.String())
		assert.Equal(t, []string{"cluster/sidestep-nodeagent-2.log", "config.json", "status.json",
			"version.json"}, env.SortedKeys(unzip(t, path)))
	})
	t.Run("without rights and without a daemon, what there is and why the rest is missing", func(t *testing.T) {
		w := newWorld(t)
		w.cluster.err = errors.New("jane may not get pods/log")
		path := filepath.Join(t.TempDir(), "x.zip")
		require.Zero(t, w.do("gather-logs", "-o", path))
		files := unzip(t, path)
		assert.Equal(t, []string{"config.json", "errors.txt", "version.json"}, env.SortedKeys(files))
		assert.Contains(t, files["errors.txt"],
			"could not read the log of pod sidestep-manager-1: jane may not get pods/log\n")
		assert.Contains(t, w.stderr.String(),
			"warning: could not read /home/jane/.cache/sidestep/logs/daemon.log: it does not exist\n")
		assert.Zero(t, w.launches)
	})
	t.Run("with names replaced, each by the same word everywhere", func(t *testing.T) {
		w := withLogs(t)
		require.NoError(t, os.WriteFile(w.LogFile(), []byte(strings.Join([]string{
			`time=2026-11-21T10:00:00.000Z level=INFO msg="intercept gone" name=orders-in-shop namespace=shop reason="deleted"`,
			`level=DEBUG msg="no local connection" intercept=shop/try-71d5e134 pod=gone-7c5d9-x2k4j error="nothing listens on 127.0.0.1:9000"`,
			`level=INFO msg="read /home/jane/x of orders-in-shop.shop.svc and http://stock-in-shop.shop:80, not shopping"`,
		}, "\n")), 0o600))
		w.cluster.logged = `
{"level":"INFO","msg":"laptop connected","session":"71d5e134-1163-4d17-8138-e35624c1e941","holder":"jane@laptop"}
{"level":"INFO","msg":"pod orders-in-shop-6d5f79c-abcde is not ready","intercept":"shop/try-71d5e134","pod":"gone-7c5d9-x2k4j","node":"ip-10-0-0-1.example"}
level=INFO msg="pod is being steered" node=ip-10-0-0-1.example pod=shop/gone-7c5d9-x2k4j ips="[10.0.0.1]"`
		path := filepath.Join(t.TempDir(), "x.zip")
		require.Zero(t, w.do("gather-logs", "-a", "-o", path, "--traffic-agents", "none"), w.stderr.String())
		files := unzip(t, path)
		text := ""
		for _, name := range []string{"daemon/daemon.log", "cluster/sidestep-manager-1.log"} {
			text += "==> " + name + "\n" + files[name] + "\n"
		}
		golden(t, "gather-logs anonymized", text)
		for name, text := range files {
			for _, secret := range []string{"shop/", "in-shop", "jane", "laptop\"", "ip-10", "gone-",
				"try-7", "x2k4j"} {
				assert.NotContains(t, text, secret, name)
			}
		}
		assert.NotContains(t, env.SortedKeys(files), "daemon/session.json", "the session's key is never among them")
	})
	t.Run("wrong words and places", func(t *testing.T) {
		w := newWorld(t)
		golden(t, "gather-logs wrong usage", w.transcript("gather-logs", "-o", "logs.tar")+"\n"+
			w.transcript("gather-logs", "--daemons", "some")+"\n"+
			w.transcript("gather-logs", "-o", "/nonexistent/x.zip"))
	})
}

func TestManualPages(t *testing.T) {
	w := newWorld(t)
	dir := filepath.Join(t.TempDir(), "man1")
	require.Zero(t, w.do("man-pages", dir), w.stderr.String())
	entries, err := os.ReadDir(dir)
	require.NoError(t, err)
	var names []string
	for _, entry := range entries {
		names = append(names, entry.Name())
	}
	for _, name := range []string{"sidestep.1", "sidestep-intercept.1", "sidestep-helm-install.1",
		"sidestep-gather-logs.1"} {
		assert.Contains(t, names, name)
	}
	assert.False(t, slices.ContainsFunc(names,
		func(n string) bool { return strings.Contains(n, "foreground") }),
		"hidden commands have none: %v", names)
	page, err := os.ReadFile(filepath.Join(dir, "sidestep-leave.1"))
	require.NoError(t, err)
	golden(t, "man leave", string(page))
	if groff, err := exec.LookPath("groff"); err == nil {
		for _, name := range names {
			out, err := exec.Command(groff, "-man", "-Tutf8", "-ww", "-z",
				filepath.Join(dir, name)).CombinedOutput()
			assert.NoError(t, err)
			assert.Empty(t, string(out), name)
		}
	}
}

func TestCommandsWithoutARecordAnswerInAnEnvelope(t *testing.T) {
	w := newWorld(t).connected(true)
	text := w.transcript("quit", "--output", "json") + "\n" +
		w.transcript("uninstall", "--everything", "--output", "json") +
		"\n" + w.transcript("leave", "nothing", "--output", "json") + "\n" +
		w.transcript("leave", "nothing", "--output", "yaml") +
		"\n" + w.transcript("leave", "nothing", "--format", "json") + "\n" +
		w.transcript("helm", "install", "--nonsense", "--output", "json")
	golden(t, "envelopes", text)
}

func TestAWarningIsMarkedOnce(t *testing.T) {
	w := newWorld(t)
	for _, text := range []string{"mind this", "warning: mind this", "warning: warning: mind this"} {
		w.stderr.Reset()
		w.Warn(&env.Global{Format: output.FormatText}, text)
		assert.Equal(t, "warning: mind this\n", w.stderr.String())
	}
}
