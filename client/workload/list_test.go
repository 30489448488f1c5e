// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
)

func TestPodsOnTheNodesNetworkAreAnObstacleWhereTheyAreNotAllowed(t *testing.T) {
	template := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		HostNetwork: true, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}},
	}}
	assert.Equal(t, "its pods use the network of their node",
		obstacle(template, nil, func() bool { return false }))
	assert.Empty(t, obstacle(template, nil, func() bool { return true }))
}
