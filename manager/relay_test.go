// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"context"
	"crypto/rand"
	"io"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// intercepted is a manager with an active intercept of alice on node-1.
func intercepted(t *testing.T, parked int) (*running, *nodeAgent, *laptop, string) {
	t.Helper()
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	l := m.laptop(t, "alice", parked)
	k.create(t, asks("alice", "http", "tcp"))
	ic := k.until(t, "alice", v1alpha1.StateActive)
	return m, a, l, string(ic.UID)
}

func TestTunnelCarriesBytesBothWaysAndTheirEnds(t *testing.T) {
	for _, parked := range []int{1, 0} { // with none parked the laptop is asked for one
		_, a, l, uid := intercepted(t, parked)
		go l.echo()
		c, _ := a.open(t, uid)
		sent := make([]byte, 3<<20)
		_, err := rand.Read(sent)
		require.NoError(t, err)
		go func() {
			_, _ = c.Write(sent) // before the answer: the first bytes travel with OPEN
			_ = c.CloseWrite()
		}()
		assert.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
		got, err := io.ReadAll(c)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(sent, got), "%d bytes sent, %d came back", len(sent), len(got))
	}
}

func TestManyTunnelsAtOnce(t *testing.T) {
	m, a, l, uid := intercepted(t, 4)
	go l.echo()
	done := make(chan error, 200)
	for range cap(done) {
		go func() {
			c, _ := a.open(t, uid)
			_, err := c.Write([]byte("hello"))
			if err == nil {
				err = c.CloseWrite()
			}
			if err == nil {
				_, err = io.ReadAll(c)
			}
			done <- err
		}()
	}
	for range cap(done) {
		require.NoError(t, <-done)
	}
	m.measures(t, "sidestep_manager_tunnels_open 0",
		`sidestep_manager_relayed_bytes_total{to="laptop"} 1000`,
		`sidestep_manager_tunnels_total{result="RELAYED"} 200`)
}

// After a restart of the manager all tunnels come at once, before a token has been reviewed.
func TestANodeAgentThatComesBackWithManyCallsIsServed(t *testing.T) {
	m, a, l, uid := intercepted(t, 4)
	go l.echo()
	a.conn = m.dial(t, "authorization", "Bearer node/node-1")
	answers := make(chan tunnelpb.Opened_Result, 200)
	for range cap(answers) {
		go func() {
			c, _ := a.open(t, uid)
			answer, err := c.Opened(t.Context())
			assert.NoError(t, err)
			answers <- answer.GetResult()
		}()
	}
	for range cap(answers) {
		assert.Equal(t, tunnelpb.Opened_OK, <-answers)
	}
	m.measures(t, `sidestep_manager_unproven_refused_total{bound="calls"} 0`)
}

func TestOpenTellsTheLaptopWhichConnectionItIs(t *testing.T) {
	_, a, l, uid := intercepted(t, 1)
	c, _ := a.open(t, uid)
	got := <-l.opens
	assert.Equal(t, uid, got.open.InterceptUid)
	assert.Equal(t, "p1", got.open.Pod)
	assert.Equal(t, ns+"/alice", got.open.InterceptNamespace+"/"+got.open.InterceptName,
		"the node agent has not said so")
	require.NoError(t, got.conn.Answer(tunnelpb.Opened_REFUSED, "nothing listens on 127.0.0.1:9000"))
	answer := opened(t, c)
	assert.Equal(t, tunnelpb.Opened_REFUSED, answer.Result)
	assert.Equal(t, "nothing listens on 127.0.0.1:9000", answer.Message)
}

func TestTunnelThatCannotBeDeliveredIsRefusedAtOnce(t *testing.T) {
	t.Run("an intercept that the manager does not know", func(t *testing.T) {
		_, a, _, _ := intercepted(t, 1)
		c, _ := a.open(t, "someone-else")
		assert.Equal(t, tunnelpb.Opened_UNKNOWN, opened(t, c).Result)
	})
	t.Run("an intercept of pods on other nodes", func(t *testing.T) {
		m, _, l, uid := intercepted(t, 1)
		elsewhere := m.agent(t, "node-2")
		c, _ := elsewhere.open(t, uid)
		assert.Equal(t, tunnelpb.Opened_UNKNOWN, opened(t, c).Result)
		assert.Empty(t, l.opens)
	})
	t.Run("an intercept that has been refused", func(t *testing.T) {
		m, a, _, _ := intercepted(t, 1)
		l := m.laptop(t, "bob", 1)
		m.kube.create(t, asks("bob", "http", "tcp"))
		refused := m.kube.until(t, "bob", v1alpha1.StateConflict)
		c, _ := a.open(t, string(refused.UID))
		assert.Equal(t, tunnelpb.Opened_UNKNOWN, opened(t, c).Result)
		assert.Empty(t, l.opens)
	})
	t.Run("a laptop that is away, beside one with another key", func(t *testing.T) {
		m, a, l, uid := intercepted(t, 1)
		thief := m.laptop(t, "mallory", 4)
		l.cancel()
		a.has(t, "p1:8080=alice!")
		began := time.Now()
		c, _ := a.open(t, uid)
		assert.Equal(t, tunnelpb.Opened_NO_CLIENT, opened(t, c).Result)
		assert.Less(t, time.Since(began), time.Second)
		assert.Empty(t, thief.opens)
	})
	t.Run("a laptop that parks no streams", func(t *testing.T) {
		_, a, _, uid := intercepted(t, -1)
		began := time.Now()
		c, _ := a.open(t, uid)
		assert.Equal(t, tunnelpb.Opened_TIMEOUT, opened(t, c).Result)
		assert.InDelta(t, 1.5, time.Since(began).Seconds(), 0.5)
	})
}

