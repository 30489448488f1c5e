// SPDX-License-Identifier: Apache-2.0

package resolve

import (
	"strings"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"sidestep.dev/sidestep/api/agentpb"
)

// KubeletProbes lists how the kubelet connects to a port of the pod, so that the node agent can
// tell its connections from others.
func KubeletProbes(spec *corev1.PodSpec, port int32) []*agentpb.Probe {
	var probes []*agentpb.Probe
	seen := map[string]bool{}
	add := func(kind, path string) {
		if key := kind + path; !seen[key] {
			seen[key] = true
			probes = append(probes, &agentpb.Probe{Kind: kind, Path: path})
		}
	}
	at := func(c *corev1.Container, p intstr.IntOrString) bool {
		return p.Type == intstr.Int && p.IntVal == port || p.Type == intstr.String &&
			numberIn(c, p.StrVal) == port
	}
	get := func(c *corev1.Container, h *corev1.HTTPGetAction) {
		switch {
		case h == nil || h.Host != "" || !at(c, h.Port):
		case h.Scheme == corev1.URISchemeHTTPS:
			add("tcp", "") // its path cannot be seen from outside
		default:
			path, _, _ := strings.Cut(h.Path, "?")
			add("http", "/"+strings.TrimPrefix(path, "/"))
		}
	}
	for _, c := range containersOf(spec) {
		for _, p := range []*corev1.Probe{c.ReadinessProbe, c.LivenessProbe, c.StartupProbe} {
			if p == nil {
				continue
			}
			get(c, p.HTTPGet)
			if t := p.TCPSocket; t != nil && t.Host == "" && at(c, t.Port) {
				add("tcp", "")
			}
			if p.GRPC != nil && p.GRPC.Port == port {
				add("grpc", "")
			}
		}
		if l := c.Lifecycle; l != nil {
			for _, h := range []*corev1.LifecycleHandler{l.PostStart, l.PreStop} {
				if h != nil {
					get(c, h.HTTPGet)
				}
			}
		}
	}
	return probes
}

// numberIn returns the number of the container's own port of that name. The kubelet looks in no
// other container.
func numberIn(c *corev1.Container, name string) int32 {
	for _, p := range c.Ports {
		if p.Name == name {
			return p.ContainerPort
		}
	}
	return 0
}
