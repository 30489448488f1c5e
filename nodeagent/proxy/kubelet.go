// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"cmp"
	"net/netip"
	"slices"
	"time"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// probeWait bounds how long a connection from the node is looked at before a tcp rule has it,
// unless Kubelet.wait does.
const probeWait = 200 * time.Millisecond

var (
	kubeletAgent  = []byte("kube-probe/")
	healthService = []byte("/grpc.health.v1.Health/")
	http2Preface  = []byte("PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
)

// isKubelet reports whether a request is one of the kubelet's probes.
func isKubelet(head match.Head) bool {
	probe := false
	head.Values("user-agent", func(v []byte) bool {
		probe = bytes.HasPrefix(v, kubeletAgent)
		return !probe
	})
	return probe
}

// mayProbe reports whether a connection from there may be one of the kubelet's probes.
func (k *Kubelet) mayProbe(from netip.Addr) bool {
	return (len(k.HTTPPaths) > 0 || k.TCP || k.GRPC) &&
		slices.ContainsFunc(k.HostIPs, func(ip netip.Addr) bool {
			return ip.Unmap() == from
		})
}

// probesHealth reports whether a request from there is what a gRPC probe asks, whatever its client
// calls itself.
func (k *Kubelet) probesHealth(head match.Head, from netip.Addr) bool {
	return k.GRPC && bytes.HasPrefix(head.Path(), healthService) && k.mayProbe(from)
}

// probes looks at the first bytes of a connection from the node, and reports whether it is a probe.
// What it read is in b.
//
// An http probe names itself in its request. A tcp probe is closed without a word. A gRPC probe
// cannot be told from other HTTP/2, since its client says nothing but the preface before the server
// has spoken; so all HTTP/2 from the node counts as probes where there is a gRPC probe.
func (k *Kubelet) probes(c stream.Duplex, b *stream.Buffer) bool {
	c.SetReadDeadline(time.Now().Add(cmp.Or(k.wait, probeWait)))
	defer c.SetReadDeadline(time.Time{})
	var head http1.Request
	head.Reset()
	for {
		if err := c.Fill(b); err != nil {
			return b.Len() == 0 && !stream.Interrupted(err)
		}
		p := b.Bytes()
		if n := min(len(p), len(http2Preface)); k.GRPC && bytes.Equal(p[:n], http2Preface[:n]) {
			if n == len(http2Preface) {
				return true
			}
			continue
		}
		if len(k.HTTPPaths) == 0 || !http1.MayBeRequest(p) {
			return false
		}
		n, err := head.Parse(p)
		if err != nil {
			return false
		}
		if n > 0 {
			return isKubelet(&head)
		}
	}
}
