// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/internal/names"
)

func TestChartAndProgramsUseTheSameNames(t *testing.T) {
	rendered := mustRender(t, values{"nodeagent": values{"allowHostNetwork": true}})
	manager := get[*appsv1.Deployment](t, rendered, "Deployment/"+names.Manager)
	agents := get[*appsv1.DaemonSet](t, rendered, "DaemonSet/"+names.NodeAgent)
	for component, pod := range map[string]corev1.PodTemplateSpec{
		names.ComponentManager: manager.Spec.Template, names.ComponentNodeAgent: agents.Spec.Template} {
		assert.Equal(t, names.Sidestep, pod.Labels[names.LabelName], component)
		assert.Equal(t, component, pod.Labels[names.LabelComponent])
	}
	ports := map[string]int32{}
	for _, p := range manager.Spec.Template.Spec.Containers[0].Ports {
		ports[p.Name] = p.ContainerPort
	}
	assert.Equal(t, map[string]int32{"grpc": names.GRPCPort, "http": names.HTTPPort,
		names.Connect: names.ConnectPort}, ports)
	assert.EqualValues(t, names.HTTPPort, agents.Spec.Template.Spec.Containers[0].Ports[0].ContainerPort)
	assert.Contains(t, manager.Spec.Template.Spec.Containers[0].Args,
		"--agent-service-account="+agents.Spec.Template.Spec.ServiceAccountName)
	assert.Contains(t, agents.Spec.Template.Spec.Containers[0].Args,
		fmt.Sprintf("--manager=%s.%s.svc:%d", names.Manager, names.Sidestep, names.GRPCPort))

	ca := get[*corev1.ConfigMap](t, rendered, "ConfigMap/"+names.CA)
	assert.Contains(t, ca.Data, names.CACert)
	assert.Equal(t, names.Allowed, ca.Data[names.HostNetwork])
	config := get[*corev1.ConfigMap](t, rendered, "ConfigMap/"+names.Config)
	assert.Equal(t, names.Allowed, config.Data[names.HostNetwork])
	for _, object := range []string{"Service/" + names.Manager, "ServiceAccount/" + names.Manager,
		"ServiceAccount/" + names.NodeAgent, "Role/" + names.User} {
		assert.Contains(t, rendered, object)
	}
	for _, role := range []string{names.User, names.Environment, names.ToPod, names.Wiretap, names.WholePort} {
		assert.Contains(t, rendered, "ClusterRole/"+role)
	}
	assert.Contains(t, rendered, "ValidatingAdmissionPolicy/"+names.Environment)
}