func TestDeathOnOneSideResetsTheOther(t *testing.T) {
	for _, tc := range []struct {
		name  string
		kill  func(a *nodeAgent, l *laptop, cancel context.CancelFunc, taken accepted)
		agent bool // it is the node agent's side that is left
	}{
		{"the laptop's connection breaks",
			func(_ *nodeAgent, l *laptop, _ context.CancelFunc, _ accepted) { _ = l.conn.Close() }, true},
		{"the laptop resets", func(_ *nodeAgent, _ *laptop, _ context.CancelFunc, taken accepted) {
			taken.conn.Reset("refused by the app")
		}, true},
		{"the node agent's connection breaks",
			func(a *nodeAgent, _ *laptop, _ context.CancelFunc, _ accepted) { _ = a.conn.Close() }, false},
		{"the node agent's call is cancelled",
			func(_ *nodeAgent, _ *laptop, cancel context.CancelFunc, _ accepted) { cancel() }, false},
	} {
		t.Run(tc.name, func(t *testing.T) {
			m, a, l, uid := intercepted(t, 1)
			c, cancel := a.open(t, uid)
			taken := <-l.opens
			require.NoError(t, taken.conn.Answer(tunnelpb.Opened_OK, ""))
			require.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
			_, err := c.Write([]byte("x"))
			require.NoError(t, err)
			_, err = taken.conn.Read(make([]byte, 1))
			require.NoError(t, err)

			tc.kill(a, l, cancel, taken)
			left := io.Reader(taken.conn)
			if tc.agent {
				left = c
			}
			_, err = left.Read(make([]byte, 1))
			assert.ErrorIs(t, err, syscall.ECONNRESET)
			m.measures(t, "sidestep_manager_tunnels_open 0")
		})
	}
}

func TestLaptopThatConnectsAgainTakesItsPlaceWithoutAGap(t *testing.T) {
	m, a, first, uid := intercepted(t, 2)
	inUse, _ := a.open(t, uid)
	taken := <-first.opens
	require.NoError(t, taken.conn.Answer(tunnelpb.Opened_OK, ""))

	second := m.laptop(t, "alice", 1)
	assert.Equal(t, codes.Aborted, status.Code(<-first.ended))
	c, _ := a.open(t, uid)
	got := <-second.opens
	require.NoError(t, got.conn.Answer(tunnelpb.Opened_OK, ""))
	assert.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)

	// The connection that was open lives on as long as its stream does.
	_, err := inUse.Write([]byte("x"))
	require.NoError(t, err)
	_, err = taken.conn.Read(make([]byte, 1))
	require.NoError(t, err)
	for _, assignment := range a.all {
		assert.NotContains(t, describe(assignment), "p1:8080=alice!", "it was never away")
	}
}

func TestStoppingManagerLetsTunnelsEnd(t *testing.T) {
	m, a, l, uid := intercepted(t, 2)
	c, _ := a.open(t, uid)
	taken := <-l.opens
	require.NoError(t, taken.conn.Answer(tunnelpb.Opened_OK, ""))
	require.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)

	m.stop()
	assert.Equal(t, codes.Unavailable, status.Code(<-a.ended))
	assert.Equal(t, codes.Unavailable, status.Code(<-l.ended))
	_, err := c.Write([]byte("last words"))
	require.NoError(t, err)
	require.NoError(t, c.CloseWrite())
	got, err := io.ReadAll(taken.conn)
	require.NoError(t, err)
	assert.Equal(t, "last words", string(got))
	require.NoError(t, taken.conn.CloseWrite())
	began := time.Now()
	m.end()
	assert.Less(t, time.Since(began), drain, "nobody had to be cut off")
	assert.Equal(t, v1alpha1.StateActive, m.kube.intercept(t, "alice").Status.State)
}

func TestWhoMayCall(t *testing.T) {
	k := newKube()
	m := start(t, k)
	attach := func(token string, hello *agentpb.Hello) error {
		pairs := []string{}
		if token != "" {
			pairs = []string{"authorization", "Bearer " + token}
		}
		stream, err := agentpb.NewAgentsClient(m.dial(t, pairs...)).Attach(t.Context())
		require.NoError(t, err)
		_ = stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: hello}})
		_, err = stream.Recv()
		return err
	}
	good := &agentpb.Hello{Node: "node-1", Protocol: 1}
	assert.Equal(t, codes.Unauthenticated, status.Code(attach("", good)))
	assert.Equal(t, codes.Unauthenticated, status.Code(attach("forged", good)))
	assert.Equal(t, codes.PermissionDenied, status.Code(attach("node/node-2", good)), "a token of another node")
	assert.ErrorContains(t, attach("node/node-1", &agentpb.Hello{Node: "node-1", Protocol: 2}),
		"install the same version of both")
	assert.NoError(t, attach("node/node-1", good))
	before := k.reviews.Load()
	assert.NoError(t, attach("node/node-1", good))
	assert.Equal(t, before, k.reviews.Load(), "a token is not reviewed again at once")

	stream, err := agentpb.NewAgentsClient(m.dial(t)).Tunnel(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	assert.Equal(t, codes.Unauthenticated, status.Code(err))

	session := func(key string) error {
		stream, err := clientpb.NewClientsClient(m.dial(t, "sidestep-session-key", key)).Session(t.Context())
		require.NoError(t, err)
		_ = stream.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{Session: "nonsense", Protocol: 1}}})
		_, err = stream.Recv()
		return err
	}
	assert.Equal(t, codes.Unauthenticated, status.Code(session("abcd")), "too short a key")
	assert.ErrorContains(t, session("00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"),
		"not a UUID")
}
