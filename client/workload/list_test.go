// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

func TestPodsOnTheNodesNetworkAreAnObstacleWhereTheyAreNotAllowed(t *testing.T) {
	template := &corev1.PodTemplateSpec{Spec: corev1.PodSpec{
		HostNetwork: true, Containers: []corev1.Container{{Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}},
	}}
	assert.Equal(t, "its pods use the network of their node",
		obstacle(template, nil, func() bool { return false }))
	assert.Empty(t, obstacle(template, nil, func() bool { return true }))
}

func TestWhetherTheNodesNetworkIsAllowedIsInTheInstallationsConfigMap(t *testing.T) {
	for name, c := range map[string]struct {
		config, ca string // host-network in sidestep-config and sidestep-ca; "-": there is no such object
		want       bool
	}{
		"allowed":                       {config: "allowed", ca: "allowed", want: true},
		"no longer allowed":             {config: "refused", ca: "allowed"},
		"the version before allows it":  {config: "-", ca: "allowed", want: true},
		"the version before refuses it": {config: "-"},
		"an object without an answer":   {ca: "allowed", want: true},
		"nobody to answer":              {config: "-", ca: "-"},
	} {
		t.Run(name, func(t *testing.T) {
			api := fake.NewClientBuilder().WithScheme(scheme.Scheme).Build()
			for object, answer := range map[string]string{"sidestep-config": c.config, "sidestep-ca": c.ca} {
				if answer == "-" {
					continue
				}
				config := &corev1.ConfigMap{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: object}}
				if answer != "" {
					config.Data = map[string]string{"host-network": answer}
				}
				require.NoError(t, api.Create(t.Context(), config))
			}
			assert.Equal(t, c.want, hostNetworkAllowed(t.Context(), api, "sidestep"))
		})
	}
}
