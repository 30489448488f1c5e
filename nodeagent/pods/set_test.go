// SPDX-License-Identifier: Apache-2.0

package pods_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/pods"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// kernel is a node without namespaces: what would be steered is dialled at the listener itself.
type kernel struct {
	mu       sync.Mutex
	missing  map[string]bool // UIDs of pods that cannot be found
	gone     map[string]bool // UIDs of pods that have ended
	deaf     bool            // programs steer nothing
	attached map[uint64]*program
	attaches int
	refuse   error // why nothing can be attached
	loads    int
	dials    map[uint16]int // probes of ports
}

func (k *kernel) locked(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn()
}

func (k *kernel) Find(uid string, _ []netip.Addr) (pods.Namespace, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.missing[uid] {
		return nil, errors.New("not there")
	}
	return &namespace{kernel: k, inode: uint64(uid[0])}, nil
}

func (k *kernel) Alive(uid string, _ netns.ID) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return !k.gone[uid]
}

func (k *kernel) Datapath() (steer.Datapath, string) { return steer.SkLookup, "" }

func (k *kernel) Load() (pods.Program, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.loads++
	return &program{kernel: k, targets: map[netip.AddrPort]bool{}}, nil
}

func (k *kernel) Sweep(func(uint64) bool) error { return nil }

// noClients is a node on which apps cannot be told who their clients are.
type noClients struct{}

func (noClients) Attach(string, netns.ID) (pods.Introducer, error) {
	return nil, errors.New("there are no control groups")
}

// Open is the tunnels' side: there is no manager.
func (k *kernel) Open(context.Context, *tunnelpb.Open) (*tunnel.Conn, error) {
	return nil, errors.New("the manager is away")
}

type namespace struct {
	*kernel
	inode uint64
}

func (n *namespace) Gateways() ([]netip.Addr, error) { return nil, nil }
func (n *namespace) Inode() uint64                   { return n.inode }
func (n *namespace) ID() netns.ID                    { return netns.ID{Inode: n.inode} }
func (n *namespace) Control(func(int) error) error   { return nil }
func (n *namespace) Close() error                    { return nil }
func (n *namespace) Do(fn func() error) error        { return fn() }
func (n *namespace) Listen(ip netip.Addr) (*net.TCPListener, error) {
	return net.ListenTCP("tcp", net.TCPAddrFromAddrPort(netip.AddrPortFrom(ip, 0)))
}

func (n *namespace) BeginAs(netip.Addr, netip.AddrPort, bool, func(int)) (*podnet.Begun, error) {
	return nil, errors.New("there is no app")
}

func (n *namespace) Dial(_ context.Context, from netip.Addr, to netip.AddrPort,
	bound func(netip.AddrPort)) (*net.TCPConn, error) {
	n.mu.Lock()
	n.dials[to.Port()]++
	p := n.kernel.attached[n.inode]
	steered := p != nil && p.targets[to] && !n.deaf
	n.mu.Unlock()
	if !steered {
		return nil, errors.New("connection refused by the app")
	}
	local := net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))
	l, err := net.ListenTCP("tcp", local) // finds a free port
	if err != nil {
		return nil, err
	}
	local.Port = l.Addr().(*net.TCPAddr).Port
	_ = l.Close()
	bound(local.AddrPort())
	d := net.Dialer{LocalAddr: local}
	c, err := d.Dial("tcp", p.listener.Addr().String())
	if err != nil {
		return nil, err
	}
	return c.(*net.TCPConn), nil
}

type program struct {
	kernel   *kernel
	listener *net.TCPListener
	targets  map[netip.AddrPort]bool
	inode    uint64
}

func (p *program) SetListener(l *net.TCPListener) error {
	p.listener = l
	return nil
}

func (p *program) Add(a netip.AddrPort) error {
	p.kernel.locked(func() { p.targets[a] = true })
	return nil
}

func (p *program) Remove(a netip.AddrPort) error {
	p.kernel.locked(func() { delete(p.targets, a) })
	return nil
}

func (p *program) Attach(ns steer.Namespace) (err error) {
	p.kernel.locked(func() {
		p.kernel.attaches++
		if err = p.kernel.refuse; err == nil {
			p.inode = ns.Inode()
			p.kernel.attached[p.inode] = p
		}
	})
	return err
}

func (p *program) Detach() error {
	p.kernel.locked(func() {
		if p.kernel.attached[p.inode] == p {
			delete(p.kernel.attached, p.inode)
		}
	})
	return nil
}

func (p *program) Outcomes() (map[bpf.Outcome]uint64, error) { return nil, nil }

