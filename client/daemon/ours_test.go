// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"

	"sidestep.dev/sidestep/api/daemonpb"
)

func TestSidestepItselfCannotBeIntercepted(t *testing.T) {
	w := connected(t)
	objects := deployment("shop", "sidestep-manager")
	labels := map[string]string{"app.kubernetes.io/name": "sidestep", "app.kubernetes.io/component": "manager"}
	manager := objects[0].(*appsv1.Deployment)
	manager.Labels, manager.Spec.Template.Labels = labels, labels
	w.api.Add(t, objects...)
	reply, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{})
	require.NoError(t, err)
	obstacles := map[string]string{}
	for _, l := range reply.GetWorkloads() {
		obstacles[l.GetName()] = l.GetNotInterceptable()
	}
	assert.Equal(t, map[string]string{"orders": "", "stock": "",
		"sidestep-manager": "it is a part of sidestep itself"}, obstacles)
	_, _, err = w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "sidestep-manager", LocalPort: 9000})
	assert.ErrorContains(t, err,
		"Deployment sidestep-manager cannot be intercepted: it is a part of sidestep itself — choose another workload")
	assert.Empty(t, w.api.Intercepts())
}
