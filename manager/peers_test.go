// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"encoding/hex"
	"errors"
	"io"
	"slices"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// nodeAgent plays a node agent that steers whatever it is told, unless steer says otherwise.
type nodeAgent struct {
	conn   *grpc.ClientConn
	stream grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.Assignment]
	cancel context.CancelFunc

	mu    sync.Mutex
	last  *agentpb.Assignment
	all   []*agentpb.Assignment
	steer func(*agentpb.TargetReport)
	ended chan error
}

func (r *running) agent(t *testing.T, node string, steer ...func(*agentpb.TargetReport)) *nodeAgent {
	t.Helper()
	return r.agentWith(t, node, "node/"+node, steer...)
}

func (r *running) agentWith(t *testing.T, node, token string, steer ...func(*agentpb.TargetReport)) *nodeAgent {
	t.Helper()
	return r.agentSaying(t, &agentpb.Hello{Node: node, Protocol: 1}, token, steer...)
}

// agentBorn is an agent that says when it started.
func (r *running) agentBorn(t *testing.T, node string, epoch uint64) *nodeAgent {
	t.Helper()
	return r.agentSaying(t, &agentpb.Hello{Node: node, Protocol: 1, Epoch: epoch, Boot: "this boot"},
		"node/"+node)
}

func (r *running) agentSaying(t *testing.T, hello *agentpb.Hello, token string,
	steer ...func(*agentpb.TargetReport)) *nodeAgent {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	a := &nodeAgent{conn: r.dial(t, "authorization", "Bearer "+token), cancel: cancel,
		ended: make(chan error, 1), steer: func(*agentpb.TargetReport) {}}
	if len(steer) > 0 {
		a.steer = steer[0]
	}
	var err error
	a.stream, err = agentpb.NewAgentsClient(a.conn).Attach(ctx)
	require.NoError(t, err)
	// io.EOF: the call has been refused already.
	if err := a.stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: hello}}); err != io.EOF {
		require.NoError(t, err)
	}
	go func() { a.ended <- a.serve() }()
	return a
}

func (a *nodeAgent) serve() error {
	for {
		next, err := a.stream.Recv()
		if err != nil {
			return err
		}
		a.mu.Lock()
		a.last = next
		a.all = append(a.all, next)
		a.mu.Unlock()
		if err := a.report(); err != nil {
			return err
		}
	}
}

func (a *nodeAgent) report() error {
	a.mu.Lock()
	defer a.mu.Unlock()
	report := &agentpb.Report{Revision: a.last.Revision}
	for _, p := range a.last.Pods {
		for _, target := range slices.Concat(p.Targets, p.UdpTargets) {
			for _, rule := range slices.Concat(target.Rules, target.Wiretaps) {
				tr := &agentpb.TargetReport{PodUid: p.Uid, Port: target.Port,
					InterceptUid: rule.InterceptUid, Steering: true}
				a.steer(tr)
				report.Targets = append(report.Targets, tr)
			}
		}
	}
	return a.stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Report{Report: report}})
}

// targets lists "pod:port=intercept", and "pod:port<wiretap", of the last assignment, with "!" for
// a laptop that is away; nil before the first.
func (a *nodeAgent) targets() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.last == nil {
		return nil
	}
	return describe(a.last)
}

func describe(assignment *agentpb.Assignment) []string {
	all := []string{}
	for _, p := range assignment.Pods {
		for _, target := range p.Targets {
			for _, rule := range target.Rules {
				s := p.Name + ":" + itoa(target.Port) + "=" + rule.InterceptName
				if !rule.Connected {
					s += "!"
				}
				all = append(all, s)
			}
			for _, rule := range target.Wiretaps {
				s := p.Name + ":" + itoa(target.Port) + "<" + rule.InterceptName
				if !rule.Connected {
					s += "!"
				}
				all = append(all, s)
			}
		}
	}
	return all
}

