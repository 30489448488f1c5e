// SPDX-License-Identifier: Apache-2.0

package resolve_test

import (
	"testing"

	"github.com/stretchr/testify/assert"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/manager/decide/resolve"
)

func TestKubeletProbesOfThePort(t *testing.T) {
	probe := func(h corev1.ProbeHandler) *corev1.Probe { return &corev1.Probe{ProbeHandler: h} }
	get := func(path string, port intstr.IntOrString) *corev1.HTTPGetAction {
		return &corev1.HTTPGetAction{Path: path, Port: port}
	}
	c := container("app", named("web", 8080))
	c.ReadinessProbe = probe(corev1.ProbeHandler{HTTPGet: get("/ready?full=1", str("web"))})
	c.LivenessProbe = probe(corev1.ProbeHandler{TCPSocket: &corev1.TCPSocketAction{Port: num(8080)}})
	c.StartupProbe = probe(corev1.ProbeHandler{GRPC: &corev1.GRPCAction{Port: 8080}})
	c.Lifecycle = &corev1.Lifecycle{PreStop: &corev1.LifecycleHandler{HTTPGet: get("drain", num(8080))}}
	elsewhere := container("two", named("admin", 9000))
	// web is no port of this container
	elsewhere.ReadinessProbe = probe(corev1.ProbeHandler{HTTPGet: get("/ready", str("web"))})
	elsewhere.LivenessProbe = probe(corev1.ProbeHandler{HTTPGet: get("/live", str("admin"))})
	tls := container("three")
	tls.ReadinessProbe = probe(corev1.ProbeHandler{HTTPGet: &corev1.HTTPGetAction{Path: "/",
		Port: num(9000), Scheme: corev1.URISchemeHTTPS}})
	spec := corev1.PodSpec{Containers: []corev1.Container{c, elsewhere, tls}}

	list := func(port int32) []string {
		var all []string
		for _, p := range resolve.KubeletProbes(&spec, port) {
			all = append(all, describe(p))
		}
		return all
	}
	assert.Equal(t, []string{"http /ready", "tcp ", "grpc ", "http /drain"}, list(8080))
	assert.Equal(t, []string{"http /live", "tcp "}, list(9000))
	assert.Empty(t, list(1))
}

func describe(p *agentpb.Probe) string { return p.Kind + " " + p.Path }
