// SPDX-License-Identifier: Apache-2.0

package pods_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/part"
	"sidestep.dev/sidestep/nodeagent/podnet"
	"sidestep.dev/sidestep/nodeagent/pods"
	"sidestep.dev/sidestep/nodeagent/proxy"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// world is a node without a manager. Its pods have a part that tells what was done with it.
type world struct {
	node     *testnet.Node
	bpffs    string
	steering *steer.Node
	set      *pods.Set
	parts    *recorder
	silent   atomic.Bool // no heartbeat: programs steer nothing
}

func newWorld(t *testing.T, change ...func(*pods.Config)) *world {
	t.Helper()
	w := &world{node: testnet.NewNode(t), bpffs: testnet.BPFFS(t), parts: &recorder{pods: map[string]*recorded{}}}
	w.steering = w.newSteering()
	require.NoError(t, w.steering.Open())
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(50 * time.Millisecond):
				if !w.silent.Load() {
					_ = w.steering.Beat()
				}
			}
		}
	}()
	cfg := pods.Config{
		Finder: podnet.NewFinder(w.node.Proc()), Steering: w.steering, Tunnels: away{},
		Parts: []part.Kind{w.parts}, Log: slog.New(slog.DiscardHandler),
		Serve:      func(_ context.Context, c *net.TCPConn, _ *proxy.Target) { _ = c.Close() },
		ProbeEvery: 50 * time.Millisecond, WatchEvery: 20 * time.Millisecond, Linger: 50 * time.Millisecond,
	}
	for _, c := range change {
		c(&cfg)
	}
	w.set = pods.New(cfg)
	t.Cleanup(func() {
		assert.NoError(t, w.set.Close(context.Background()))
		close(stop)
		assert.NoError(t, w.steering.Close())
	})
	return w
}

// newSteering is that of a node agent that begins now.
func (w *world) newSteering() *steer.Node {
	return steer.NewNode(w.bpffs, "node-1", slog.New(slog.DiscardHandler), steer.WithProc(w.node.Proc()))
}

// away is the tunnels' side: there is no manager.
type away struct{}

func (away) Open(context.Context, *tunnelpb.Open) (*tunnel.Conn, error) {
	return nil, errors.New("the manager is away")
}

// recorder is a kind of part that does nothing.
type recorder struct {
	mu   sync.Mutex // while it is held, nothing can be done with a pod
	pods map[string]*recorded
	fail error // why a part cannot be opened
}

// recorded is what was done with the part of one pod. recorder.mu guards it.
type recorded struct {
	kind    *recorder
	pod     *part.Pod
	opens   int
	applied []*agentpb.Pod
	steered bool
	probes  map[uint16]int
	calls   []string     // Steered, Drain and Close
	problem part.Problem // that it is to have
	bars    atomic.Value // why it bars all ports, a string
	fail    error        // why it is not to apply
}

func (k *recorder) locked(fn func()) {
	k.mu.Lock()
	defer k.mu.Unlock()
	fn()
}

// of gives what is known of a pod, also before it was opened.
func (k *recorder) of(uid string) *recorded {
	if k.pods[uid] == nil {
		k.pods[uid] = &recorded{kind: k, probes: map[uint16]int{}}
	}
	return k.pods[uid]
}

func (k *recorder) Open(pod *part.Pod) (part.Part, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.fail != nil {
		return nil, k.fail
	}
	r := k.of(pod.UID)
	r.pod = pod
	r.opens++
	return r, nil
}

func (r *recorded) Apply(want *agentpb.Pod) error {
	r.kind.mu.Lock()
	defer r.kind.mu.Unlock()
	r.applied = append(r.applied, want)
	return r.fail
}

func (r *recorded) Problem(part.Target, *agentpb.Rule) part.Problem {
	// Reports are read while nothing can be done with a pod.
	return r.problem
}

func (r *recorded) Bars(part.Target) string {
	why, _ := r.bars.Load().(string)
	return why
}

func (r *recorded) called(what string) {
	r.kind.mu.Lock()
	defer r.kind.mu.Unlock()
	r.calls = append(r.calls, what)
}

func (r *recorded) Drain() error {
	r.called("drain")
	return nil
}

func (r *recorded) Close() error {
	r.called("close")
	return nil
}

func (r *recorded) Steered(on bool) {
	r.kind.mu.Lock()
	defer r.kind.mu.Unlock()
	if on != r.steered {
		r.calls = append(r.calls, map[bool]string{true: "steered", false: "not steered"}[on])
	}
	r.steered = on
}

func (r *recorded) Probed(c *net.TCPConn) {
	r.kind.mu.Lock()
	defer r.kind.mu.Unlock()
	r.probes[c.LocalAddr().(*net.TCPAddr).AddrPort().Port()]++
}

// wants is a pod with an intercept of port 80 that has no laptop.
func wants(uid, ip string) *agentpb.Pod {
	return &agentpb.Pod{
		Uid: uid, Namespace: "shop", Name: uid, Ips: []string{ip},
		Targets: []*agentpb.Target{{Port: 80, Rules: []*agentpb.Rule{{InterceptUid: "i"}}}},
	}
}

func (w *world) assign(revision uint64, wanted ...*testnet.Pod) {
	a := &agentpb.Assignment{Revision: revision}
	for _, p := range wanted {
		a.Pods = append(a.Pods, wants(p.UID, p.IP4.String()))
	}
	w.set.Apply(a)
}

// rules assigns one pod with rules of port 80.
func (w *world) rules(revision uint64, p *testnet.Pod, rules ...*agentpb.Rule) {
	want := wants(p.UID, p.IP4.String())
	want.Targets[0].Rules = rules
	w.set.Apply(&agentpb.Assignment{Revision: revision, Pods: []*agentpb.Pod{want}})
}

// steering counts the rules that are reported as steering.
func (w *world) steeringRules() (n int) {
	for _, r := range w.set.Report().GetTargets() {
		if r.GetSteering() {
			n++
		}
	}
	return n
}

func (w *world) message(p *testnet.Pod) string {
	for _, r := range w.set.Report().GetTargets() {
		if r.GetPodUid() == p.UID {
			return r.GetMessage()
		}
	}
	return ""
}

func (w *world) calls(p *testnet.Pod) (calls []string) {
	w.parts.locked(func() { calls = append(calls, w.parts.of(p.UID).calls...) })
	return calls
}

func eventually(t *testing.T, what string, ok func() bool) {
	t.Helper()
	require.Eventually(t, ok, 30*time.Second, 5*time.Millisecond, what)
}

func (w *world) awaitSteering(t *testing.T, rules int) {
	t.Helper()
	eventually(t, "all rules are steered", func() bool { return w.steeringRules() == rules })
}

// anyRequest is the head of a request without fields.
type anyRequest struct{}

func (anyRequest) Path() []byte                     { return []byte("/") }
func (anyRequest) Values(string, func([]byte) bool) {}