func itoa(n uint32) string {
	if n < 10 {
		return string(rune('0' + n))
	}
	return itoa(n/10) + itoa(n%10)
}

func (a *nodeAgent) has(t *testing.T, want ...string) {
	t.Helper()
	want = append([]string{}, want...)
	slices.Sort(want)
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		have := a.targets() // by UIDs, which an API server chooses at random
		slices.Sort(have)
		assert.Equal(c, want, have)
	}, patient, often)
}

// open begins a tunnel for an intercept.
func (a *nodeAgent) open(t *testing.T, interceptUID string) (*tunnel.Conn, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := agentpb.NewAgentsClient(a.conn).Tunnel(ctx)
	require.NoError(t, err)
	c, err := tunnel.Open(stream, &tunnelpb.Open{InterceptUid: interceptUID, Pod: "p1"}, tunnel.OnClose(cancel))
	require.NoError(t, err)
	return c, cancel
}

// opened returns the answer to a tunnel.
func opened(t *testing.T, c *tunnel.Conn) *tunnelpb.Opened {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), patient)
	defer cancel()
	answer, err := c.Opened(ctx)
	require.NoError(t, err)
	return answer
}

// laptop plays a client. It parks as many streams as it is asked for, and passes on those that are
// taken.
type laptop struct {
	conn    *grpc.ClientConn
	key     string
	session grpc.BidiStreamingClient[clientpb.ClientMessage, clientpb.ManagerMessage]
	cancel  context.CancelFunc
	mute    chan struct{} // closed: it answers nothing any more
	ended   chan error
	opens   chan accepted
	hello   *clientpb.ManagerHello
	more    bool // it opens streams when it is asked for them
}

type accepted struct {
	open *tunnelpb.Open
	conn *tunnel.Conn
}

func (r *running) laptop(t *testing.T, name string, parked int) *laptop {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	l := &laptop{
		conn: r.dial(t, "sidestep-session-key", hex.EncodeToString(sessionKey(name))),
		key:  hex.EncodeToString(sessionKey(name)), cancel: cancel,
		mute: make(chan struct{}), ended: make(chan error, 1), opens: make(chan accepted, 100),
		more: parked >= 0,
	}
	var err error
	l.session, err = clientpb.NewClientsClient(l.conn).Session(ctx)
	require.NoError(t, err)
	require.NoError(t, l.session.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{
			Session: "0b7a3f5e-9d0c-4b5e-8a52-6f2d1c0e9a11", Holder: name + "@laptop", Protocol: 1,
		}}}))
	first, err := l.session.Recv()
	require.NoError(t, err)
	l.hello = first.GetHello()
	require.NotNil(t, l.hello)
	go func() { l.ended <- l.serve(ctx) }()
	for range parked {
		go l.accept(ctx)
	}
	return l
}

func (l *laptop) serve(ctx context.Context) error {
	for {
		m, err := l.session.Recv()
		if err != nil {
			return err
		}
		select {
		case <-l.mute:
			continue
		default:
		}
		if p := m.GetPing(); p != nil {
			_ = l.session.Send( // where it fails, Recv says why
				&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Pong{Pong: p}})
		}
		if l.more {
			for range m.GetWantAccepts() {
				go l.accept(ctx)
			}
		}
	}
}

func (l *laptop) accept(ctx context.Context) {
	ctx, cancel := context.WithCancel(ctx)
	stream, err := clientpb.NewClientsClient(l.conn).Accept(ctx)
	if err != nil {
		cancel()
		return
	}
	open, conn, err := tunnel.Accept(stream, tunnel.OnClose(cancel))
	if err != nil {
		cancel()
		return
	}
	l.opens <- accepted{open, conn}
}

// echo answers every connection and sends back what comes.
func (l *laptop) echo() {
	for a := range l.opens {
		go func() {
			_ = a.conn.Answer(tunnelpb.Opened_OK, "")
			_, err := io.Copy(a.conn, a.conn)
			_ = errors.Join(err, a.conn.CloseWrite())
		}()
	}
}
