// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"io"
	"net"
	"net/netip"
	"strconv"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/internal/tunnel"
)

// AcceptToPod hands the streams that agents park to the test.
func (m *manager) AcceptToPod(stream agentpb.Agents_AcceptToPodServer) error {
	if err := m.authenticate(stream.Context()); err != nil {
		return err
	}
	select {
	case m.parking <- stream:
	case <-stream.Context().Done():
	}
	<-stream.Context().Done()
	return stream.Context().Err()
}

// greets listens in the pod and says a word to each connection, and then what it hears.
func (w *world) greets(t *testing.T, ip netip.Addr, text string) uint32 {
	t.Helper()
	l := testnet.Listen(t, w.pod.Namespace, netip.AddrPortFrom(ip, 0).String())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer c.Close()
				_, _ = io.WriteString(c, text)
				_, _ = io.Copy(c, c)
			}()
		}
	}()
	return uint32(l.Addr().(*net.TCPAddr).Port)
}

// toPod connects to a port of the pod, as the manager does for a laptop.
func (w *world) toPod(t *testing.T, open *tunnelpb.Open) (*tunnel.Conn, *tunnelpb.Opened) {
	t.Helper()
	var stream agentpb.Agents_AcceptToPodServer
	select {
	case stream = <-w.parking:
	case <-time.After(20 * time.Second):
		require.Fail(t, "the agent has parked no stream")
	}
	c, err := tunnel.Open(stream, open)
	require.NoError(t, err)
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	answer, err := c.Opened(ctx)
	require.NoError(t, err)
	return c, answer
}

func TestALaptopReachesPortsOfThePodThatTheAssignmentNames(t *testing.T) {
	w := newWorld(t)
	w.parking = make(chan agentpb.Agents_AcceptToPodServer)
	loopback, own := w.greets(t, netip.MustParseAddr("127.0.0.1"), "helper"), w.greets(t, w.pod.IP4, "app")
	six := w.greets(t, netip.IPv6Loopback(), "helper6")
	w.run(t)
	want := w.wants()
	rule := want.GetTargets()[0].GetRules()[0]
	rule.ToPod = []uint32{loopback, own, six, 1, appPort}
	w.steering(t, w.assign(want))
	to := func(port uint32) *tunnelpb.Open {
		return &tunnelpb.Open{InterceptUid: rule.GetInterceptUid(), PodUid: w.pod.UID, Pod: "orders-0",
			ToPort: port}
	}
	for port, greeting := range map[uint32]string{loopback: "helper", own: "app", six: "helper6"} {
		c, answer := w.toPod(t, to(port))
		require.Equal(t, tunnelpb.Opened_OK, answer.GetResult(), answer.GetMessage())
		_, err := io.WriteString(c, ", hello")
		require.NoError(t, err)
		require.NoError(t, c.CloseWrite())
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Equal(t, greeting+", hello", string(got))
	}
	t.Run("an intercepted port is the app's", func(t *testing.T) {
		c, answer := w.toPod(t, to(appPort))
		require.Equal(t, tunnelpb.Opened_OK, answer.GetResult(), answer.GetMessage())
		_, err := io.WriteString(c, "GET / HTTP/1.1\r\nHost: x\r\nx-user: me\r\nConnection: close\r\n\r\n")
		require.NoError(t, err)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.Contains(t, string(got), "app")
	})
	refused := func(open *tunnelpb.Open, result tunnelpb.Opened_Result, says string) {
		t.Helper()
		_, answer := w.toPod(t, open)
		assert.Equal(t, result, answer.GetResult())
		assert.Equal(t, says, answer.GetMessage())
	}
	refused(to(1), tunnelpb.Opened_REFUSED, "port 1 of pod orders-0: nothing listens on it")
	refused(to(2), tunnelpb.Opened_UNKNOWN,
		"port 2 of pod orders-0: the intercept, or this port of it, has ended")
	port := strconv.Itoa(int(loopback))
	elsewhere, others := to(loopback), to(loopback)
	elsewhere.PodUid, others.InterceptUid = "elsewhere", "others"
	refused(elsewhere, tunnelpb.Opened_UNKNOWN, "port "+port+
		" of pod orders-0: it is not among those that are intercepted on this node")
	refused(others, tunnelpb.Opened_UNKNOWN, "port "+port+
		" of pod orders-0: the intercept, or this port of it, has ended")

	t.Run("a connection ends with what allows it, and only then", func(t *testing.T) {
		ends, stays := to(loopback), to(own)
		ending, _ := w.toPod(t, ends)
		staying, _ := w.toPod(t, stays)
		less := w.wants()
		less.GetTargets()[0].GetRules()[0].ToPod = []uint32{own}
		w.assign(less)
		_, err := io.ReadAll(ending)
		assert.ErrorContains(t, err, "has ended")
		require.NoError(t, staying.CloseWrite())
		got, err := io.ReadAll(staying)
		require.NoError(t, err)
		assert.Equal(t, "app", string(got))
	})
	t.Run("with the pod's end", func(t *testing.T) {
		c, answer := w.toPod(t, to(own))
		require.Equal(t, tunnelpb.Opened_OK, answer.GetResult())
		w.assign()
		_, err := io.ReadAll(c)
		assert.Error(t, err)
	})
}