// Datagrams says that this kernel steers none.
func (p *program) Datagrams() error {
	return errors.New(
		"there is no UDP here")
}
func (p *program) DatagramOutcomes() (map[bpf.Outcome]uint64, error) { return nil, nil }
func (p *program) DatagramsProbed() (uint64, error)                  { return 0, nil }
func (p *program) SetDatagrams(*net.UDPConn) error                   { return nil }
func (p *program) AddDatagrams(netip.AddrPort) error                 { return nil }
func (p *program) RemoveDatagrams(netip.AddrPort) error              { return nil }

func (p *program) Close() error { return nil }

func newSet(t *testing.T) (*kernel, *pods.Set) { return newSetProbing(t, 50*time.Millisecond) }

func newSetProbing(t *testing.T, every time.Duration) (*kernel, *pods.Set) {
	k := &kernel{missing: map[string]bool{}, gone: map[string]bool{}, attached: map[uint64]*program{},
		dials: map[uint16]int{}}
	s := pods.New(pods.Config{
		Finder: k, Steering: k, Clients: noClients{}, Tunnels: k, Log: slog.New(slog.DiscardHandler),
		Serve:      func(_ context.Context, c *net.TCPConn, _ *proxy.Target) { _ = c.Close() },
		ProbeEvery: every, WatchEvery: 20 * time.Millisecond, Linger: 50 * time.Millisecond,
	})
	t.Cleanup(func() { assert.NoError(t, s.Close(context.Background())) })
	return k, s
}

// assign gives the pods one after the other, each with an intercept of port 80 that has no laptop.
func assign(s *pods.Set, revision uint64, uids ...string) {
	a := &agentpb.Assignment{Revision: revision}
	for _, uid := range uids {
		a.Pods = append(a.Pods, &agentpb.Pod{
			Uid: uid, Namespace: "shop", Name: uid, Ips: []string{"127.0.0.1"},
			Targets: []*agentpb.Target{{Port: 80, Rules: []*agentpb.Rule{{InterceptUid: "i"}}}},
		})
	}
	s.Apply(a)
}

// steering lists the pods that are reported as steering.
func steering(s *pods.Set) (uids []string) {
	for _, r := range s.Report().GetTargets() {
		if r.GetSteering() {
			uids = append(uids, r.GetPodUid())
		}
	}
	return uids
}

func message(s *pods.Set, uid string) string {
	for _, r := range s.Report().GetTargets() {
		if r.GetPodUid() == uid {
			return r.GetMessage()
		}
	}
	return ""
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 30*time.Second, 5*time.Millisecond, what)
}

func TestPodThatFailsHoldsUpNoOtherAndIsTriedAgain(t *testing.T) {
	k, s := newSet(t)
	k.missing["b"] = true
	assert.False(t, s.Assigned(), "before the first assignment")
	assign(s, 1, "a", "b", "c")
	eventually(t, "the others are steered",
		func() bool { return slices.Equal(steering(s), []string{"a", "c"}) })
	eventually(t, "every pod was tried", s.Assigned)
	assert.Contains(t, message(s, "b"), "not there")
	k.locked(func() { delete(k.missing, "b") })
	eventually(t, "it is there now", func() bool { return slices.Equal(steering(s), []string{"a", "b", "c"}) })
	assert.EqualValues(t, 1, s.Report().GetRevision())
}

func TestPodsThatAreNotAssignedAreLetGo(t *testing.T) {
	k, s := newSet(t)
	assign(s, 1, "a", "b")
	eventually(t, "steered", func() bool { return len(steering(s)) == 2 })
	assign(s, 2, "b")
	eventually(t, "detached", func() (ok bool) {
		k.locked(func() { ok = len(k.attached) == 1 })
		return ok
	})
	assert.Equal(t, []string{"b"}, steering(s), "the other was not touched")
	assign(s, 3, "a", "b")
	eventually(t, "steered again", func() bool { return len(steering(s)) == 2 })
}

func TestSameAssignmentChangesNothing(t *testing.T) {
	k, s := newSet(t)
	assign(s, 1, "a")
	eventually(t, "steered", func() bool { return len(steering(s)) == 1 })
	for revision := range uint64(20) {
		assign(s, revision+2, "a")
	}
	eventually(t, "reported", func() bool { return s.Report().GetRevision() == 21 })
	assert.Equal(t, []string{"a"}, steering(s))
	k.locked(func() { assert.Equal(t, 1, k.loads) })
}

func TestARuleThatChangesIsNotReportedBeforeItIsObeyed(t *testing.T) {
	k, s := newSet(t)
	rules := func(revision uint64, wanted string) {
		s.Apply(&agentpb.Assignment{Revision: revision, Pods: []*agentpb.Pod{{
			Uid: "a", Namespace: "shop", Name: "a", Ips: []string{"127.0.0.1"},
			Targets: []*agentpb.Target{{Port: 80,
				Rules: []*agentpb.Rule{{InterceptUid: "i", InterceptName: wanted}, {InterceptUid: "j"}}}},
		}}})
	}
	rules(1, "before")
	eventually(t, "both are steered", func() bool { return len(steering(s)) == 2 })
	k.locked(func() { // so nothing can be done about the pod
		rules(2, "after")
		report := s.Report()
		assert.EqualValues(t, 2, report.GetRevision())
		for _, r := range report.GetTargets() {
			assert.Equal(t, r.GetInterceptUid() == "j", r.GetSteering(), "intercept %s", r.GetInterceptUid())
		}
	})
	eventually(t, "both are steered as they are now", func() bool { return len(steering(s)) == 2 })
}

