//go:build e2e

package e2e

import (
	"archive/zip"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// telepresence runs the command line by its other name, a symbolic link, which must succeed.
func telepresence(t *testing.T, d *lab.Developer, args ...string) string {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	script := `ln -sf "$(command -v sidestep)" "$HOME/telepresence" && exec "$HOME/telepresence" "$@"`
	out, err := lab.Output(d.Command(ctx, append([]string{"sh", "-c", script, "telepresence"}, args...)...))
	require.NoError(t, err, args)
	return out
}

// testDocuments follows the command lines that people know from Telepresence's documents, and sees what those show.
func testDocuments(t *testing.T, s *scene) {
	const auto = `HTTP requests that match all of:\n      header\("x-telepresence-intercept-id"\) ~= regexp\("[0-9a-f-]{36}:NAME"\)`
	for _, c := range []struct{ line, name, intercepting string }{
		{"orders --namespace shop --port 9000", "orders-shop", "all TCP connections"},
		{"orders --namespace shop --port=9000 --preview-url=false", "orders-shop", "all TCP connections"},
		{"myhello --namespace shop --workload orders --port 9000", "myhello", "all TCP connections"},
		{"myhello --namespace shop --deployment orders --port 9000", "myhello", "all TCP connections"},
		{"orders -n shop --port 9000 --mechanism=http --http-match=auto", "orders-shop", auto},
		{"orders -n shop --port 9000 --http-match=auto --preview-url=false", "orders-shop", auto},
		{"orders -n shop --port 9000 --http-header=all", "orders-shop", "all HTTP requests"},
		{"orders -n shop --port 9000 --http-header=Personal-Intercept=126a72c7-be8b-4329-af64-768e207a184b", "orders-shop", `HTTP requests that match all of:\n      header\("(?i)personal-intercept"\) .*126a72c7-be8b-4329-af64-768e207a184b`},
		{"orders -n shop --port 9000 --http-path-prefix=/api --http-header=Coder=Bob", "orders-shop", `HTTP requests that match all of:\n(.*\n)*      path-prefix\("/api"\)`},
		{"orders -n shop --port 9000 --http-path-equal=/api/version --http-header=auto", "orders-shop", auto + `\n      path-equal\("/api/version"\)`},
		{"orders -n shop --port 9000 --http-path-equal=/api/version", "orders-shop", auto},
		{"orders -n shop --port 9000 --http-path-regex=/(staging-)?api/.*", "orders-shop", auto},
	} {
		t.Run(c.line, func(t *testing.T) {
			out := telepresence(t, s.ann, append([]string{"intercept"}, strings.Fields(c.line)...)...)
			assert.Regexp(t, `^Using Deployment orders
intercepted
    Intercept name *: `+c.name+`
    State *: ACTIVE
    Workload kind *: Deployment
    Destination *: 127\.0\.0\.1:9000
    Intercepting *: `+strings.ReplaceAll(c.intercepting, "NAME", c.name), out)
			status := telepresence(t, s.ann, "status")
			assert.Regexp(t, `(?m)^  Telepresence proxy: `, status)
			assert.Regexp(t, `(?m)^  Intercepts +: 1 total\n    `+c.name+`: ann@`, status)
			telepresence(t, s.ann, "leave", c.name)
		})
	}
	t.Run("what is not built says so", func(t *testing.T) {
		for _, args := range [][]string{{"login"}, {"dashboard"}, {"preview", "create", "orders"}, {"intercept", "orders", "--preview-url=true"}} {
			_, err := s.ann.Sidestep(t.Context(), args...)
			assert.ErrorContains(t, err, "not available in this version — ")
		}
	})
}

func testRunning(t *testing.T, s *scene) {
	lines := func(args ...string) *exec.Cmd {
		return s.ann.Command(t.Context(), append([]string{"sidestep", "intercept", "orders", "-n", lab.Namespace, "--workload", "orders", "--port", "9000", "--"}, args...)...)
	}
	none := func(ctx context.Context) error {
		left, err := s.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "--no-headers", "--ignore-not-found")
		if err == nil && strings.TrimSpace(left) != "" {
			err = assert.AnError
		}
		return err
	}
	t.Run("the command knows its intercept, its exit code counts, and the intercept ends with it", func(t *testing.T) {
		cmd := lines("sh", "-c", `echo "id $TELEPRESENCE_INTERCEPT_ID"; exit 7`)
		out, err := cmd.Output()
		require.Error(t, err)
		assert.Equal(t, 7, cmd.ProcessState.ExitCode())
		assert.Regexp(t, `(?m)^id [0-9a-f-]{36}:orders$`, string(out))
		assert.NoError(t, none(t.Context()))
	})
	t.Run("kill -9 of the command line ends the intercept", func(t *testing.T) {
		file := filepath.Join(s.ann.Home(), "running")
		cmd := lines("sh", "-c", `echo $PPID >`+file+`.new; mv `+file+`.new `+file+`; sleep 30`)
		require.NoError(t, cmd.Start())
		var pid string
		require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(context.Context) error {
			text, err := os.ReadFile(file)
			pid = strings.TrimSpace(string(text))
			return err
		}))
		_, err := lab.Output(s.ann.Command(t.Context(), "kill", "-9", pid))
		require.NoError(t, err)
		assert.NoError(t, lab.Eventually(t.Context(), 15*time.Second, none))
		_ = cmd.Process.Signal(syscall.SIGKILL)
		_ = cmd.Wait()
	})
	t.Run("leave ends the command", func(t *testing.T) {
		cmd := lines("sleep", "60")
		require.NoError(t, cmd.Start())
		require.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
			_, err := s.ann.Sidestep(ctx, "leave", "orders")
			return err
		}))
		require.Error(t, cmd.Wait())
	})
}

