// SPDX-License-Identifier: Apache-2.0

package rollout_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"

	"sidestep.dev/sidestep/internal/rollout"
)

func read(spec map[string]any) *rollout.Rollout {
	return rollout.From(&unstructured.Unstructured{Object: map[string]any{
		"metadata": map[string]any{"namespace": "shop", "name": "echo", "uid": "u",
			"resourceVersion": "7", "generation": int64(3)}, "spec": spec,
	}})
}

func TestARolloutWithATemplate(t *testing.T) {
	r := read(map[string]any{"template": map[string]any{
		"metadata": map[string]any{"labels": map[string]any{"app": "echo"}},
		"spec": map[string]any{"containers": []any{map[string]any{"name": "app",
			"ports": []any{map[string]any{"name": "web", "containerPort": int64(8080)}}}}},
	}})
	require.NotNil(t, r.Template)
	assert.Equal(t, corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "echo"}},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "app",
			Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: 8080}}}}},
	}, *r.Template)
	assert.Equal(t, metav1.ObjectMeta{Namespace: "shop", Name: "echo", UID: "u", ResourceVersion: "7",
		Generation: 3}, r.ObjectMeta)
}

func TestARolloutThatRefersToAnotherWorkload(t *testing.T) {
	r := read(map[string]any{"workloadRef": map[string]any{"apiVersion": "apps/v1",
		"kind": "Deployment", "name": "orders"}})
	assert.Nil(t, r.Template)
	assert.Equal(t, "Deployment orders", r.FromKind+" "+r.FromName)
	assert.Empty(t, r.Broken)
}

func TestARolloutThatMakesNoSense(t *testing.T) {
	for _, spec := range []map[string]any{
		{"template": "nonsense"},
		{"template": map[string]any{"spec": map[string]any{"containers": "none"}}},
		{"template": map[string]any{"spec": int64(1)}},
	} {
		r := read(spec)
		assert.Nil(t, r.Template)
		assert.Contains(t, r.Broken, "its pod template cannot be read: ", spec)
	}
	for _, spec := range []map[string]any{nil, {}, {"workloadRef": "nonsense"}} {
		r := read(spec)
		assert.Nil(t, r.Template)
		assert.Empty(t, r.FromName+r.Broken)
	}
}
