// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"text/template"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// kinds are workloads that the shop lacks: a DaemonSet, a Pod without owner and service, and what
// Argo Rollouts makes of a Rollout, with the services of its stable and its canary pods.
var kinds = template.Must(template.New("").Parse(`
{{define "pod"}}
    metadata:
      labels: {app: {{.}}}
{{- end}}
{{define "spec"}}
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 5
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: {{.Image}}
        imagePullPolicy: {{.PullPolicy}}
        args: [serve, --name=app, "--listen=:8080", --linger=1s]
        ports: [{name: web, containerPort: 8080}]
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end}}
{{define "specOfJob"}}
          automountServiceAccountToken: false
          securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
          containers:
          - name: app
            image: {{.Image}}
            imagePullPolicy: {{.PullPolicy}}
            args: [serve, --name=app, "--listen=:8080", --linger=1s]
            ports: [{name: web, containerPort: 8080}]
            securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
{{- end}}
{{define "service"}}
---
apiVersion: v1
kind: Service
metadata: {name: {{.Name}}, namespace: shop, labels: {test: kinds}}
spec: {selector: {app: {{.App}}}, ports: [{port: 80, targetPort: web}]}
{{- end}}
{{define "plain"}}
apiVersion: apps/v1
kind: DaemonSet
metadata: {name: logger, namespace: shop, labels: {test: kinds}}
spec:
  selector: {matchLabels: {app: logger}}
  template:
    {{template "pod" "logger"}}
    spec: {{template "spec" .}}
---
apiVersion: v1
kind: Pod
metadata: {name: alone, namespace: shop, labels: {test: kinds, app: alone}}
spec: {{template "spec" .}}
{{template "service" .Logger}}
---
apiVersion: batch/v1
kind: CronJob
metadata: {name: report, namespace: shop, labels: {test: kinds}}
spec:
  schedule: 0 0 1 1 *
  suspend: true
  jobTemplate:
    metadata: {labels: {test: kinds}}
    spec:
      template:
        metadata: {labels: {app: report}}
        spec:
          restartPolicy: Never
{{template "specOfJob" .}}
{{end}}
{{define "definition"}}
apiVersion: apiextensions.k8s.io/v1
kind: CustomResourceDefinition
metadata: {name: rollouts.argoproj.io, labels: {test: kinds}}
spec:
  group: argoproj.io
  scope: Namespaced
  names: {kind: Rollout, listKind: RolloutList, plural: rollouts, singular: rollout, shortNames: [ro]}
  versions:
  - name: v1alpha1
    served: true
    storage: true
    subresources: {status: {}}
    schema: {openAPIV3Schema: {type: object, x-kubernetes-preserve-unknown-fields: true}}
{{end}}
{{define "rollout"}}
apiVersion: argoproj.io/v1alpha1
kind: Rollout
metadata: {name: echo-rollout, namespace: shop, labels: {test: kinds}}
spec:
  replicas: 1
  strategy: {canary: {stableService: echo-stable, canaryService: echo-canary}}
  selector: {matchLabels: {app: echo-rollout}}
  template:
    {{template "pod" "echo-rollout"}}
    spec: {{template "spec" .}}
{{template "service" .Stable}}
{{template "service" .Canary}}
{{end}}
{{define "revision"}}
apiVersion: apps/v1
kind: ReplicaSet
metadata:
  name: echo-rollout-6d5f79c
  namespace: shop
  labels: {test: kinds}
  ownerReferences: [{apiVersion: argoproj.io/v1alpha1, kind: Rollout, name: echo-rollout, uid: {{.Owner}}, controller: true, blockOwnerDeletion: true}]
spec:
  replicas: 1
  selector: {matchLabels: {app: echo-rollout, rollouts-pod-template-hash: 6d5f79c}}
  template:
    metadata: {labels: {app: echo-rollout, rollouts-pod-template-hash: 6d5f79c}}
    spec: {{template "spec" .}}
{{end}}
`))

