// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"os"
	"regexp"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

func testNotInstalled(t *testing.T, s *scene) {
	_, err := s.admin.Sidestep(t.Context(), "list", "-n", lab.Namespace)
	require.ErrorContains(t, err, "helm install")
	names(t, s.admin)
	for _, name := range []string{"telepresence", "sidestep"} {
		tr := &transcript{T: t, who: s.admin, name: name}
		tr.types("list")
		tr.types("intercept orders --port 9000")
		golden(t, "not-installed-"+name, tr.text.String())
	}
}

func testInstall(t *testing.T, s *scene) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	_, _, err := s.admin.Install(ctx)
	require.NoError(t, err)
	out := sidestep(t, s.ann, "connect", "-n", lab.Namespace)
	assert.Contains(t, out, "Connected")
	sidestep(t, s.bob, "connect", "-n", lab.Namespace)
}

func testErrors(t *testing.T, s *scene) {
	stranger, err := s.Stranger(t.Context())
	require.NoError(t, err)
	defer func() { _, _ = stranger.Sidestep(context.Background(), "quit", "-s") }()
	nowhere := []string{"--kubeconfig", "/nonexistent"}
	intercept(t, s.ann, "stock", "--port", "9700", "--http-header", "x-user=ann")
	for _, c := range []struct {
		name   string
		who    *lab.Developer
		args   []string
		expect []string
	}{
		{"unknown workload", s.ann,
			[]string{"intercept", "ordrs", "-n", lab.Namespace, "--port", "9000"},
			[]string{"ordrs", `did you mean "orders"`}},
		{"ambiguous port", s.ann,
			[]string{"intercept", "twoports", "-n", lab.Namespace, "--port", "9000"},
			[]string{"http", "admin", "--port"}},
		{"unknown port", s.ann, []string{"intercept", "twoports", "-n", lab.Namespace, "--port",
			"9000:nope"}, []string{"nope", "http", "admin"}},
		{"one's own intercept", s.ann, []string{"intercept", "again", "-n", lab.Namespace, "--workload", "stock", "--port", "9701"},
			[]string{`your own intercept "stock"`, "sidestep leave stock"}},
		{"bad regexp", s.ann, []string{"intercept", "orders", "-n", lab.Namespace, "--port", "9000",
			"--http-header", "x-user=a(b"}, []string{"--http-header", "a(b"}},
		{"conflicting flags", s.ann,
			[]string{"intercept", "orders", "-n", lab.Namespace, "--mechanism", "tcp", "--http-header",
				"a=b"}, []string{"--mechanism"}},
		{"two paths", s.ann, []string{"intercept", "orders", "-n", lab.Namespace, "--http-path-equal",
			"/", "--http-path-prefix", "/"}, []string{"--http-path"}},
		{"bad port", s.ann, []string{"intercept", "orders", "-n", lab.Namespace, "--port", "99999"},
			[]string{"99999"}},
		{"unknown intercept", s.ann, []string{"leave", "nothing"}, []string{"nothing"}},
		{"no rights", stranger, []string{"intercept", "orders", "-n", lab.Namespace, "--port", "9000"},
			[]string{"sidestep-user"}},
		{"no cluster", stranger, append([]string{"list"}, nowhere...), []string{"kubeconfig"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			_, err := c.who.Sidestep(ctx, c.args...)
			require.Error(t, err)
			t.Log(lastLine(err))
			assert.Regexp(t, `^sidestep \w+: error: .* — `, lastLine(err))
			for _, text := range c.expect {
				assert.Contains(t, err.Error(), text)
			}
		})
	}
	objects, err := s.Kubectl(t.Context(), "get", "intercepts", "-A", "--no-headers")
	require.NoError(t, err)
	assert.Len(t, strings.Split(strings.TrimSpace(objects), "\n"), 1, "errors left objects:\n%s", objects)
}

func lastLine(err error) string {
	lines := strings.Split(strings.TrimSpace(err.Error()), "\n")
	return lines[len(lines)-1]
}

func testWrongObjects(t *testing.T, s *scene) {
	object := `{"apiVersion":"sidestep.dev/v1alpha1","kind":"Intercept","metadata":{"name":"wrong","namespace":"shop"},"spec":{"name":"wrong",
		"workload":{"kind":"Deployment","name":"orders"},"mechanism":"http","client":{"session":"71d5e134-1163-4d17-8138-e35624c1e941","holder":"a@b",
		"keyHash":"` + strings.Repeat("0", 64) + `"}}}`
	for _, c := range []struct{ name, old, new, expect string }{
		{"match rules of a tcp intercept", `"http",`, `"tcp","http":{},`, "every connection"},
		{"kind of workload", `"Deployment"`, `"Service"`, "supported values"},
		{"both value and regex", `"http",`,
			`"http","http":{"headers":[{"name":"a","value":"b","regex":"c"}]},`, "value or regex"},
		{"two paths", `"http",`, `"http","http":{"path":{"equal":"/","prefix":"/"}},`, "exactly one"},
		{"no client", `"client"`, `"clients"`, "client"},
	} {
		t.Run(c.name, func(t *testing.T) {
			file := s.ann.Home() + "/wrong.json"
			require.NoError(t, os.WriteFile(file, []byte(strings.Replace(object, c.old, c.new, 1)), 0o600))
			_, err := s.Kubectl(t.Context(), "create", "--validate=false", "-f", file)
			require.ErrorContains(t, err, c.expect)
		})
	}
}

