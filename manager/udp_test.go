// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// dns adds a TCP port 53 and a UDP port 53 to service orders. Both lead to port 5353 of the pods.
func (k *kube) dns(t *testing.T) {
	t.Helper()
	svc := &corev1.Service{}
	require.NoError(t, k.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: "orders"}, svc))
	svc.Spec.Ports = append(svc.Spec.Ports,
		corev1.ServicePort{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP,
			TargetPort: intstr.FromInt32(5353)},
		corev1.ServicePort{Name: "dns-tcp", Port: 53, TargetPort: intstr.FromInt32(5353)})
	require.NoError(t, k.Update(t.Context(), svc))
}

// ports lists the ports of TCP and of UDP in the last assignment.
func (a *nodeAgent) ports() (tcp, udp []uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	for _, p := range a.last.GetPods() {
		for _, target := range p.GetTargets() {
			tcp = append(tcp, target.GetPort())
		}
		for _, target := range p.GetUdpTargets() {
			udp = append(udp, target.GetPort())
		}
	}
	return tcp, udp
}

func TestPortOfUDPIsAnotherThanThatOfTCP(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	k.dns(t)
	a := m.agentSaying(t, &agentpb.Hello{Node: "node-1", Protocol: 1, Udp: true}, "node/node-1")
	for _, who := range []string{"alice", "bob", "carol"} {
		m.laptop(t, who, 0)
	}
	udp := asks("alice", "53", "tcp")
	udp.Spec.Protocol = v1alpha1.ProtocolUDP
	k.create(t, udp)
	st := k.until(t, "alice", v1alpha1.StateActive).Status
	assert.Equal(t, "all UDP datagrams", st.Intercepting)
	assert.Equal(t, v1alpha1.ProtocolUDP, st.Protocol)
	assert.Equal(t, "1/1", st.Coverage)
	assert.Equal(t, []v1alpha1.PodStatus{{Name: "p1", Node: "node-1", Port: 5353, Steering: true}}, st.Pods)

	tcp := asks("bob", "53", "tcp")
	tcp.Spec.Protocol = v1alpha1.ProtocolTCP
	k.create(t, tcp)
	assert.Empty(t, k.until(t, "bob", v1alpha1.StateActive).Status.Protocol)
	has := func() bool {
		tcp, udp := a.ports()
		return len(tcp) == 1 && tcp[0] == 5353 && len(udp) == 1 && udp[0] == 5353
	}
	require.Eventually(t, has, patient, often)

	k.create(t, asks("carol", "dns", "tcp"))
	assert.Equal(t, `port dns/UDP of Deployment orders is intercepted by alice@laptop (intercept "orders")`, k.until(t, "carol", v1alpha1.StateConflict).Status.Message)
	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "alice")))
	k.until(t, "carol", v1alpha1.StateActive)
	require.Eventually(t, has, patient, often)
}

func TestPortThatIsAddedChangesNoProtocol(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	k.pod(t, rs, "p1", "node-1")
	svc := &corev1.Service{}
	require.NoError(t, k.Get(t.Context(), types.NamespacedName{Namespace: ns, Name: "orders"}, svc))
	svc.Spec.Ports = []corev1.ServicePort{{Name: "dns", Port: 53, Protocol: corev1.ProtocolUDP,
		TargetPort: intstr.FromInt32(5353)}}
	require.NoError(t, k.Update(t.Context(), svc))
	a := m.agentSaying(t, &agentpb.Hello{Node: "node-1", Protocol: 1, Udp: true}, "node/node-1")
	m.laptop(t, "alice", 0)
	k.create(t, asks("alice", "", "tcp"))
	k.until(t, "alice", v1alpha1.StateActive)
	svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: "http", Port: 80})
	require.NoError(t, k.Update(t.Context(), svc))
	k.pod(t, rs, "p2", "node-1") // once it is steered, the change has been seen
	require.Eventually(t, func() bool { return k.intercept(t, "alice").Status.Coverage == "2/2" },
		patient, often)
	tcp, udp := a.ports()
	assert.Empty(t, tcp)
	assert.Equal(t, []uint32{5353, 5353}, udp)
	assert.Equal(t, "dns", k.intercept(t, "alice").Status.Port)
}

func TestNodeAgentThatKnowsNothingOfUDPIsNotTold(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	k.dns(t)
	a := m.agent(t, "node-1")
	m.laptop(t, "alice", 0)
	m.laptop(t, "bob", 0)
	k.create(t, asks("bob", "http", "tcp"), asks("alice", "dns", "tcp"))
	assert.Equal(t, "pod p1 on node node-1: the node agent is older than the traffic manager and cannot intercept UDP: "+
		"whoever runs the cluster has to upgrade it (`sidestep helm upgrade`)",
		k.until(t, "alice", v1alpha1.StateFailed).Status.Message)
	k.until(t, "bob", v1alpha1.StateActive)
	tcp, udp := a.ports()
	assert.Equal(t, []uint32{8080}, tcp)
	assert.Empty(t, udp)
}
