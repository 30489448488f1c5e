// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/tunnel"
)

// parks makes the node agent accept connections to pods, which echo what they receive.
func (a *nodeAgent) parks(t *testing.T) (opens <-chan *tunnelpb.Open, stop context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	taken := make(chan *tunnelpb.Open, 1000)
	go func() {
		for ctx.Err() == nil {
			stream, err := agentpb.NewAgentsClient(a.conn).AcceptToPod(ctx)
			if err != nil {
				return
			}
			open, conn, err := tunnel.Accept(stream)
			if err != nil {
				continue
			}
			taken <- open
			go func() {
				_ = conn.Answer(tunnelpb.Opened_OK, "")
				_, _ = io.Copy(conn, conn)
				_ = conn.CloseWrite()
			}()
		}
	}()
	return taken, cancel
}

// toPod begins a connection to a port of a pod.
func (l *laptop) toPod(t *testing.T, ic *v1alpha1.Intercept, port uint32) *tunnel.Conn {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	stream, err := clientpb.NewClientsClient(l.conn).ToPod(ctx)
	require.NoError(t, err)
	c, err := tunnel.Open(stream, &tunnelpb.Open{
		InterceptUid: string(ic.UID), InterceptNamespace: ic.Namespace, InterceptName: ic.Name,
		ToPort: port, PodUid: "of my choice",
	}, tunnel.OnClose(cancel))
	require.NoError(t, err)
	return c
}

// came waits for a connection to a pod.
func came(t *testing.T, opens <-chan *tunnelpb.Open, to *corev1.Pod) *tunnelpb.Open {
	t.Helper()
	timeout := time.After(patient)
	for {
		select {
		case open := <-opens:
			if open.GetPodUid() == string(to.UID) {
				return open
			}
		case <-timeout:
			require.Fail(t, "no connection came")
		}
	}
}

// reaching is an intercept with a port of its pods.
func reaching(holder string) *v1alpha1.Intercept {
	ic := asks(holder, "http", holder)
	ic.Spec.ToPod = []int32{8081}
	return ic
}

func TestALaptopReachesAPortOfThePodThatItIntercepts(t *testing.T) {
	k := newKube()
	m := start(t, k)
	rs := k.shop(t)
	young, old := k.runs(t, k.pod(t, rs, "p1", "node-1"), time.Minute),
		k.runs(t, k.pod(t, rs, "p2", "node-2"), time.Hour)
	one, two := m.agent(t, "node-1"), m.agent(t, "node-2")
	ones, _ := one.parks(t)
	twos, stop := two.parks(t)
	l := m.laptop(t, "alice", 0)
	k.create(t, reaching("alice"))
	ic := k.until(t, "alice", v1alpha1.StateActive)
	require.Eventually(t, func() bool {
		return k.intercept(t, "alice").Status.Coverage == "2/2" &&
			m.controller.Pod(ns, "p2").CreationTimestamp.Before(&young.CreationTimestamp)
	}, patient, often)

	c := l.toPod(t, ic, 8081)
	sent := make([]byte, 1<<20)
	_, err := rand.Read(sent)
	require.NoError(t, err)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	assert.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(sent, got))
	open := came(t, twos, old) // the oldest, whichever the laptop names
	assert.Equal(t, uint32(8081), open.GetToPort())

	t.Run("many at once", func(t *testing.T) {
		results := make(chan error, 100)
		for range cap(results) {
			go func() {
				c := l.toPod(t, ic, 8081)
				_, _ = c.Write([]byte("hello"))
				_ = c.CloseWrite()
				_, err := io.ReadAll(c)
				results <- err
			}()
		}
		for range cap(results) {
			assert.NoError(t, <-results)
		}
		m.measures(t, "sidestep_manager_to_pod_connections_open 0")
	})
	t.Run("another pod, where the node agent of the first takes none", func(t *testing.T) {
		stop()
		c := l.toPod(t, ic, 8081)
		assert.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
		came(t, ones, young)
		c.Reset("done")
	})
	t.Run("the pod that has come instead", func(t *testing.T) {
		require.NoError(t, k.Delete(t.Context(), young))
		require.NoError(t, k.Delete(t.Context(), old))
		next := k.pod(t, rs, "p3", "node-1")
		one.has(t, "p3:8080=alice")
		c := l.toPod(t, ic, 8081)
		assert.Equal(t, tunnelpb.Opened_OK, opened(t, c).Result)
		came(t, ones, next)
		c.Reset("done")
	})
}

func TestNobodyReachesPodsThatAreNotHisToReach(t *testing.T) {
	k := newKube()
	m := start(t, k)
	k.pod(t, k.shop(t), "p1", "node-1")
	a := m.agent(t, "node-1")
	opens, _ := a.parks(t)
	alice, bob := m.laptop(t, "alice", 0), m.laptop(t, "bob", 0)
	k.create(t, reaching("alice"))
	ic := k.until(t, "alice", v1alpha1.StateActive)
	refused := func(c *tunnel.Conn, says string) {
		t.Helper()
		answer := opened(t, c)
		assert.Equal(t, tunnelpb.Opened_UNKNOWN, answer.Result)
		assert.Contains(t, answer.Message, says)
		assert.Empty(t, opens)
	}
	refused(bob.toPod(t, ic, 8081), "no such intercept")
	refused(alice.toPod(t, &v1alpha1.Intercept{}, 8081), "no such intercept")
	refused(alice.toPod(t, ic, 22), "port 22 is not among those")

	overlaps := reaching("bob")
	overlaps.Spec.HTTP = ic.Spec.HTTP
	k.create(t, overlaps)
	k.until(t, "bob", v1alpha1.StateConflict)
	refused(bob.toPod(t, k.intercept(t, "bob"), 8081), "no such intercept")

	stranger, err := clientpb.NewClientsClient(m.dial(t, "sidestep-session-key",
		hex.EncodeToString(sessionKey("stranger")))).ToPod(t.Context())
	require.NoError(t, err)
	_, err = stranger.Recv()
	assert.Equal(t, codes.FailedPrecondition, status.Code(err))
	require.NoError(t, k.Delete(t.Context(), k.intercept(t, "alice")))
	a.has(t, "p1:8080=bob")
	refused(alice.toPod(t, ic, 8081), "no such intercept")
}

func TestNodeAgentsThatDoNotShowTheirTokenParkNothing(t *testing.T) {
	m := start(t, newKube())
	m.ready(t)
	conn := m.dial(t, "authorization", "Bearer forged")
	stream, err := agentpb.NewAgentsClient(conn).AcceptToPod(t.Context())
	require.NoError(t, err)
	_, err = stream.Recv()
	assert.Equal(t, codes.Unauthenticated, status.Code(err))
}
