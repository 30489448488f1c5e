// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"github.com/google/uuid"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/nodeagent/uplink"
)

// fleet is all node agents. They speak with the manager as real ones do, and say of everything that
// they are to steer that it is.
type fleet struct {
	agents []*agent
	work   sync.WaitGroup

	mu      sync.Mutex
	awaited func(node int, a *agentpb.Assignment) bool
	seen    chan time.Time
}

// agent is one node's. It implements uplink.Pods.
type agent struct {
	fleet   *fleet
	node    int
	changed chan struct{}
	rules   atomic.Int64 // of the last assignment, with a laptop

	mu   sync.Mutex
	last *agentpb.Assignment
}

// newFleet starts agents that connect to the manager as soon as it listens.
func newFleet(ctx context.Context, tokens []string, address, caFile string) (*fleet, error) {
	nodes := len(tokens)
	f := &fleet{agents: make([]*agent, nodes)}
	for n := range nodes {
		a := &agent{fleet: f, node: n, changed: make(chan struct{}, 1)}
		u, err := uplink.New(uplink.Config{
			Manager: address, Security: uplink.Files(caFile, tokens[n]), Log: slog.New(slog.DiscardHandler),
			Hello: func() *agentpb.Hello {
				return &agentpb.Hello{Node: nodeName(n), Version: version.Version,
					Protocol: version.Protocol, Kernel: "6.12.1", Epoch: 1, Boot: "1"}
			},
			Environment: func(context.Context, string, string) ([][]byte, error) { return nil, nil },
		})
		if err != nil {
			return nil, err
		}
		f.agents[n] = a
		f.work.Go(func() {
			defer u.Close()
			_ = u.Run(ctx, a)
		})
	}
	return f, nil
}

// rules counts what all agents steer to laptops.
func (f *fleet) rules() (n int64) {
	for _, a := range f.agents {
		n += a.rules.Load()
	}
	return n
}

// expect returns when the first assignment for which awaited is true arrives.
func (f *fleet) expect(awaited func(node int, a *agentpb.Assignment) bool) <-chan time.Time {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.awaited, f.seen = awaited, make(chan time.Time, 1)
	return f.seen
}

func (f *fleet) look(node int, a *agentpb.Assignment, now time.Time) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.awaited != nil && f.awaited(node, a) {
		f.awaited = nil
		f.seen <- now
	}
}

// Apply receives the manager's assignments.
func (a *agent) Apply(next *agentpb.Assignment) {
	now := time.Now()
	a.fleet.look(a.node, next, now)
	var n int64
	for _, p := range next.GetPods() {
		for _, t := range p.GetTargets() {
			for _, r := range t.GetRules() {
				if r.GetConnected() {
					n++
				}
			}
		}
	}
	a.rules.Store(n)
	a.mu.Lock()
	a.last = next
	a.mu.Unlock()
	select {
	case a.changed <- struct{}{}:
	default:
	}
}

// Report says that everything is steered.
func (a *agent) Report() *agentpb.Report {
	a.mu.Lock()
	defer a.mu.Unlock()
	r := &agentpb.Report{Revision: a.last.GetRevision(),
		Datapath: &agentpb.Datapath{Name: "sk_lookup", Reason: "the kernel has it"}}
	for _, p := range a.last.GetPods() {
		for _, t := range p.GetTargets() {
			for _, rule := range t.GetRules() {
				r.Targets = append(r.Targets, &agentpb.TargetReport{
					PodUid: p.GetUid(), Port: t.GetPort(), InterceptUid: rule.GetInterceptUid(),
					Steering: true, Traffic: &agentpb.Traffic{},
				})
			}
		}
	}
	return r
}

// Changed says when there is something to report.
func (a *agent) Changed() <-chan struct{} { return a.changed }

// Probe has nothing to probe.
func (a *agent) Probe() {}

// parked is how many streams a laptop parks.
const parked = 8

// laptop is the session of one developer's daemon.
type laptop struct {
	key []byte
	id  string
}

func newLaptop(number int) *laptop {
	key := sha256.Sum256(fmt.Append(nil, "key of laptop ", number))
	return &laptop{key: key[:], id: uuid.NewSHA1(uuid.Nil, key[:]).String()}
}

func (l *laptop) keyHash() string {
	sum := sha256.Sum256(l.key)
	return hex.EncodeToString(sum[:])
}

// connect keeps the session until ctx ends. The manager must listen.
func (l *laptop) connect(ctx context.Context, address string, roots *x509.CertPool,
	work *sync.WaitGroup) error {
	conn, err := grpc.NewClient(address,
		append(tunnel.DialOptions(), grpc.WithTransportCredentials(credentials.NewTLS(&tls.Config{
			RootCAs: roots, ServerName: "sidestep-manager",
		})))...)
	if err != nil {
		return err
	}
	clients := clientpb.NewClientsClient(conn)
	shows := metadata.AppendToOutgoingContext(ctx, "sidestep-session-key", hex.EncodeToString(l.key))
	session, err := clients.Session(shows, grpc.WaitForReady(true))
	if err == nil {
		err = session.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{
			Session: l.id, Holder: "ann@laptop", Version: version.Version, Protocol: version.Protocol,
		}}})
	}
	if err == nil {
		_, err = session.Recv() // its hello
	}
	if err != nil {
		_ = conn.Close()
		return err
	}
	for range parked {
		if _, err := clients.Accept(shows); err != nil {
			_ = conn.Close()
			return err
		}
	}
	work.Go(func() {
		defer conn.Close()
		for {
			m, err := session.Recv()
			if err != nil {
				return
			}
			if p := m.GetPing(); p != nil {
				_ = session.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Pong{Pong: p}})
			}
		}
	})
	return nil
}