func testOperations(t *testing.T, s *scene) {
	var made struct{ ID, State, Client string }
	decode(t, intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "auto", "--output", "json"), &made)
	assert.Equal(t, "ACTIVE", made.State)
	assert.Regexp(t, `^[0-9a-f-]{36}:orders$`, made.ID)
	var failed struct{ Cmd, Err, Reason string }
	cmd := s.ann.Command(t.Context(), "sidestep", "leave", "nothing", "--output", "json")
	out, err := cmd.Output()
	require.Error(t, err)
	decode(t, string(out), &failed)
	assert.Equal(t, "leave", failed.Cmd)
	assert.Equal(t, "INTERCEPT_NOT_FOUND", failed.Reason)

	zipped := filepath.Join(s.ann.Home(), "logs.zip")
	sidestep(t, s.ann, "gather-logs", "-o", zipped, "-y")
	archive, err := zip.OpenReader(zipped)
	require.NoError(t, err)
	defer archive.Close()
	names := ""
	for _, f := range archive.File {
		names += f.Name + "\n"
	}
	assert.Regexp(t, regexp.MustCompile(`(?m)^cluster/sidestep-manager-.*\.log$`), names)
	assert.Regexp(t, regexp.MustCompile(`(?m)^cluster/sidestep-nodeagent-.*\.log$`), names)
	assert.Contains(t, names, "daemon/daemon.log\n")
	assert.NotContains(t, names, "errors.txt")
	assert.NotContains(t, names, "session.json")

	assert.Contains(t, sidestep(t, s.ann, "config", "view"), "session_grace: ")
	assert.Contains(t, sidestep(t, s.ann, "loglevel", "debug", "-d", "1m"), "debug")
	assert.Contains(t, sidestep(t, s.admin, "list-namespaces"), lab.Namespace+"\n")
	assert.Contains(t, sidestep(t, s.ann, "list-contexts"), "* name: ")
	assert.Contains(t, sidestep(t, s.ann, "__complete", "intercept", "twoports", "-n", lab.Namespace, "--port", "9000:"), "9000:admin\n9000:http\n")
	assert.Contains(t, sidestep(t, s.admin, "list", "-n", "sidestep"), "not interceptable: it is a part of sidestep itself")
}