// workloads fills the templates in.
type workloads struct {
	*scene
	Image, PullPolicy      string
	Owner                  string
	Logger, Stable, Canary struct{ Name, App string }
}

func (w *workloads) apply(t *testing.T, name string) {
	t.Helper()
	var yaml strings.Builder
	require.NoError(t, kinds.ExecuteTemplate(&yaml, name, w))
	// A definition that is new takes a moment until the API server serves it.
	require.NoError(t, lab.Eventually(t.Context(), 20*time.Second,
		func(ctx context.Context) error { return w.Apply(ctx, yaml.String()) }))
}

// remove takes away what the test has made, at its end.
func (w *workloads) remove(resources string) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	_, _ = w.Kubectl(ctx, "-n", lab.Namespace, "delete", resources, "-l", "test=kinds", "--ignore-not-found")
}

// answers waits until requests that match are answered by one service and others by another.
func (w *workloads) answers(t *testing.T, url, matching, other string) {
	t.Helper()
	assert.NoError(t, lab.Eventually(t.Context(), 20*time.Second, func(ctx context.Context) error {
		for header, want := range map[string]string{"x-user: ann": matching, "x-user: bob": other} {
			answer, err := w.Call(ctx, url, header)
			if err != nil {
				return err
			}
			if answer.Service != want {
				return fmt.Errorf("%s with %s was answered by %s, not %s", url, header, answer.Service, want)
			}
		}
		return nil
	}))
}

// state waits until the only intercept says so.
func (w *workloads) state(t *testing.T, want string) {
	t.Helper()
	assert.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
		have, err := w.Kubectl(ctx, "-n", lab.Namespace, "get", "intercepts", "-o",
			"jsonpath={.items[*].status.state} {.items[*].status.coverage}")
		if err == nil && have != want {
			err = fmt.Errorf("the intercept is %s, not %s", have, want)
		}
		return err
	}))
}

func testEveryKind(t *testing.T, s *scene) {
	w := &workloads{scene: s}
	w.Image, w.PullPolicy = s.AppsImage()
	w.Logger.Name, w.Logger.App = "logger", "logger"
	w.Stable.Name, w.Stable.App = "echo-stable", "echo-rollout"
	w.Canary.Name, w.Canary.App = "echo-canary", "echo-rollout"
	t.Cleanup(func() { w.remove("daemonsets,pods,services,cronjobs,jobs") })
	w.apply(t, "plain")
	serve(t, s.ann, "serve", "127.0.0.1:9000")
	t.Run("DaemonSet", func(t *testing.T) {
		_, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "rollout", "status", "daemonset/logger",
			"--timeout=60s")
		require.NoError(t, err)
		assert.Contains(t, intercept(t, s.ann, "logger", "--port", "9000", "--http-header",
			"x-user=ann"), "Using DaemonSet logger")
		w.answers(t, "http://logger", "laptop", "app")
	})
	t.Run("Pod", func(t *testing.T) {
		_, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "wait", "--for=condition=Ready",
			"pod/alone", "--timeout=60s")
		require.NoError(t, err)
		assert.Contains(t, intercept(t, s.ann, "alone", "--port", "9000", "--http-header",
			"x-user=ann"), "Using Pod alone")
		pods, err := s.Pods(t.Context(), lab.Namespace, "app=alone")
		require.NoError(t, err)
		require.Len(t, pods, 1)
		w.answers(t, "http://"+pods[0].IP+":8080", "laptop", "app")
		pods, err = s.Pods(t.Context(), lab.Namespace, "app=orders")
		require.NoError(t, err)
		_, err = s.ann.Sidestep(t.Context(), "intercept", pods[0].Name, "-n", lab.Namespace, "--port", "9001")
		assert.ErrorContains(t, err, "belongs to Deployment orders — run `sidestep intercept orders`")
	})
	t.Run("CronJob and Job", func(t *testing.T) { testBatch(t, w) })
	t.Run("Rollout", func(t *testing.T) { testRollout(t, w) })
}

