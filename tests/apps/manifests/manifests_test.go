// SPDX-License-Identifier: Apache-2.0

package manifests

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/kubernetes/scheme"
	"sigs.k8s.io/yaml"
)

// render decodes strictly: a field that Kubernetes does not know is an error.
func render(t *testing.T, options Options) map[string]runtime.Object {
	t.Helper()
	text, err := Render(options)
	require.NoError(t, err)
	objects := map[string]runtime.Object{}
	for document := range strings.SplitSeq(strings.TrimPrefix(text, "---\n"), "\n---\n") {
		var meta unstructured.Unstructured
		require.NoError(t, yaml.Unmarshal([]byte(document), &meta.Object), document)
		object, err := scheme.Scheme.New(meta.GroupVersionKind())
		require.NoError(t, err)
		require.NoError(t, yaml.UnmarshalStrict([]byte(document), object), document)
		objects[meta.GetKind()+"/"+meta.GetName()] = object
	}
	return objects
}

// pods returns the pod templates by "Kind/name" and checks that the selectors select them.
func pods(t *testing.T, objects map[string]runtime.Object) map[string]corev1.PodTemplateSpec {
	t.Helper()
	templates := map[string]corev1.PodTemplateSpec{}
	for key, object := range objects {
		switch workload := object.(type) {
		case *appsv1.Deployment:
			templates[key] = workload.Spec.Template
		case *appsv1.StatefulSet:
			templates[key] = workload.Spec.Template
		case *appsv1.ReplicaSet:
			templates[key] = workload.Spec.Template
		case *appsv1.DaemonSet:
			templates[key] = workload.Spec.Template
		}
	}
	return templates
}

func TestEveryKindOfWorkloadIsThere(t *testing.T) {
	objects := render(t, Options{Image: "apps:v1"})
	for _, key := range []string{
		"Namespace/shop", "Deployment/frontend", "Deployment/orders", "StatefulSet/stock", "ReplicaSet/legacy",
		"Deployment/twoports", "Deployment/echo", "Deployment/greeter", "DaemonSet/client",
	} {
		assert.Contains(t, objects, key)
	}
	assert.EqualValues(t, 2, *objects["Deployment/orders"].(*appsv1.Deployment).Spec.Replicas)
	assert.EqualValues(t, 2, *objects["StatefulSet/stock"].(*appsv1.StatefulSet).Spec.Replicas)
}

func TestEveryPodMeetsTheRestrictedLevel(t *testing.T) {
	templates := pods(t, render(t, Options{Image: "apps:v1"}))
	require.Len(t, templates, 8)
	for key, pod := range templates {
		assert.True(t, *pod.Spec.SecurityContext.RunAsNonRoot, key)
		assert.Equal(t, corev1.SeccompProfileTypeRuntimeDefault,
			pod.Spec.SecurityContext.SeccompProfile.Type, key)
		assert.False(t, pod.Spec.HostNetwork || pod.Spec.HostPID || pod.Spec.HostIPC, key)
		assert.Empty(t, pod.Spec.Volumes, key)
		for _, container := range pod.Spec.Containers {
			assert.False(t, *container.SecurityContext.AllowPrivilegeEscalation, key)
			assert.Equal(t, []corev1.Capability{"ALL"}, container.SecurityContext.Capabilities.Drop, key)
			assert.Empty(t, container.SecurityContext.Capabilities.Add, key)
			assert.Equal(t, "apps:v1", container.Image, key)
			assert.Equal(t, corev1.PullNever, container.ImagePullPolicy, key)
		}
	}
}

func TestEveryServicePortLeadsToAContainerPort(t *testing.T) {
	objects := render(t, Options{Image: "apps:v1"})
	byApp := map[string]corev1.PodTemplateSpec{}
	for _, pod := range pods(t, objects) {
		byApp[pod.Labels["app"]] = pod
	}
	services := 0
	for key, object := range objects {
		service, ok := object.(*corev1.Service)
		if !ok {
			continue
		}
		services++
		pod, selected := byApp[service.Spec.Selector["app"]]
		require.True(t, selected, key)
		for _, port := range service.Spec.Ports {
			found := false
			for _, candidate := range pod.Spec.Containers[0].Ports {
				found = found || port.TargetPort == intstr.FromString(candidate.Name) ||
					port.TargetPort == intstr.FromInt32(candidate.ContainerPort)
			}
			assert.True(t, found, "%s port %d", key, port.Port)
		}
	}
	assert.Equal(t, 7, services)
}

func TestOptionsAreFilledIn(t *testing.T) {
	objects := render(t, Options{Image: "registry.example/apps:v2", PullPolicy: "Always",
		Namespace: "store", KeepAlive: true})
	require.Contains(t, objects, "Namespace/store")
	orders := objects["Deployment/orders"].(*appsv1.Deployment)
	assert.Equal(t, "store", orders.Namespace)
	container := orders.Spec.Template.Spec.Containers[0]
	assert.Equal(t, corev1.PullAlways, container.ImagePullPolicy)
	assert.Contains(t, container.Env, corev1.EnvVar{Name: "UPSTREAM_KEEP_ALIVE", Value: "true"})

	_, err := Render(Options{})
	assert.ErrorContains(t, err, "no image")
}
