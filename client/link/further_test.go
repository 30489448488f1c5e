// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/client/podconn"
)

const patience = 20 * time.Second

// laptop is a Link to a manager, and what has become of it.
type laptop struct {
	*testing.T
	*link.Link
	manager *clienttest.Manager
	stop    func()

	mu     sync.Mutex
	conns  []*conn
	dials  int
	refuse func(dial int) bool // the first is 1
	lines  []link.Line
	served int // times
	said   strings.Builder
}

// conn is a connection that knows its end.
type conn struct {
	net.Conn
	closed atomic.Bool
}

func (c *conn) Close() error {
	c.closed.Store(true)
	return c.Conn.Close()
}

func newLaptop(t *testing.T, refuse func(dial int) bool) *laptop {
	api := clienttest.NewAPIServer(t)
	l := &laptop{T: t, manager: clienttest.NewManager(t, api), refuse: refuse}
	source := kube.NewSource(kube.Access{KubeconfigEnv: api.Kubeconfig(t, "test")})
	route := &link.Route{Source: source, Namespace: clienttest.Namespace, Forward: l.forward}
	l.Link = link.New(link.Config{
		Session: "0f8fad5b-d9cb-469f-a165-70867728950e", Key: make([]byte, 32), Holder: "ann@desk",
		Dial: route.Dial, Serve: l.serve,
		Log: slog.New(slog.NewTextHandler(l, nil)),
		Timing: link.Timing{First: 5 * time.Millisecond, Early: 50 * time.Millisecond,
			Again: 5 * time.Millisecond, Rare: 50 * time.Millisecond},
	})
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { l.Link.Run(ctx); close(ended) }()
	l.stop = func() { cancel(); <-ended }
	t.Cleanup(l.stop)
	return l
}

func (l *laptop) forward(ctx context.Context, c *kube.Cluster, namespace, pod string,
	port int) (net.Conn, error) {
	l.mu.Lock()
	l.dials++
	refused := l.refuse(l.dials)
	l.mu.Unlock()
	if refused {
		return nil, errors.New("one is enough")
	}
	raw, err := podconn.Dial(ctx, c.Config, namespace, pod, port)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.conns = append(l.conns, &conn{Conn: raw})
	return l.conns[len(l.conns)-1], nil
}

func (l *laptop) serve(ctx context.Context, _ clientpb.ClientsClient, further <-chan link.Line,
	_ <-chan uint32) {
	l.mu.Lock()
	l.served++
	l.mu.Unlock()
	for {
		select {
		case line := <-further:
			l.mu.Lock()
			l.lines = append(l.lines, line)
			l.mu.Unlock()
		case <-ctx.Done():
			return
		}
	}
}

// Write takes the log.
func (l *laptop) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.said.Write(p)
}

// is waits until something is so; the mutex is held meanwhile.
func (l *laptop) is(so func() bool, what string) {
	l.Helper()
	require.Eventually(l, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return so()
	}, patience, time.Millisecond, what)
}

// alive counts the lines that are.
func (l *laptop) alive() (n int) {
	for _, line := range l.lines {
		if line.Context.Err() == nil {
			n++
		}
	}
	return n
}

// open counts the connections that are.
func (l *laptop) open() (n int) {
	for _, c := range l.conns {
		if !c.closed.Load() {
			n++
		}
	}
	return n
}

func never(int) bool { return false }

func TestThereAreFurtherConnections(t *testing.T) {
	l := newLaptop(t, never)
	l.is(func() bool { return l.alive() == link.Further }, "they come")
	assert.Len(t, l.manager.Hellos(), 1, "and are of the same session")

	// One of them breaks.
	l.mu.Lock()
	second := l.conns[1]
	l.mu.Unlock()
	require.NoError(t, second.Close())
	l.is(func() bool { return len(l.lines) == link.Further+1 && l.alive() == link.Further },
		"another takes its place")
	l.mu.Lock()
	assert.Equal(t, link.Further+1, l.open())
	assert.Equal(t, 1, l.served, "the first one went on")
	before := append([]link.Line(nil), l.lines...)
	first := l.conns[0]
	l.mu.Unlock()
	state, _ := l.State()
	assert.True(t, state.Connected)

	// The first one breaks.
	require.NoError(t, first.Close())
	for _, line := range before {
		select {
		case <-line.Context.Done():
		case <-time.After(patience):
			require.Fail(t, "a line outlives the first connection")
		}
	}
	l.is(func() bool { return l.served == 2 && l.open() == 1 }, "the link comes back")
	assert.Never(t, func() bool {
		l.mu.Lock()
		defer l.mu.Unlock()
		return len(l.conns) > len(before)+2
	}, 100*time.Millisecond, 5*time.Millisecond, "without others, since the last one was short")
}

func TestFurtherConnectionsThatCannotBeHadAreNotMissed(t *testing.T) {
	l := newLaptop(t, func(dial int) bool { return dial > 1 })
	l.is(func() bool { return l.dials > 1+4*link.Further }, "it tries again")
	state, _ := l.State()
	assert.True(t, state.Connected)
	assert.Len(t, l.manager.Hellos(), 1)
	l.stop()
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.Equal(t, 1, strings.Count(l.said.String(), "one is enough"), "it says so once: %s", l.said.String())
	assert.Zero(t, l.open())
}

func TestOneThatComesLateIsTaken(t *testing.T) {
	l := newLaptop(t, func(dial int) bool { return dial > 1 && dial < 12 })
	l.is(func() bool { return l.alive() == link.Further }, "once they can be had they are")
}

func TestFurtherConnectionsTrustTheAuthorityThatTheManagerHasNow(t *testing.T) {
	l := newLaptop(t, never)
	l.is(func() bool { return l.alive() == link.Further }, "they come")
	l.manager.Rotate(t)
	l.mu.Lock()
	second, before := l.conns[1], len(l.lines)
	l.mu.Unlock()
	require.NoError(t, second.Close())
	l.is(func() bool { return len(l.lines) > before && l.alive() == link.Further }, "another takes its place")
	l.mu.Lock()
	defer l.mu.Unlock()
	assert.Equal(t, 1, l.served, "the first one went on")
}

func TestNothingIsLeft(t *testing.T) {
	for _, lines := range []int{0, link.Further} {
		l := newLaptop(t, never)
		l.is(func() bool { return l.alive() >= lines }, "they come")
		l.stop()
		l.is(func() bool { return l.open() == 0 && l.alive() == 0 }, "all end")
		require.Eventually(t, func() bool {
			stacks := make([]byte, 1<<20)
			return !strings.Contains(string(stacks[:runtime.Stack(stacks, true)]), "link.(*Link)")
		}, patience, 10*time.Millisecond, "no goroutine is left")
	}
}
