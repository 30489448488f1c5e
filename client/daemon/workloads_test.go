// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/rollout"
)

func TestWorkloadsOfEveryKindAreFound(t *testing.T) {
	w := connected(t)
	yes := true
	meta := func(name, owner string) metav1.ObjectMeta {
		m := metav1.ObjectMeta{Namespace: "shop", Name: name}
		if owner != "" {
			m.OwnerReferences = []metav1.OwnerReference{{Kind: owner, Name: "x", APIVersion: "v1",
				UID: "u", Controller: &yes}}
		}
		return m
	}
	argo := func(name, from string) client.Object {
		r := rollout.Object()
		r.SetNamespace("shop")
		r.SetName(name)
		require.NoError(t, unstructured.SetNestedStringMap(r.Object,
			map[string]string{"kind": "Deployment", "name": from}, "spec", "workloadRef"))
		return r
	}
	w.api.Add(t, &appsv1.DaemonSet{ObjectMeta: meta("log", "")},
		&appsv1.StatefulSet{ObjectMeta: meta("db", "")},
		&appsv1.ReplicaSet{ObjectMeta: meta("echo-1", "Rollout")},
		&corev1.Pod{ObjectMeta: meta("alone", "")},
		&corev1.Pod{ObjectMeta: meta("clone-a", "CloneSet")}, &corev1.Pod{ObjectMeta: meta("orders", "")},
		&appsv1.Deployment{ObjectMeta: meta("echo", "")},
		&batchv1.Job{ObjectMeta: meta("import", "")}, &batchv1.CronJob{ObjectMeta: meta("report", "")},
		&batchv1.Job{ObjectMeta: meta("orders", "")}, &corev1.Pod{ObjectMeta: meta("import-a", "Job")})
	kindOf := func(name, kind string) string {
		w.mustIntercept(&daemonpb.InterceptRequest{Name: name, WorkloadKind: kind})
		found := w.object().Spec.Workload.Kind
		_, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: name})
		require.NoError(t, err)
		return found
	}
	assert.Equal(t, "Deployment", kindOf("echo", ""))
	w.api.Add(t, argo("echo", "echo"), argo("web", "elsewhere"))
	w.api.Deny(func(c clienttest.Call) bool { return c.Resource == "daemonsets" && c.Name != "log" })
	for _, c := range []struct{ name, kind, want string }{
		{"orders", "", "Deployment"}, // and not the pod of that name
		{"orders", "Pod", "Pod"}, {"orders", "Job", "Job"},
		{"import", "", "Job"}, {"report", "", "CronJob"}, {"import-a", "", "Pod"},
		{"log", "", "DaemonSet"}, {"db", "", "StatefulSet"}, {"echo-1", "", "ReplicaSet"},
		{"alone", "", "Pod"}, {"clone-a", "", "Pod"}, {"web", "", "Rollout"},
		{"echo", "", "Rollout"}, // which has taken the place of the Deployment that it refers to
		{"echo", "Deployment", "Deployment"},
	} {
		assert.Equal(t, c.want, kindOf(c.name, c.kind), c.name)
	}
}

