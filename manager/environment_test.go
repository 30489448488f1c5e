// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// guard returns the chart's objects with which the API server checks who may read environments.
func guard(t *testing.T) []client.Object { return policy(t, plain(t, "environment.yaml")) }

// policy returns the policy and its binding from the first two documents.
func policy(t *testing.T, documents []string) []client.Object {
	t.Helper()
	policy, binding := &admissionv1.ValidatingAdmissionPolicy{}, &admissionv1.ValidatingAdmissionPolicyBinding{}
	require.NoError(t, yaml.UnmarshalStrict([]byte(documents[0]), policy))
	require.NoError(t, yaml.UnmarshalStrict([]byte(documents[1]), binding))
	return []client.Object{policy, binding}
}

// environments answers the manager's questions as a node agent does.
func (a *nodeAgent) environments(t *testing.T,
	answer func(*agentpb.EnvironmentQuestion) *agentpb.EnvironmentAnswer) context.CancelFunc {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := agentpb.NewAgentsClient(a.conn).Environments(ctx)
	require.NoError(t, err)
	go func() {
		for {
			q, err := stream.Recv()
			if err != nil {
				return
			}
			reply := answer(q)
			if reply == nil { // it dies
				cancel()
				return
			}
			reply.Id = q.GetId()
			_ = stream.Send(reply)
		}
	}()
	return cancel
}

// shows answers with a variable that names the container that was asked for.
func shows(q *agentpb.EnvironmentQuestion) *agentpb.EnvironmentAnswer {
	return &agentpb.EnvironmentAnswer{Variables: [][]byte{[]byte("OF=" + q.GetPodUid() + "/" +
		q.GetContainerId()), []byte("BYTES=\xff\n")}}
}

// runs says that the pod's containers run, as a kubelet does, and that the pod is of an age.
func (k *kube) runs(t *testing.T, p *corev1.Pod, age time.Duration) *corev1.Pod {
	t.Helper()
	for _, c := range p.Spec.Containers {
		p.Status.ContainerStatuses = append(p.Status.ContainerStatuses, corev1.ContainerStatus{
			Name: c.Name, ContainerID: "containerd://" + c.Name + "-of-" + p.Name,
			State: corev1.ContainerState{Running: &corev1.ContainerStateRunning{}},
		})
	}
	require.NoError(t, k.Status().Update(t.Context(), p))
	p.CreationTimestamp = metav1.NewTime(time.Now().Add(-age).Truncate(time.Second))
	require.NoError(t, k.Update(t.Context(), p))
	return p
}

// asking is an intercept that asks for the environment.
func asking(holder, port, header string) *v1alpha1.Intercept {
	ic := asks(holder, port, header)
	ic.Spec.Environment = true
	return ic
}

func (l *laptop) environment(t *testing.T, ic *v1alpha1.Intercept) (*clientpb.EnvironmentReply, error) {
	t.Helper()
	ctx := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key", l.key)
	return clientpb.NewClientsClient(l.conn).Environment(ctx,
		&clientpb.EnvironmentRequest{Namespace: ic.Namespace, Name: ic.Name, InterceptUid: string(ic.UID)})
}

func TestEnvironmentOfTheOldestReadyPodIsGivenToTheHolder(t *testing.T) {
	k := newKube(guard(t)...)
	m := start(t, k)
	rs := k.shop(t)
	young := k.runs(t, k.pod(t, rs, "p1", "node-1"), time.Minute)
	old := k.runs(t, k.pod(t, rs, "p2", "node-2"), time.Hour)
	one, two := m.agent(t, "node-1"), m.agent(t, "node-2")
	one.environments(t, shows)
	var problem atomic.Pointer[string]
	two.environments(t, func(q *agentpb.EnvironmentQuestion) *agentpb.EnvironmentAnswer {
		if p := problem.Load(); p != nil {
			return &agentpb.EnvironmentAnswer{Problem: *p}
		}
		return shows(q)
	})
	l := m.laptop(t, "alice", 0)
	k.create(t, asking("alice", "http", "tcp"))
	ic := k.until(t, "alice", v1alpha1.StateActive)
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "2/2" },
		patient, often)

	reply, err := l.environment(t, ic)
	require.NoError(t, err)
	assert.Equal(t, "p2", reply.GetPod())
	assert.Equal(t, [][]byte{[]byte("OF=" + string(old.UID) + "/app-of-p2"), []byte("BYTES=\xff\n")},
		reply.GetVariables())
	assert.Equal(t, "app", reply.GetContainer())
	assert.Equal(t, []string{"SECRET"}, reply.GetDeclared())

	text := "no process of the container was found on this node"
	problem.Store(&text)
	reply, err = l.environment(t, ic)
	require.NoError(t, err)
	assert.Equal(t, "p1", reply.GetPod(), "the next one")

	young.Status.ContainerStatuses[0].State = corev1.ContainerState{Waiting: &corev1.ContainerStateWaiting{Reason: "CrashLoopBackOff"}}
	require.NoError(t, k.Status().Update(t.Context(), young))
	_, err = l.environment(t, ic)
	assert.Equal(t, codes.Unavailable, status.Code(err))
	assert.Equal(t, "pod p2: container app: no process of the container was found on this node; pod p1: container app is not running", status.Convert(err).Message())
}

