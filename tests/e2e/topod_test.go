// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/apps/shop"
	"sidestep.dev/sidestep/tests/lab"
)

// helped is a Deployment whose pods have a helper that only they themselves can reach.
const helped = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: helped, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: helped}}
  template:
    metadata:
      labels: {app: helped}
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
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        securityContext: &security {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
      - name: helper
        image: IMAGE
        imagePullPolicy: PULL
        args: [serve, --name=helper, "--listen=127.0.0.1:8081", --linger=0s]
        env: [{name: POD_NAME, valueFrom: {fieldRef: {fieldPath: metadata.name}}}]
        securityContext: *security
`

// testToPod reaches ports of a pod from the laptop: what listens on the pod's loopback address
// alone, and what listens on all.
func testToPod(t *testing.T, s *scene) {
	image, pull := s.AppsImage()
	require.NoError(t, s.Apply(t.Context(), strings.NewReplacer("IMAGE", image, "PULL", pull).Replace(helped)))
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = s.Kubectl(ctx, "-n", lab.Namespace, "delete", "deployment", "helped", "--ignore-not-found")
	})
	_, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "rollout", "status", "deployment/helped",
		"--timeout=60s")
	require.NoError(t, err)
	pod := func() string {
		t.Helper()
		pods, err := s.Pods(t.Context(), lab.Namespace, "app=helped")
		require.NoError(t, err)
		require.Len(t, pods, 1)
		return pods[0].Name
	}
	curl := func(ctx context.Context, port int) (answer shop.Answer, err error) {
		text, err := lab.Output(s.ann.Command(ctx, "curl", "-sS", "--fail", "--max-time", "5",
			fmt.Sprintf("http://localhost:%d/", port)))
		if err == nil {
			err = json.Unmarshal([]byte(text), &answer)
		}
		return answer, err
	}
	out := intercept(t, s.ann, "helped", "--port", "9000", "--to-pod", "8081,8080")
	assert.Regexp(t, `(?m)^    Ports of the pod: localhost:8080, localhost:8081$`, out)
	first := pod()
	for port, service := range map[int]string{8081: "helper", 8080: "app"} {
		answer, err := curl(t.Context(), port)
		require.NoError(t, err)
		assert.Equal(t, service, answer.Service)
		assert.Equal(t, first, answer.Pod)
	}
	_, err = s.bob.Sidestep(t.Context(), "intercept", "stock", "-n", lab.Namespace, "--port", "9000",
		"--to-pod", "8081")
	assert.ErrorContains(t, err,
		"--to-pod needs port 8081 of this laptop, and cannot have it: it is in use — ",
		"both developers are on one laptop")

	_, err = s.Kubectl(t.Context(), "-n", lab.Namespace, "delete", "pod", first, "--wait=false")
	require.NoError(t, err)
	require.NoError(t, lab.Eventually(t.Context(), time.Minute, func(ctx context.Context) error {
		answer, err := curl(ctx, 8081)
		if err == nil && answer.Pod == first {
			err = fmt.Errorf("still %s", first)
		}
		return err
	}))
	answer, err := curl(t.Context(), 8081)
	require.NoError(t, err)
	assert.Equal(t, pod(), answer.Pod, "the pod that has come instead")

	sidestep(t, s.ann, "leave", "helped")
	_, err = curl(t.Context(), 8081)
	assert.ErrorContains(t, err, "curl: (7)", "nobody listens any more")

	text := sidestep(t, s.ann, "intercept", "helped", "--workload", "helped", "-n", lab.Namespace,
		"--port", "9000", "--to-pod", "8081", "--",
		"curl", "-sS", "--fail", "--max-time", "5", "http://localhost:8081/")
	assert.Contains(t, text, `"helper"`, "for the length of a command")
}
