// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"archive/zip"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"text/template"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// documented are workloads that the documents name.
const documented = `
{{define "pod"}}
spec:
  replicas: 1
  selector: {matchLabels: {app: {{.}}}}
  template:
    metadata: {labels: {app: {{.}}}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 1
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: IMAGE
        imagePullPolicy: PULL
        args: [serve, --name=app, "--listen=:8080", --linger=0s]
        ports: [{name: web, containerPort: 8080}]
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
{{end}}
apiVersion: v1
kind: Namespace
metadata: {name: myns}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: hello, namespace: myns}
{{template "pod" "hello"}}
apiVersion: v1
kind: Service
metadata: {name: hello, namespace: myns}
spec: {selector: {app: hello}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: apps/v1
kind: ReplicaSet
metadata: {name: echo-rollout-6d5f79c, namespace: shop}
{{template "pod" "echo-rollout"}}
apiVersion: v1
kind: Service
metadata: {name: echo-stable, namespace: shop}
spec: {selector: {app: echo-rollout}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: v1
kind: Service
metadata: {name: echo-canary, namespace: shop}
spec: {selector: {app: echo-rollout}, ports: [{port: 80, targetPort: web}]}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata: {name: documents, namespace: myns}
subjects: [{kind: Group, name: developers, apiGroup: rbac.authorization.k8s.io}]
roleRef: {kind: ClusterRole, name: sidestep-user, apiGroup: rbac.authorization.k8s.io}
`

func (s *scene) documented(t *testing.T) {
	t.Helper()
	image, pull := s.AppsImage()
	var yaml strings.Builder
	require.NoError(t, template.Must(template.New("").Parse(documented)).Execute(&yaml, nil))
	require.NoError(t, s.Apply(t.Context(),
		strings.NewReplacer("IMAGE", image, "PULL", pull).Replace(yaml.String())))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = s.Kubectl(ctx, "delete", "namespace", "myns", "--wait=false", "--ignore-not-found")
		_, _ = s.Kubectl(ctx, "-n", lab.Namespace, "delete", "replicaset/echo-rollout-6d5f79c",
			"service/echo-stable", "service/echo-canary", "--ignore-not-found")
	})
	_, err := s.Kubectl(t.Context(), "-n", "myns", "rollout", "status", "deployment/hello", "--timeout=60s")
	require.NoError(t, err)
	_, err = s.Kubectl(t.Context(), "-n", lab.Namespace, "wait",
		"--for=jsonpath={.status.readyReplicas}=1", "replicaset/echo-rollout-6d5f79c", "--timeout=60s")
	require.NoError(t, err)
}

// testDocuments runs the command lines of Telepresence's documents, by both names of the program,
// and compares the output with golden files.
func testDocuments(t *testing.T, s *scene) {
	s.documented(t)
	names(t, s.ann)
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	// What earlier tests have made may still be on its way out.
	require.NoError(t, lab.Eventually(t.Context(), time.Minute, func(ctx context.Context) error {
		list, err := s.ann.Sidestep(ctx, "list", "-n", lab.Namespace)
		if n := strings.Count(list, "\n"); err == nil && n != 9 {
			err = fmt.Errorf("%d workloads in the shop:\n%s", n, list)
		}
		return err
	}))
	for _, name := range []string{"telepresence", "sidestep"} {
		t.Run(name, func(t *testing.T) {
			tr := &transcript{T: t, who: s.ann, name: name}
			t.Cleanup(func() {
				for _, left := range []string{"orders", "twoports", "hello-myns", "myhello",
					"echo-rollout-6d5f79c"} {
					_, _ = s.ann.Sidestep(context.Background(), "leave", left)
				}
			})
			tr.reference()
			tr.overview()
			tr.kinds()
			golden(t, "documents-"+name, tr.text.String())
		})
	}
	t.Run("in the layout of the documents", func(t *testing.T) { testLayout(t, s) })
}

// reference are the command lines of the reference of 2.1.4.
func (tr *transcript) reference() {
	tr.says("The reference of 2.1.4: a namespace is part of the name, unless the workload is named too")
	tr.types("intercept hello --namespace myns --port 9000")
	tr.types("leave hello-myns")
	tr.types("intercept myhello --namespace myns --workload hello --port 9000")
	tr.types("leave myhello")
	tr.says("All traffic, with or without a word about preview URLs")
	tr.types("intercept orders --port=9000")
	tr.types("leave orders")
	tr.types("intercept orders --port=9000 --preview-url=false")
	tr.types("status")
	tr.types("leave orders")
	tr.says("What is the default after a login")
	tr.types("intercept orders --port=9000 --preview-url=false --mechanism=http --http-match=auto")
	tr.types("status")
	tr.types("leave orders")
	tr.types("intercept orders --port=9000 --http-match=auto")
	tr.types("leave orders")
	tr.types("intercept orders --port=9000 --preview-url=true")
	tr.says("Several ports: by name, moved by number, and not without a word")
	tr.types("intercept twoports --port=9000:http")
	tr.types("intercept twoports --port=9000:81")
	tr.types("leave twoports")
	tr.types("intercept twoports --port=9000")
	tr.says("Several services")
	tr.types("intercept echo-rollout-6d5f79c --port 9000 --service echo-stable")
	tr.types("leave echo-rollout-6d5f79c")
	tr.types("intercept echo-rollout-6d5f79c --port 9000")
}

