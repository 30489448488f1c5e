// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
)

// introduced makes requests on one connection, and gives how the client sees itself and how the app
// sees it.
func (w *world) introduced(t *testing.T, ip netip.Addr) (itself, seen string) {
	t.Helper()
	c, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(ip, appPort))
	require.NoError(t, err)
	defer c.Close()
	client := &http.Client{Transport: &http.Transport{DialContext: func(context.Context, string,
		string) (net.Conn, error) {
		return c, nil
	}}}
	defer client.CloseIdleConnections()
	for range 2 {
		resp, err := client.Get("http://orders/client")
		require.NoError(t, err)
		body, err := io.ReadAll(resp.Body)
		require.NoError(t, err)
		require.NoError(t, resp.Body.Close())
		seen = string(body)
	}
	return c.LocalAddr().String(), seen
}

func (w *world) expectIntroduction(t *testing.T) {
	t.Helper()
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		itself, seen := w.introduced(t, ip)
		assert.Equal(t, itself, seen)
	}
}

// attachedHere counts the programs at this test's control group that answer for the peers of IPv4
// sockets.
func attachedHere(t *testing.T) int {
	t.Helper()
	dir, err := os.Open(testnet.OwnCgroup(t))
	require.NoError(t, err)
	defer dir.Close()
	got, err := link.QueryPrograms(link.QueryOptions{Target: int(dir.Fd()),
		Attach: ebpf.AttachCgroupInet4GetPeername})
	require.NoError(t, err)
	return len(got.Programs)
}

func TestAppSeesItsClientsUnderAnIntercept(t *testing.T) {
	w := newWorld(t)
	w.expectIntroduction(t)
	before := attachedHere(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	w.expectIntroduction(t)
	w.expect(t, "me", "laptop")
	assert.Equal(t, before+1, attachedHere(t))
	_, metrics := fetch(t, "http://"+p.http+"/metrics")
	assert.Contains(t, metrics, `sidestep_nodeagent_client_addresses_shown{pod="shop/orders-0"} 1`)

	w.assign()
	require.Eventually(t, func() bool { return attachedHere(t) == before }, 30*time.Second,
		20*time.Millisecond, "when the pod is let go")
	w.expectIntroduction(t)

	w.steering(t, w.assign(w.wants()))
	assert.Equal(t, before+1, attachedHere(t))
	p.kill(t)
	require.Eventually(t, func() bool { return attachedHere(t) == before }, 30*time.Second,
		5*time.Millisecond, "nothing is left of a killed agent")
	w.expectIntroduction(t)
}

func TestEndedAgentLeavesNothingAtControlGroups(t *testing.T) {
	w := newWorld(t)
	before := attachedHere(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	require.Equal(t, before+1, attachedHere(t))
	require.NoError(t, p.Process.Signal(syscall.SIGTERM))
	require.NoError(t, p.end())
	assert.Equal(t, before, attachedHere(t))
	w.nothingLeft(t)
}

func TestAppThatCannotBeToldItsClientsIsServedAllTheSame(t *testing.T) {
	w := newWorld(t)
	w.pod.SetCgroup(t, "1:name=systemd:/kubepods/pod"+w.pod.UID+"/app\n") // no unified hierarchy
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		_, seen := w.introduced(t, ip)
		assert.Equal(t, ip, netip.MustParseAddrPort(seen).Addr(), "the pod's own address")
	}
	w.expect(t, "me", "laptop")
	_, metrics := fetch(t, "http://"+p.http+"/metrics")
	assert.Contains(t, metrics, `sidestep_nodeagent_client_addresses_shown{pod="shop/orders-0"} 0`)
}

// An app may trust what comes from its own address, such as an allow list of its own.
func TestAppThatCannotBeToldItsClientsIsLeftAloneWhereThatIsRequired(t *testing.T) {
	w := newWorld(t)
	with := w.pod.SetCgroup(t, "1:name=systemd:/kubepods/pod"+w.pod.UID+"/app\n") // no unified hierarchy
	w.args = []string{"--client-addresses=required"}
	p := w.spawn(t)
	want := w.wants()
	want.UdpTargets = []*agentpb.Target{{Port: appPort, Rules: []*agentpb.Rule{{InterceptUid: "i-2", Tcp: true}}}}
	revision := w.assign(want)
	w.await(t, "refused", func(r *agentpb.Report) bool {
		refused := 0
		for _, at := range r.GetTargets() {
			if at.GetFailed() && !at.GetSteering() && at.GetInterceptUid() == "i-1" &&
				strings.Contains(at.GetMessage(), "nodeagent.clientAddresses") {
				refused++
			}
			if at.GetSteering() && at.GetInterceptUid() == "i-2" {
				refused++ // UDP keeps addresses by itself
			}
		}
		return r.GetRevision() == revision && refused == 2
	})
	w.expectIntroduction(t)
	w.expect(t, "me", "app")
	_, metrics := fetch(t, "http://"+p.http+"/metrics")
	assert.Contains(t, metrics, `sidestep_nodeagent_client_addresses_shown{pod="shop/orders-0"} 0`)

	w.pod.SetCgroup(t, with)
	w.await(t, "steered as soon as that can be had", func(r *agentpb.Report) bool {
		return !slices.ContainsFunc(r.GetTargets(), func(at *agentpb.TargetReport) bool { return !at.GetSteering() })
	})
	w.expectIntroduction(t)
	w.expect(t, "me", "laptop")
}