func TestList(t *testing.T) {
	w := connected(t)
	zero := int32(0)
	owner := func(kind string) []metav1.OwnerReference {
		yes := true
		return []metav1.OwnerReference{{Kind: kind, Name: "x", APIVersion: "v1", UID: "u", Controller: &yes}}
	}
	replicaSet := func(name, owned string, replicas *int32) *appsv1.ReplicaSet {
		r := &appsv1.ReplicaSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
			Spec: appsv1.ReplicaSetSpec{Replicas: replicas}}
		r.Spec.Template.Spec.Containers = []corev1.Container{{Name: "app",
			Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}
		if owned != "" {
			r.OwnerReferences = owner(owned)
		}
		return r
	}
	host := &appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "proxy"}}
	host.Spec.Template.Spec.HostNetwork = true
	w.api.Add(t, replicaSet("orders-1", "Deployment", nil), replicaSet("echo-1", "Rollout", &zero),
		replicaSet("echo-2", "Rollout", nil), replicaSet("plain", "", nil), host,
		&appsv1.StatefulSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "batch"}})
	ported := corev1.PodSpec{Containers: []corev1.Container{{Name: "app",
		Ports: []corev1.ContainerPort{{ContainerPort: 8080}}}}}
	pod := func(name, owned string, phase corev1.PodPhase) *corev1.Pod {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}, Spec: ported,
			Status: corev1.PodStatus{Phase: phase}}
		if owned != "" {
			p.OwnerReferences = owner(owned)
		}
		return p
	}
	log := &appsv1.DaemonSet{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "log"}}
	log.Spec.Template.Spec = ported
	w.api.Add(t, log, pod("alone", "", corev1.PodRunning), pod("done", "", corev1.PodSucceeded),
		pod("orders-1-a", "ReplicaSet", corev1.PodRunning), pod("job-x", "Job", corev1.PodRunning))
	job := func(name string, spec corev1.PodSpec, change func(*batchv1.Job)) *batchv1.Job {
		j := &batchv1.Job{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name}}
		j.Spec.Template.Spec = spec
		change(j)
		return j
	}
	report := &batchv1.CronJob{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "report"}}
	report.Spec.JobTemplate.Spec.Template.Spec = ported
	w.api.Add(t, report, job("import", ported, func(*batchv1.Job) {}), job("silent", corev1.PodSpec{}, func(*batchv1.Job) {}),
		job("report-1", ported, func(j *batchv1.Job) { j.OwnerReferences = owner("CronJob") }),
		job("over", ported, func(j *batchv1.Job) {
			j.Status.Conditions = []batchv1.JobCondition{{Type: batchv1.JobComplete, Status: corev1.ConditionTrue}}
		}))
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
	theirs := w.object().DeepCopy()
	theirs.ObjectMeta = metav1.ObjectMeta{Namespace: "shop", Name: "theirs"}
	theirs.Spec.Client = v1alpha1.ClientReference{Session: "other", Holder: "ann@mac", KeyHash: "x"}
	w.api.Add(t, theirs)

	type line struct{ kind, name, obstacle string }
	list := func(filter string) (lines []line) {
		reply, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{Filter: filter})
		require.NoError(t, err)
		for _, l := range reply.GetWorkloads() {
			lines = append(lines, line{l.GetKind(), l.GetName(), l.GetNotInterceptable()})
			if l.GetName() == "orders" {
				require.Len(t, l.GetIntercepts(), 1)
				require.Len(t, l.GetOthers(), 1)
				assert.Equal(t, "ann@mac", l.GetOthers()[0].GetHolder())
			}
		}
		return lines
	}
	assert.Equal(t, []line{
		{"Pod", "alone", ""}, {"StatefulSet", "batch", "no service and no container port"},
		{"ReplicaSet", "echo-2", ""}, {"Job", "import", ""}, {"DaemonSet", "log", ""}, {"Deployment", "orders", ""},
		{"ReplicaSet", "plain", ""}, {"StatefulSet", "proxy", "its pods use the network of their node"},
		{"CronJob", "report", ""},
		{"Deployment", "stock", ""},
	}, list(""))
	assert.Equal(t, []line{{"Deployment", "orders", ""}}, list("intercepted"))
	assert.Len(t, list("interceptable"), 8)
	_, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{Filter: "x"})
	assert.Equal(t, codes.InvalidArgument, status.Code(err))

	argo := func(name string) *unstructured.Unstructured {
		r := rollout.Object()
		r.SetNamespace("shop")
		r.SetName(name)
		return r
	}
	echo, mirror := argo("echo"), argo("mirror")
	require.NoError(t, unstructured.SetNestedSlice(echo.Object, []any{
		map[string]any{"name": "app", "ports": []any{map[string]any{"containerPort": int64(8080)}}},
	}, "spec", "template", "spec", "containers"))
	require.NoError(t, unstructured.SetNestedStringMap(mirror.Object,
		map[string]string{"kind": "ReplicaSet", "name": "plain"}, "spec", "workloadRef"))
	w.api.Add(t, echo, mirror, argo("lost"))
	for i := range 30 { // so many that they are asked for in one go
		w.api.Add(t, pod(fmt.Sprintf("x-%02d", i), "", corev1.PodRunning))
	}
	lines := list("")
	assert.Contains(t, lines, line{"Rollout", "echo", ""})
	assert.Contains(t, lines, line{"Rollout", "mirror", ""})
	assert.Contains(t, lines,
		line{"Rollout", "lost", "it has no pod template of its own, nor that of a Deployment or a ReplicaSet"})
	assert.Contains(t, lines, line{"Pod", "x-29", ""})
	assert.NotContains(t, lines, line{"Pod", "done", ""})
	w.api.Deny(func(c clienttest.Call) bool {
		return c.Resource == "rollouts" || c.Resource == "pods" || c.Resource == "daemonsets" ||
			c.Resource == "jobs" || c.Resource == "cronjobs"
	})
	assert.Len(t, list(""), 6, "an older role tells of the older kinds")
	w.api.Deny(nil)
	for _, call := range w.api.Calls() {
		if call.Verb == "list" {
			assert.NotEmpty(t, call.Namespace, "rights in one namespace are enough: %v", call)
		}
	}
}

func TestOverlapsThatTheAPIServerRefuses(t *testing.T) {
	const denied = `ValidatingAdmissionPolicy 'sidestep-overlap' with binding 'sidestep-overlap' denied request: port http of Deployment orders is intercepted by ann@mac (intercept "orders")`
	w := connected(t)
	w.api.Admit(func(clienttest.Call, *unstructured.Unstructured) string { return denied })
	_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders"})
	assert.Equal(t, reason.Conflict, reason.Of(err))
	assert.Equal(t, `port http of Deployment orders is intercepted by ann@mac (intercept "orders")`,
		status.Convert(err).Message())
	assert.Empty(t, w.status().GetIntercepts())

	// An API server that has not heard yet that the holder left.
	times := 0
	w.api.Admit(func(clienttest.Call, *unstructured.Unstructured) string {
		if times++; times < 3 {
			return denied
		}
		return ""
	})
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders"})
	was := w.object()

	w.api.Admit(func(c clienttest.Call, _ *unstructured.Unstructured) string {
		if c.Verb == "update" {
			return denied
		}
		return ""
	})
	_, _, err = w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "orders", PortIdentifier: "80"})
	assert.Equal(t, reason.Conflict, reason.Of(err))
	assert.Equal(t, was.Spec, w.object().Spec, "it stays where it was")
	assert.Len(t, w.status().GetIntercepts(), 1)

	w.api.Admit(func(clienttest.Call, *unstructured.Unstructured) string {
		return "ValidatingAdmissionPolicy 'theirs' denied request: not on Fridays"
	})
	_, _, err = w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "stock"})
	assert.ErrorContains(t, err, "not on Fridays")
	assert.NotEqual(t, reason.Conflict, reason.Of(err))
}