func TestEnvironmentIsGivenToNobodyElse(t *testing.T) {
	k := newKube(guard(t)...)
	m := start(t, k)
	k.runs(t, k.pod(t, k.shop(t), "p1", "node-1"), time.Minute)
	a := m.agent(t, "node-1")
	asked := atomic.Int32{}
	a.environments(t, func(q *agentpb.EnvironmentQuestion) *agentpb.EnvironmentAnswer {
		asked.Add(
			1)
		return shows(q)
	})
	alice, mallory := m.laptop(t, "alice", 0), m.laptop(t, "mallory", 0)
	k.create(t, asking("alice", "http", "alice"))
	ic := k.until(t, "alice", v1alpha1.StateActive)
	require.Eventually(t, func() bool { _, err := alice.environment(t, ic); return err == nil }, patient, often)
	given := asked.Load()

	refused := func(t *testing.T, l *laptop, ic *v1alpha1.Intercept, code codes.Code, says string) {
		t.Helper()
		_, err := l.environment(t, ic)
		assert.Equal(t, code, status.Code(err))
		assert.ErrorContains(t, err, says)
		assert.Equal(t, given, asked.Load(), "the node agent is not even asked")
	}
	t.Run("another session", func(t *testing.T) {
		refused(t, mallory, ic, codes.NotFound, "this session has no intercept alice in namespace shop")
	})
	t.Run("an intercept that has been replaced", func(t *testing.T) {
		other := ic.DeepCopy()
		other.UID = "another"
		refused(t, alice, other, codes.NotFound, "this session has no intercept")
	})
	t.Run("an intercept that does not ask", func(t *testing.T) {
		k.create(t, asks("mallory", "http", "mallory"))
		refused(t, mallory, k.until(t, "mallory", v1alpha1.StateActive), codes.PermissionDenied,
			"does not ask for the environment")
	})
	t.Run("an intercept that is refused", func(t *testing.T) {
		bob := m.laptop(t, "bob", 0)
		k.create(t, asking("bob", "http", ""))
		refused(t, bob, k.until(t, "bob", v1alpha1.StateConflict), codes.FailedPrecondition,
			"is not in force: port http of Deployment orders is intercepted by")
	})
	t.Run("a session that is not connected", func(t *testing.T) {
		alice.cancel()
		k.until(t, "alice", v1alpha1.StateDisconnected)
		refused(t, alice, ic, codes.FailedPrecondition, "there is no session with this key")
	})
}

func TestEnvironmentIsGivenToNobodyWhileTheAPIServerDoesNotCheckWhoMayHaveIt(t *testing.T) {
	for name, change := range map[string]func(policy *admissionv1.ValidatingAdmissionPolicy,
		binding *admissionv1.ValidatingAdmissionPolicyBinding) []client.Object{
		"without the policy": func(_ *admissionv1.ValidatingAdmissionPolicy,
			b *admissionv1.ValidatingAdmissionPolicyBinding) []client.Object {
			return []client.Object{b}
		},
		"without its binding": func(p *admissionv1.ValidatingAdmissionPolicy,
			_ *admissionv1.ValidatingAdmissionPolicyBinding) []client.Object {
			return []client.Object{p}
		},
		"when it only warns": func(p *admissionv1.ValidatingAdmissionPolicy,
			b *admissionv1.ValidatingAdmissionPolicyBinding) []client.Object {
			b.Spec.ValidationActions = []admissionv1.ValidationAction{admissionv1.Warn}
			return []client.Object{p, b}
		},
		"when its failures are ignored": func(p *admissionv1.ValidatingAdmissionPolicy,
			b *admissionv1.ValidatingAdmissionPolicyBinding) []client.Object {
			ignore := admissionv1.Ignore
			p.Spec.FailurePolicy = &ignore
			return []client.Object{p, b}
		},
	} {
		t.Run(name, func(t *testing.T) {
			g := guard(t)
			k := newKube(change(g[0].(*admissionv1.ValidatingAdmissionPolicy),
				g[1].(*admissionv1.ValidatingAdmissionPolicyBinding))...)
			m := start(t, k)
			k.runs(t, k.pod(t, k.shop(t), "p1", "node-1"), time.Minute)
			m.agent(t, "node-1")
			l := m.laptop(t, "alice", 0)
			k.create(t, asking("alice", "http", "tcp"))
			_, err := l.environment(t, k.until(t, "alice", v1alpha1.StateActive))
			assert.Equal(t, codes.FailedPrecondition, status.Code(err))
			assert.ErrorContains(t, err, "sidestep-environment")
		})
	}
}