func testBatch(t *testing.T, w *workloads) {
	_, err := w.Kubectl(t.Context(), "-n", lab.Namespace, "create", "job", "report-1", "--from=cronjob/report")
	require.NoError(t, err)
	require.NoError(t, lab.Eventually(t.Context(), time.Minute, func(ctx context.Context) error {
		_, err := w.Kubectl(ctx, "-n", lab.Namespace, "wait", "--for=condition=Ready", "pod", "-l", "app=report", "--timeout=5s")
		return err
	}))
	pods, err := w.Pods(t.Context(), lab.Namespace, "app=report")
	require.NoError(t, err)
	require.Len(t, pods, 1)
	for kind, name := range map[string]string{"Job": "report-1", "CronJob": "report"} {
		t.Run(kind, func(t *testing.T) {
			assert.Contains(t, intercept(t, w.ann, name, "--port", "9000", "--http-header", "x-user=ann"),
				"Using "+kind+" "+name)
			w.answers(t, "http://"+pods[0].IP+":8080", "laptop", "app")
		})
	}
}

func testRollout(t *testing.T, w *workloads) {
	if _, err := w.Kubectl(t.Context(), "get", "crd", "rollouts.argoproj.io"); err == nil {
		t.Skip("this cluster has Argo Rollouts, which would make something else of the test's Rollout")
	}
	_, err := w.ann.Sidestep(t.Context(), "intercept", "rollout/echo-rollout", "-n", lab.Namespace,
		"--port", "9000")
	assert.ErrorContains(t, err, `Rollout "echo-rollout" not found`)
	t.Cleanup(func() { w.remove("replicasets,services"); w.remove("crd") })
	w.apply(t, "definition")
	w.apply(t, "rollout")
	w.Owner, err = w.Kubectl(t.Context(), "-n", lab.Namespace, "get", "rollouts.argoproj.io",
		"echo-rollout", "-o", "jsonpath={.metadata.uid}")
	require.NoError(t, err)
	w.apply(t, "revision")
	_, err = w.Kubectl(t.Context(), "-n", lab.Namespace, "wait",
		"--for=jsonpath={.status.readyReplicas}=1", "replicaset/echo-rollout-6d5f79c", "--timeout=60s")
	require.NoError(t, err)
	const revision = "echo-rollout-6d5f79c"

	list := sidestep(t, w.ann, "list", "-n", lab.Namespace)
	for _, name := range []string{"alone", "logger", "echo-rollout", revision} {
		assert.Regexp(t, `(?m)^`+name+` *: ready to intercept$`, list)
	}
	for _, name := range []string{revision, "echo-rollout"} {
		_, err = w.ann.Sidestep(t.Context(), "intercept", name, "-n", lab.Namespace, "--port", "9000")
		assert.ErrorContains(t, err, "echo-canary, echo-stable — use --service to choose one")
	}
	out := intercept(t, w.ann, revision, "--port", "9000", "--service", "echo-stable", "--http-header",
		"x-user=ann")
	assert.Contains(t, out, "Using ReplicaSet "+revision)
	w.answers(t, "http://echo-stable", "laptop", "app")
	sidestep(t, w.ann, "leave", revision)

	out = intercept(t, w.ann, "echo-rollout", "--port", "9000", "--service", "echo-canary",
		"--http-header", "x-user=ann")
	assert.Contains(t, out, "Using Rollout echo-rollout")
	w.answers(t, "http://echo-canary", "laptop", "app")
	for _, scale := range []struct{ replicas, state string }{{"0", "NO_PODS 0/0"}, {"3", "ACTIVE 3/3"},
		{"1", "ACTIVE 1/1"}} {
		_, err = w.Kubectl(t.Context(), "-n", lab.Namespace, "scale", "replicaset/"+revision,
			"--replicas="+scale.replicas)
		require.NoError(t, err)
		w.state(t, scale.state)
	}
	w.answers(t, "http://echo-canary", "laptop", "app")
}