// overview runs those of the pages of 2.0 and 2.0.3.
func (tr *transcript) overview() {
	tr.says("The pages of 2.0 and 2.0.3")
	tr.types("login")
	tr.types("dashboard")
	tr.types("list")
	tr.types("intercept orders --port 9000")
	tr.types("list --intercepts")
	tr.types("leave orders")
	tr.types("intercept myhello --deployment=orders --port=9000")
	tr.types("leave myhello")
	tr.types("intercept myhello --namespace myns --deployment hello --port 9000")
	tr.types("leave hello-mydns")
	tr.types("leave myhello")
	tr.types("quit")
	tr.types("status")
	tr.types("connect --namespace shop")
}

// kinds runs those of "Types of Intercepts".
func (tr *transcript) kinds() {
	tr.says("Types of intercepts")
	for _, flags := range [][]string{
		{"--http-header=all"},
		{"--http-header=Personal-Intercept=126a72c7-be8b-4329-af64-768e207a184b"},
		{"--http-header=auto"},
		{"--http-path-prefix=/api", "--http-header=Coder=Bob"},
		{"--http-path-equal=/api/version", "--http-header=auto"},
		{"--http-path-equal=/api/version"},
	} {
		tr.types("intercept orders --port 9000 " + strings.Join(flags, " "))
		tr.types("leave orders")
	}
	tr.types("intercept orders --port 9000", "--http-path-regex=/(staging-)?api/.*")
	tr.types("leave orders")
	tr.types("intercept orders --port 9000 --http-path-equal=/a --http-path-prefix=/b")
}

// testLayout compares line by line with what the reference of 2.1.4 shows.
func testLayout(t *testing.T, s *scene) {
	const header = `      header\("x-telepresence-intercept-id"\) ~= regexp\("[0-9a-f-]{36}:orders"\)`
	for _, c := range []struct{ line, leave, shows string }{
		{"intercept orders --port=9000 --preview-url=false --http-match=auto", "orders", `Using Deployment orders
intercepted
    Intercept name: orders
    State         : ACTIVE
    Workload kind : Deployment
    Destination   : 127\.0\.0\.1:9000
    Intercepting  : HTTP requests that match all of:
` + header},
		{"intercept twoports --port=9000:http", "twoports", `Using Deployment twoports
intercepted
    Intercept name         : twoports
    State                  : ACTIVE
    Workload kind          : Deployment
    Destination            : 127\.0\.0\.1:9000
    Service Port Identifier: http
    Intercepting           : all TCP connections`},
	} {
		out := sidestep(t, s.ann, strings.Fields(c.line)...)
		got := strings.Split(out, "\n")
		for i, want := range strings.Split(c.shows, "\n") {
			require.Less(t, i, len(got))
			assert.Regexp(t, "^"+want+"$", got[i], "line %d of %s", i+1, c.line)
		}
		status := sidestep(t, s.ann, "status")
		last := -1
		for _, want := range []string{
			`(?m)^Root Daemon: `, `(?m)^User Daemon: Running$`, `(?m)^  Version           : `,
			`(?m)^  Status            : Connected$`, `(?m)^  Kubernetes server : https://`,
			`(?m)^  Kubernetes context: `, `(?m)^  Sidestep proxy    : OFF `,
			`(?m)^  Intercepts        : 1 total$`, `(?m)^    ` + c.leave + `: ann@\S+$`,
		} {
			at := regexp.MustCompile(want).FindStringIndex(status)
			if assert.NotNil(t, at, "%s in\n%s", want, status) {
				assert.Greater(t, at[0], last, "the order of lines: %s", want)
				last = at[0]
			}
		}
		sidestep(t, s.ann, "leave", c.leave)
	}
}

func testRunning(t *testing.T, s *scene) {
	lines := func(args ...string) *exec.Cmd {
		return s.ann.Command(t.Context(),
			append([]string{"sidestep", "intercept", "orders", "-n", lab.Namespace, "--workload",
				"orders", "--port", "9000", "--"}, args...)...)
	}
	none := func(ctx context.Context) error {
		left, err := s.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "--no-headers",
			"--ignore-not-found")
		if err == nil && strings.TrimSpace(left) != "" {
			err = assert.AnError
		}
		return err
	}
	t.Run("the command knows its intercept, its exit code counts, and the intercept ends with it",
		func(t *testing.T) {
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
	decode(t, intercept(t, s.ann, "orders", "--port", "9000", "--http-header", "auto", "--output",
		"json"), &made)
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
	assert.Contains(t, sidestep(t, s.ann, "__complete", "intercept", "twoports", "-n", lab.Namespace,
		"--port", "9000:"), "9000:admin\n9000:http\n")
	assert.Contains(t, sidestep(t, s.admin, "list", "-n", "sidestep"),
		"not interceptable: it is a part of sidestep itself")
}