func TestSteeringThatBreaksIsReportedAndMended(t *testing.T) {
	k, s := newSet(t)
	assign(s, 1, "a")
	eventually(t, "steered", func() bool { return len(steering(s)) == 1 })
	k.locked(func() { clear(k.attached) }) // as if somebody had removed the pin
	eventually(t, "attached again", func() (ok bool) {
		k.locked(func() { ok = len(k.attached) == 1 })
		return ok
	})
	eventually(t, "steered again", func() bool { return len(steering(s)) == 1 })
	k.locked(func() { k.deaf = true })
	eventually(t, "reported", func() bool { return strings.Contains(message(s, "a"), "not steered") })
}

func TestPodThatEndsIsDropped(t *testing.T) {
	k, s := newSet(t)
	assign(s, 1, "a")
	eventually(t, "steered", func() bool { return len(steering(s)) == 1 })
	k.locked(func() { k.gone["a"], k.missing["a"] = true, true })
	eventually(t, "reported", func() bool { return strings.Contains(message(s, "a"), "not there") })
	k.locked(func() { assert.Empty(t, k.attached) })
}

func TestRuleWithLaptopNeedsATunnel(t *testing.T) {
	_, s := newSet(t)
	s.Apply(&agentpb.Assignment{Revision: 1, Pods: []*agentpb.Pod{{
		Uid: "a", Namespace: "shop", Name: "a", Ips: []string{"127.0.0.1"},
		Targets: []*agentpb.Target{{Port: 80,
			Rules: []*agentpb.Rule{{InterceptUid: "i", Connected: true}, {InterceptUid: "j"}}}},
	}}})
	eventually(t, "the rule without laptop works", func() bool { return len(steering(s)) == 1 })
	eventually(t, "the other does not",
		func() bool { return strings.Contains(message(s, "a"), "the manager is away") })
}

// assignPorts gives one pod, with an intercept of each port.
func assignPorts(s *pods.Set, revision uint64, ports int) {
	p := &agentpb.Pod{Uid: "a", Namespace: "shop", Name: "a", Ips: []string{"127.0.0.1"}}
	for n := range ports {
		p.Targets = append(p.Targets,
			&agentpb.Target{Port: uint32(1000 + n), Rules: []*agentpb.Rule{{InterceptUid: "i"}}})
	}
	s.Apply(&agentpb.Assignment{Revision: revision, Pods: []*agentpb.Pod{p}})
}

func TestAnotherPortIsProvedAndThoseBeforeAreNotProvedAgain(t *testing.T) {
	k, s := newSetProbing(t, time.Hour)
	const ports = 40
	for n := range 3 {
		assignPorts(s, uint64(n), ports+n)
		eventually(t, "steered", func() bool { return len(steering(s)) == ports+n })
	}
	k.locked(func() {
		assert.Len(t, k.dials, ports+2)
		for port, n := range k.dials {
			assert.Equal(t, 1, n, "port %d", port)
		}
	})
	s.Probe()
	eventually(t, "all are proved again when that is asked for", func() (all bool) {
		k.locked(func() {
			all = true
			for _, n := range k.dials {
				all = all && n == 2
			}
		})
		return all
	})
}

func TestManyPortsAreProvedAgainInTurn(t *testing.T) {
	k, s := newSetProbing(t, 30*time.Millisecond)
	assignPorts(s, 1, 50)
	eventually(t, "each was proved three times", func() (all bool) {
		k.locked(func() {
			all = len(k.dials) == 50
			for _, n := range k.dials {
				all = all && n >= 3
			}
		})
		return all
	})
	k.locked(func() { k.deaf = true })
	eventually(t, "each is found to be broken", func() bool { return len(steering(s)) == 0 })
	k.locked(func() { k.deaf = false })
	eventually(t, "each is found to work again", func() bool { return len(steering(s)) == 50 })
}

func TestSupersededSetChangesNothingAnyMore(t *testing.T) {
	k, s := newSet(t)
	assign(s, 1, "a")
	eventually(t, "steered", func() bool { return len(steering(s)) == 1 })
	k.locked(func() { k.refuse = steer.ErrSuperseded })
	assign(s, 2, "a", "b")
	<-s.Superseded()
	assign(s, 3, "c")
	assert.EqualValues(t, 2, s.Report().GetRevision())
}
