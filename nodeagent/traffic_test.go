// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"fmt"
	"io"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
)

// visit makes a request on a connection of its own, and gives the bytes in both directions.
func (w *world) visit(t *testing.T, ip netip.Addr, who string) (in, out uint64) {
	t.Helper()
	c, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(ip, appPort))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(20*time.Second)))
	n, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: orders\r\nConnection: close\r\n%s: %s\r\n\r\n",
		header, who)
	require.NoError(t, err)
	answer, err := io.ReadAll(c)
	require.NoError(t, err)
	return uint64(n), uint64(len(answer))
}

func TestConnectionsOfClientsAreCountedAndReported(t *testing.T) {
	const each = 10
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	want := &agentpb.Traffic{Opened: 4 * each, Closed: 4 * each}
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		for range each {
			for _, who := range []string{"me", "somebody"} {
				in, out := w.visit(t, ip, who)
				want.ReceivedBytes += in
				want.SentBytes += out
			}
		}
	}
	var last *agentpb.Traffic
	w.await(t, "traffic", func(r *agentpb.Report) bool {
		last = r.GetTargets()[0].GetTraffic()
		return last.GetClosed() >= want.Closed
	})
	assert.EqualValues(t, 4*each, last.GetRttSamples())
	assert.Positive(t, last.GetRttSumUs())
	last.RttSamples, last.RttSumUs, last.RetransmittedSegments = 0, 0, 0
	assert.Equal(t, want.String(), last.String(), "probes are not among them")

	_, metrics := fetch(t, "http://"+p.http+"/metrics")
	for _, line := range []string{
		fmt.Sprintf(`sidestep_nodeagent_tcp_connections_total{pod="shop/orders-0",port="8080",way="steered"} %d`, want.Opened),
		fmt.Sprintf(`sidestep_nodeagent_tcp_received_bytes_total{pod="shop/orders-0",port="8080",way="steered"} %d`, want.ReceivedBytes),
		`sidestep_nodeagent_tcp_open_connections{pod="shop/orders-0",port="8080",way="steered"} 0`,
		`sidestep_nodeagent_tcp_aborted_connections_total{pod="shop/orders-0",port="8080",way="steered"} 0`,
		fmt.Sprintf(`sidestep_nodeagent_tcp_rtt_seconds_bucket{pod="shop/orders-0",port="8080",way="steered",le="+Inf"} %d`, want.Closed),
		`sidestep_nodeagent_tcp_connections_total{pod="shop/orders-0",port="8080",way="direct"} 0`,
		`sidestep_nodeagent_target_info{intercept="shop/orders",pod="shop/orders-0",port="8080"} 1`,
	} {
		assert.Contains(t, metrics, line+"\n")
	}
	assert.NotContains(t, metrics,
		`sidestep_nodeagent_tcp_connections_total{pod="shop/orders-0",port="8080",way="local"} 0`,
		"what is passed on comes from the pod itself")
}
