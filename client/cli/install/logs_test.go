// SPDX-License-Identifier: Apache-2.0

package install

import (
	"errors"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	kubernetesfake "k8s.io/client-go/kubernetes/fake"
	clienttesting "k8s.io/client-go/testing"
)

func pod(component, name string, restarts int32) *corev1.Pod {
	return &corev1.Pod{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "sidestep", Name: name,
			Labels: map[string]string{"app.kubernetes.io/name": "sidestep",
				"app.kubernetes.io/component": component},
			ManagedFields: []metav1.ManagedFieldsEntry{{Manager: "helm"}},
		},
		Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: component}}},
		Status: corev1.PodStatus{ContainerStatuses: []corev1.ContainerStatus{{Name: component,
			RestartCount: restarts}}},
	}
}

func TestLogs(t *testing.T) {
	gather := func(c *Cluster, o LogOptions) (files map[string]string, problems []string, err error) {
		files = map[string]string{}
		o.Progress = func(string) {}
		o.Write = func(name string, content io.Reader) {
			text, _ := io.ReadAll(content)
			files[name] = string(text)
		}
		o.Problem = func(doing string, err error) { problems = append(problems, doing+": "+err.Error()) }
		err = c.Logs(t.Context(), o)
		return files, problems, err
	}
	all := func(string, string) bool { return true }
	newCluster := func() (*Cluster, *kubernetesfake.Clientset) {
		kube := kubernetesfake.NewClientset(pod("manager", "sidestep-manager-1", 0),
			pod("nodeagent", "sidestep-nodeagent-1", 2),
			&corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: "other"}})
		return &Cluster{namespace: "sidestep", kube: kube}, kube
	}
	t.Run("of every container, and of the one before a restart", func(t *testing.T) {
		c, _ := newCluster()
		files, problems, err := gather(c, LogOptions{Wanted: all, PodYAML: true})
		require.NoError(t, err)
		assert.Empty(t, problems)
		assert.Len(t, files, 5)
		for _, name := range []string{
			"cluster/sidestep-manager-1.manager.log", "cluster/sidestep-nodeagent-1.nodeagent.log",
			"cluster/sidestep-nodeagent-1.nodeagent.previous.log",
		} {
			assert.Equal(t, "fake logs", files[name], name)
		}
		assert.Contains(t, files["cluster/sidestep-manager-1.yaml"], "app.kubernetes.io/component: manager")
		assert.NotContains(t, files["cluster/sidestep-manager-1.yaml"], "managedFields")
	})
	t.Run("of those that are wanted", func(t *testing.T) {
		c, _ := newCluster()
		files, _, err := gather(c,
			LogOptions{Wanted: func(component, _ string) bool { return component == "manager" }})
		require.NoError(t, err)
		assert.Len(t, files, 1)
	})
	t.Run("a missing right is told", func(t *testing.T) {
		c, kube := newCluster()
		kube.PrependReactor("list", "pods", func(clienttesting.Action) (bool, runtime.Object, error) {
			return true, nil, apierrors.NewForbidden(corev1.Resource("pods"), "", errors.New("no"))
		})
		_, _, err := gather(c, LogOptions{Wanted: all})
		assert.ErrorContains(t, err, "list the pods in namespace sidestep")
	})
	t.Run("that there is nothing is told", func(t *testing.T) {
		_, problems, err := gather(&Cluster{namespace: "sidestep", kube: kubernetesfake.NewClientset()},
			LogOptions{Wanted: all})
		require.NoError(t, err)
		assert.Equal(t, []string{"get logs from the cluster: no such pod in namespace sidestep"}, problems)
	})
}

func TestWorkloadParts(t *testing.T) {
	template := corev1.PodTemplateSpec{
		ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": "echo"}},
		Spec:       corev1.PodSpec{Containers: []corev1.Container{{Name: "app"}, {Name: "proxy"}}},
	}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "shop", Name: name} }
	service := func(name, app string, ports ...corev1.ServicePort) *corev1.Service {
		return &corev1.Service{ObjectMeta: meta(name),
			Spec: corev1.ServiceSpec{Selector: map[string]string{"app": app}, Ports: ports}}
	}
	for kind, workload := range map[string]runtime.Object{
		"Deployment": &appsv1.Deployment{ObjectMeta: meta("echo"),
			Spec: appsv1.DeploymentSpec{Template: template}},
		"StatefulSet": &appsv1.StatefulSet{ObjectMeta: meta("echo"),
			Spec: appsv1.StatefulSetSpec{Template: template}},
		"ReplicaSet": &appsv1.ReplicaSet{ObjectMeta: meta("echo"),
			Spec: appsv1.ReplicaSetSpec{Template: template}},
		"DaemonSet": &appsv1.DaemonSet{ObjectMeta: meta("echo"),
			Spec: appsv1.DaemonSetSpec{Template: template}},
		"Pod": &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "echo",
			Labels: template.Labels}, Spec: template.Spec},
	} {
		t.Run("of a "+kind, func(t *testing.T) {
			c := &Cluster{dynamic: newFixture(t).dynamic, kube: kubernetesfake.NewClientset(workload,
				service("echo-canary", "echo", corev1.ServicePort{Name: "http", Port: 80},
					corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP}),
				service("echo-stable", "echo", corev1.ServicePort{Port: 8081}),
				service("other", "other", corev1.ServicePort{Port: 1}))}
			parts, err := c.WorkloadParts(t.Context(), "shop", "echo")
			require.NoError(t, err)
			assert.Equal(t, Parts{
				Services: []string{"echo-canary", "echo-stable"}, Containers: []string{"app", "proxy"},
				Ports: map[string][]string{"echo-canary": {"http", "dns/UDP"}, "echo-stable": {"8081"}},
			}, parts)
			_, err = c.WorkloadParts(t.Context(), "shop", "ech")
			assert.True(t, apierrors.IsNotFound(err))
		})
	}
}
