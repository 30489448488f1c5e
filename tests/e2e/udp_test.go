// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"context"
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/lab"
)

// resolver is a service with one number for TCP and UDP, like those of name servers. Only UDP is
// answered.
const resolver = `
apiVersion: apps/v1
kind: Deployment
metadata: {name: resolver, namespace: shop, labels: {test: udp}}
spec:
  replicas: 2
  selector: {matchLabels: {app: resolver}}
  template:
    metadata: {labels: {app: resolver}}
    spec:
      automountServiceAccountToken: false
      terminationGracePeriodSeconds: 5
      securityContext: {runAsNonRoot: true, runAsUser: 65532, seccompProfile: {type: RuntimeDefault}}
      containers:
      - name: app
        image: %s
        imagePullPolicy: %s
        args: [datagrams, --name=app, "--listen=:5353"]
        ports: [{name: dns, containerPort: 5353, protocol: UDP}]
        securityContext: {allowPrivilegeEscalation: false, readOnlyRootFilesystem: true, capabilities: {drop: [ALL]}}
---
apiVersion: v1
kind: Service
metadata: {name: resolver, namespace: shop, labels: {test: udp}}
spec:
  selector: {app: resolver}
  ports: [{name: dns, port: 53, protocol: UDP, targetPort: dns}, {name: dns-tcp, port: 53, targetPort: 5354}]
`

func testUDP(t *testing.T, s *scene) {
	image, pull := s.AppsImage()
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		_, _ = s.Kubectl(ctx, "-n", lab.Namespace, "delete", "deployments,services", "-l", "test=udp",
			"--wait=false")
	})
	require.NoError(t, s.Apply(t.Context(), fmt.Sprintf(resolver, image, pull)))
	_, err := s.Kubectl(t.Context(), "-n", lab.Namespace, "rollout", "status", "deployment/resolver",
		"--timeout=60s")
	require.NoError(t, err)
	clients, err := s.Pods(t.Context(), lab.Namespace, "app=client")
	require.NoError(t, err)
	require.NotEmpty(t, clients)
	// answers asks by the service's address, from every node, until the answer is as it should be.
	answers := func(question, want string) {
		t.Helper()
		for _, client := range clients {
			for range 2 { // one or the other pod
				assert.NoError(t, lab.Eventually(t.Context(), 30*time.Second, func(ctx context.Context) error {
					out, err := s.Kubectl(ctx, "-n", lab.Namespace, "exec", client.Name, "--", "/apps",
						"ask", "resolver:53", question, "--timeout=3s")
					if err == nil && strings.TrimSpace(out) != want+": "+question {
						err = fmt.Errorf("%.20q… instead of an answer by %s", out, want)
					}
					return err
				}))
			}
		}
	}
	answers("who?", "app")

	stop, err := s.ann.Serve(t.Context(), "datagrams", "127.0.0.1:5353")
	require.NoError(t, err)
	t.Cleanup(stop)
	_, err = s.ann.Sidestep(t.Context(), "intercept", "resolver", "-n", lab.Namespace, "--port", "5353:53")
	assert.ErrorContains(t, err, "dns/53/UDP, dns-tcp/53")
	out := intercept(t, s.ann, "resolver", "--port", "5353:53/UDP")
	assert.Contains(t, out, "Service Port Identifier: dns/UDP")
	assert.Contains(t, out, "all UDP datagrams")
	assert.NotContains(t, out, "nothing listens")
	answers("who?", "laptop")
	answers(strings.Repeat("long,", 800), "laptop") // more than a packet holds
	assert.Contains(t, sidestep(t, s.ann, "list", "-n", lab.Namespace, "--output", "json"), `"protocol": "UDP"`)
	_, err = s.bob.Sidestep(t.Context(), "intercept", "resolver", "-n", lab.Namespace, "--port", "5353:dns")
	assert.ErrorContains(t, err, "port dns/UDP of Deployment resolver is intercepted by ann@")

	stop()
	answers("and now?", "app")
	sidestep(t, s.ann, "leave", "resolver")
	answers("who?", "app")
}