func TestEnvironmentThatCannotBeHad(t *testing.T) {
	k := newKube(guard(t)...)
	m := start(t, k)
	rs := k.shop(t)
	l := m.laptop(t, "alice", 0)
	k.create(t, asking("alice", "http", "tcp"))
	_, err := l.environment(t, k.until(t, "alice", v1alpha1.StateNoPods))
	assert.ErrorContains(t, err,
		"no pod of Deployment orders is ready, and an environment is that of a running process")

	k.runs(t, k.pod(t, rs, "p1", "node-1"), time.Minute)
	a := m.agent(t, "node-1")
	ic := k.until(t, "alice", v1alpha1.StateActive)
	_, err = l.environment(t, ic)
	assert.ErrorContains(t, err,
		"pod p1: container app: no node agent on node node-1 answers: it is not connected, or older than the traffic manager")

	// An agent that dies while it is asked is followed by the one that is there already.
	a.environments(t, shows)
	require.Eventually(t, func() bool { _, err := l.environment(t, ic); return err == nil }, patient, often)
	died := make(chan struct{})
	a.environments(t, func(*agentpb.EnvironmentQuestion) *agentpb.EnvironmentAnswer { close(died); return nil })
	require.Eventually(t, func() bool {
		_, err := l.environment(t, ic)
		assert.NoError(t, err)
		select {
		case <-died:
			return true
		default:
			return false
		}
	}, patient, often)
}

// guards checks what the API server says to those who ask for environments. c has the manager's
// rights.
func guards(t *testing.T, k *kube, admin *rest.Config, c client.Client) {
	k.create(t, guard(t)...)
	rbacClient, err := client.New(admin, client.Options{Scheme: withRBAC(t)})
	require.NoError(t, err)
	as := map[string]client.Client{}
	for user, rules := range map[string][]rbacv1.PolicyRule{
		"dev": {{APIGroups: []string{"sidestep.dev"}, Resources: []string{"intercepts"},
			Verbs: []string{"*"}}},
		"reader": {{APIGroups: []string{"sidestep.dev"}, Resources: []string{"intercepts"},
			Verbs: []string{"*"}}, {APIGroups: []string{"sidestep.dev"},
			Resources: []string{"intercepts/environment"}, Verbs: []string{"get"}}},
	} {
		meta := objectMeta(user)
		require.NoError(t, rbacClient.Create(t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}))
		require.NoError(t, rbacClient.Create(t.Context(), &rbacv1.RoleBinding{
			ObjectMeta: meta, RoleRef: rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: "Role",
				Name: user}, Subjects: []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
		}))
		config := rest.CopyConfig(admin)
		config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: []string{"system:authenticated"}}
		as[user], err = client.New(config, client.Options{Scheme: Scheme()})
		require.NoError(t, err)
	}
	const says = `User "dev" cannot get resource "intercepts/environment" in API group "sidestep.dev" in the namespace "shop"`
	require.Eventually(t, func() bool { // policies come into force after a moment
		ic := asking("probe", "http", "probe")
		err := as["dev"].Create(t.Context(), ic)
		if err == nil {
			require.NoError(t, k.Delete(t.Context(), ic))
		}
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), says)
	}, time.Minute, 100*time.Millisecond)

	ic := asks("dev", "http", "dev")
	require.NoError(t, as["dev"].Create(t.Context(), ic), "one that does not ask")
	more := ic.DeepCopy()
	more.Spec.Environment = true
	assert.ErrorContains(t, as["dev"].Update(t.Context(), more), says, "nor can it be asked for later")

	ic = asking("reader", "http", "reader")
	require.NoError(t, as["reader"].Create(t.Context(), ic))
	ic.Labels = map[string]string{"a": "b"}
	require.NoError(t, as["dev"].Update(t.Context(), ic), "a label is everybody's")
	other := ic.DeepCopy()
	other.Spec.Container = "proxy"
	assert.ErrorContains(t, as["dev"].Update(t.Context(), other), says,
		"another container is another environment")
	require.NoError(t, as["reader"].Update(t.Context(), other))
	other.Status = v1alpha1.InterceptStatus{State: v1alpha1.StatePending}
	assert.NoError(t, c.Status().Update(t.Context(), other),
		"the manager may write the status, and read the policy")
	for _, o := range guard(t) {
		assert.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(o), o))
	}
	require.NoError(t, k.DeleteAllOf(t.Context(), &v1alpha1.Intercept{}, client.InNamespace(ns)))
}

func withRBAC(t *testing.T) *runtime.Scheme {
	t.Helper()
	s := Scheme()
	require.NoError(t, rbacv1.AddToScheme(s))
	return s
}