func testListStatusLeave(t *testing.T, s *scene) {
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	out := intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	assert.Regexp(t, `^Using Deployment orders
intercepted
    Intercept name: orders
    State         : ACTIVE
    Workload kind : Deployment
    Destination   : 127\.0\.0\.1:9000
    Intercepting  : HTTP requests that match all of:
      header\("x-user"\) .*ann`, out)
	list := sidestep(t, s.ann, "list", "-n", lab.Namespace)
	assert.Regexp(t, `(?m)^orders +: intercepted$`, list)
	assert.Regexp(t, `(?m)^frontend *: ready to intercept`, list)
	assert.Regexp(t, `(?m)^stock +: ready to intercept`, list)
	assert.Regexp(t, `(?m)^legacy +: ready to intercept`, list)
	status := sidestep(t, s.ann, "status")
	assert.Regexp(t, `(?m)^Root Daemon: `, status)
	assert.Regexp(t, `(?m)^User Daemon: Running$`, status)
	assert.Regexp(t, `(?m)^  Status +: Connected$`, status)
	assert.Regexp(t, `(?m)^  Intercepts +: 1 total$`, status)
	assert.Regexp(t, `(?m)^    orders: ann@`, status)
	table, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "intercepts")
	require.NoError(t, err)
	assert.Regexp(t, regexp.MustCompile(`orders\S* +orders +\S+ +ann@\S+ .*ACTIVE +2/2`), table)
	sidestep(t, s.ann, "leave", "orders")
	assert.Regexp(t, `(?m)^  Intercepts +: 0 total$`, sidestep(t, s.ann, "status"))
	left, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "get", "intercepts", "--no-headers",
		"--ignore-not-found")
	require.NoError(t, err)
	assert.Empty(t, strings.TrimSpace(left))
}

func testInterrupt(t *testing.T, s *scene) {
	for _, after := range []time.Duration{10, 50, 100, 200} {
		cmd := s.ann.Command(t.Context(), "sidestep", "intercept", "orders", "-n", lab.Namespace,
			"--workload", "orders", "--port", "9000")
		require.NoError(t, cmd.Start())
		time.Sleep(after * time.Millisecond) // wherever it is by then
		require.NoError(t, cmd.Process.Signal(syscall.SIGINT))
		if cmd.Wait() == nil { // it was done already
			sidestep(t, s.ann, "leave", "orders")
		}
		require.NoError(t, lab.Eventually(t.Context(), 5*time.Second, func(ctx context.Context) error {
			left, err := s.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "--no-headers",
				"--ignore-not-found")
			if err == nil && strings.TrimSpace(left) != "" {
				err = assert.AnError
			}
			return err
		}), "interrupted after %d ms", after)
	}
}

func testUninstall(t *testing.T, s *scene) {
	intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "x-user=ann")
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	out, err := s.admin.Sidestep(ctx, "uninstall", "--everything")
	require.NoError(t, err)
	golden(t, "uninstall-everything", out)
	for _, kind := range []string{"all,configmap,secret,serviceaccount,role,rolebinding,networkpolicy,poddisruptionbudget", "clusterrole,clusterrolebinding,customresourcedefinition,priorityclass,namespace,validatingadmissionpolicy,validatingadmissionpolicybinding"} {
		left, err := s.Kubectl(t.Context(), "get", kind, "-A", "-o", "name", "--ignore-not-found")
		require.NoError(t, err)
		assert.NotContains(t, strings.ReplaceAll(left, "app.sidestep.dev", ""), "sidestep")
	}
	if !s.Local() {
		return
	}
	for _, node := range []string{"node1", "node2"} {
		left, err := lab.Output(s.OnNode(t.Context(), node, "sh", "-c",
			`find /sys/fs/bpf -mindepth 1 ! -type d ! -name "*.debug"; ip -o link | grep -i sidestep; ip rule | grep -v 'lookup \(local\|main\|default\)'; true`))
		require.NoError(t, err)
		assert.Empty(t, left, "left on %s", node)
	}
	programs, err := loadedPrograms()
	require.NoError(t, err)
	programs = slices.DeleteFunc(programs, func(p string) bool { return slices.Contains(s.loaded, p) })
	assert.Empty(t, programs, "BPF programs, maps or links are still loaded")
}

func decode(t *testing.T, text string, into any) {
	t.Helper()
	require.NoError(t, json.Unmarshal([]byte(text), into), text)
}
