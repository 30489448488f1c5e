// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"io"
	"net/netip"
	"os"
	"regexp"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// A network namespace plays the node's: the pod's processes are there, and those of others.
func TestPodOnTheNodesNetworkIsInterceptedWhereThatIsAllowed(t *testing.T) {
	w := newWorld(t)
	w.allowHostNetwork = true
	stop := w.run(t)
	other := testnet.Listen(t, w.pod.Namespace, ":9090") // another program of the node
	go func() {
		for {
			c, err := other.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, "other")
			_ = c.Close()
		}
	}()
	wanted := w.wants()
	wanted.HostNetwork = true
	wanted.HostIps = wanted.Ips
	w.steering(t, w.assign(wanted))
	w.expect(t, "me", "laptop")
	w.expect(t, "", "app")
	w.expectIntroduction(t)
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		c, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(ip, 9090))
		require.NoError(t, err)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, "other", string(got))
		require.NoError(t, c.Close())
	}
	got, err := get(&testnet.Node{Namespace: w.pod.Namespace}, w.pod.IP4, "me")
	require.NoError(t, err)
	assert.Equal(t, "app", got, "the kubelet's probes come from the node's own address")

	second := wants(w.pod)
	second.Uid, second.Name, second.HostNetwork = "ffffffff-1111-2222-3333-444444444444", "orders-1", true
	w.pod.Inhabit(t, second.GetUid())
	both := w.assign(wanted, second)
	w.await(t, "refusal of the second", func(r *agentpb.Report) bool {
		return r.GetRevision() == both && len(r.GetTargets()) == 2 &&
			strings.Contains(r.GetTargets()[1].GetMessage(),
				"shop/orders-0, which uses the network of this node as well")
	})
	w.expect(t, "me", "laptop")
	w.assign(second)
	w.await(t, "the second after the first", func(r *agentpb.Report) bool {
		return len(r.GetTargets()) == 1 && r.GetTargets()[0].GetSteering()
	})
	w.expect(t, "me", "laptop")
	stop()
	w.expect(t, "me", "app")
	w.nothingLeft(t)
}

func TestPodOnTheNodesNetworkIsRefusedWhereTCSteers(t *testing.T) {
	for _, name := range testnet.Datapaths(t) {
		if steer.Datapath(name) == steer.SkLookup {
			continue
		}
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.allowHostNetwork, w.datapath = true, steer.Datapath(name)
			w.run(t)
			wanted := w.wants()
			wanted.HostNetwork = true
			wanted.HostIps = wanted.Ips
			w.assign(wanted)
			w.await(t, "reason", func(r *agentpb.Report) bool {
				return len(r.GetTargets()) == 1 && r.GetTargets()[0].GetFailed() &&
					strings.Contains(r.GetTargets()[0].GetMessage(), "steers by TC")
			})
			w.expect(t, "me", "app")
			w.nothingLeft(t)
		})
	}
}

// Whoever finds the node agent's listener, such as a port scan in the pod, is not passed on to that
// listener again and again.
func TestListenerIsOfNoUseToThoseInThePod(t *testing.T) {
	w := newWorld(t)
	p := w.spawn(t)
	w.steering(t, w.assign(w.wants()))
	var table []byte
	require.NoError(t, w.pod.Do(func() (err error) {
		table, err = os.ReadFile("/proc/thread-self/net/tcp")
		return err
	}))
	listener := regexp.MustCompile(`0100007F:([0-9A-F]{4}) 00000000:0000 0A`).FindSubmatch(table)
	require.NotNil(t, listener, "%s", table)
	port, err := strconv.ParseUint(string(listener[1]), 16, 16)
	require.NoError(t, err)
	before := p.sockets(t)
	c, err := testnet.Dial(t.Context(), w.pod.Namespace,
		netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), uint16(port)))
	require.NoError(t, err)
	defer c.Close()
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	_, err = io.ReadAll(c)
	assert.NotErrorIs(t, err, os.ErrDeadlineExceeded, "it is closed at once")
	assert.LessOrEqual(t, p.sockets(t), before+1)
	w.expect(t, "me", "laptop")
}
