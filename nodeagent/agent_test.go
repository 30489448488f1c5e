// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent"
	"sidestep.dev/sidestep/nodeagent/steer"
	"sidestep.dev/sidestep/nodeagent/uplink"
)

const (
	appPort = 8080
	header  = "x-who"
)

// world is a node with one pod, whose app answers "app", and a manager.
type world struct {
	*manager
	node  *testnet.Node
	pod   *testnet.Pod
	app   *http.Server
	bpffs string
	out   io.Writer
	// linger is that of agents in this process.
	linger time.Duration
	drain  time.Duration // of agents that are processes
	env    []string      // of these, too
	args   []string      // and what these are told besides
	// What their logs tell: how often they have closed the listeners of a pod, and taken over a
	// connection that was open before.
	drained, takenOver atomic.Int64
	// datapath is what they are told to use, and http where they serve metrics.
	datapath steer.Datapath
	http     string
	// allowHostNetwork is what agents in this process are told.
	allowHostNetwork bool
}

// Write is where their logs go.
func (w *world) Write(lines []byte) (int, error) {
	w.drained.Add(int64(strings.Count(string(lines), "pod drained")))
	w.takenOver.Add(int64(strings.Count(string(lines), "older connection taken over")))
	return w.out.Write(lines)
}

func newWorld(t *testing.T) *world {
	node := testnet.NewNode(t)
	w := &world{manager: newManager(t), node: node, pod: node.NewPod(t), bpffs: testnet.BPFFS(t),
		out: t.Output(), linger: 500 * time.Millisecond, drain: 8 * time.Second}
	w.app = serve(t, w.pod)
	return w
}

// serve starts an app that says who its client is when asked for /client, and "app" otherwise.
// Close ends it together with its connections.
func serve(t *testing.T, p *testnet.Pod) *http.Server {
	mux := http.NewServeMux()
	mux.Handle("/", word("app"))
	mux.HandleFunc("/client",
		func(rw http.ResponseWriter, r *http.Request) { _, _ = io.WriteString(rw, r.RemoteAddr) })
	app := &http.Server{Handler: mux}
	l := testnet.Listen(t, p.Namespace, fmt.Sprintf(":%d", appPort))
	go func() { _ = app.Serve(l) }()
	return app
}

// run starts an agent in this process. stop is what SIGTERM does, and waits for its end.
func (w *world) run(t *testing.T) (stop func()) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	w.http = "http://" + l.Addr().String()
	go func() {
		done <- nodeagent.Run(ctx, nodeagent.Config{
			Manager: w.address, Security: uplink.Files(w.caFile, w.tokenFile), Node: "node-1",
			BPFFS: w.bpffs, Proc: w.node.Proc(), Datapath: w.datapath, HTTP: l,
			Drain: 10 * time.Second, Linger: w.linger, AllowHostNetwork: w.allowHostNetwork,
			Log: slog.New(slog.NewTextHandler(w, &slog.HandlerOptions{Level: slog.LevelDebug})),
		})
	}()
	stop = sync.OnceFunc(func() {
		cancel()
		assert.NoError(t, <-done)
	})
	t.Cleanup(stop)
	return stop
}

// wants is the pod as an assignment has it, with an intercept of requests whose header says "me".
func (w *world) wants() *agentpb.Pod { return wants(w.pod) }

func wants(p *testnet.Pod) *agentpb.Pod {
	return &agentpb.Pod{
		Uid: p.UID, Namespace: "shop", Name: "orders-0", Ips: p.IPs(),
		Targets: []*agentpb.Target{{Port: appPort, Rules: []*agentpb.Rule{{
			InterceptUid: "i-1", InterceptNamespace: "shop", InterceptName: "orders", Connected: true,
			Http: &agentpb.HTTPMatch{Headers: []*agentpb.HeaderMatch{{
				Name: header, Match: &agentpb.HeaderMatch_Value{Value: "me"},
			}}},
		}}}},
	}
}

// get makes one request on a connection of its own.
func (w *world) get(ip netip.Addr, who string) (string, error) { return get(w.node, ip, who) }

func get(from *testnet.Node, ip netip.Addr, who string) (string, error) {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	client := &http.Client{Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return testnet.Dial(ctx, from.Namespace, netip.AddrPortFrom(ip, appPort))
		},
	}}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://orders/", nil)
	if err != nil {
		return "", err
	}
	if who != "" {
		req.Header.Set(header, who)
	}
	resp, err := client.Do(req)
	if err != nil {
		return "", err
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// fetch gives the answer of a server in this namespace.
func fetch(t *testing.T, url string) (int, string) {
	t.Helper()
	resp, err := http.Get(url)
	if err != nil {
		return 0, err.Error()
	}
	defer resp.Body.Close()
	body, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	return resp.StatusCode, string(body)
}

func (w *world) expect(t *testing.T, who, want string) {
	t.Helper()
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		got, err := w.get(ip, who)
		assert.NoError(t, err)
		assert.Equal(t, want, got, "request of %q to %s", who, ip)
	}
}

// eventually waits until requests are answered so.
func (w *world) eventually(t *testing.T, who, want string) {
	t.Helper()
	require.Eventually(t, func() bool {
		got, err := w.get(w.pod.IP4, who)
		return err == nil && got == want
	}, 30*time.Second, 20*time.Millisecond, "request of %q answered by %s", who, want)
}

func (w *world) nothingLeft(t *testing.T) {
	t.Helper()
	// The last target goes a moment before its directory.
	assert.Eventually(t, func() bool {
		_, err := os.Stat(filepath.Join(w.bpffs, "sidestep"))
		return errors.Is(err, fs.ErrNotExist)
	}, 30*time.Second, 10*time.Millisecond, "something is left in bpffs")
}

func TestInterceptComesAndGoes(t *testing.T) {
	w := newWorld(t)
	w.expect(t, "me", "app")
	w.run(t)
	w.steering(t, w.assign(w.wants()))
	assert.Equal(t, "node-1", w.hello.GetNode())
	assert.NotEmpty(t, w.hello.GetKernel())
	w.expect(t, "me", "laptop")
	w.expect(t, "somebody", "app")
	w.expect(t, "", "app")
	r := w.await(t, "counters", func(r *agentpb.Report) bool { return r.GetTargets()[0].GetMatched() >= 2 })
	assert.GreaterOrEqual(t, r.GetTargets()[0].GetConnections(), uint64(6))
	assert.Equal(t, w.pod.UID, r.GetTargets()[0].GetPodUid())
	last := w.assign()
	w.await(t, "empty", func(r *agentpb.Report) bool {
		return r.GetRevision() == last &&
			len(r.GetTargets()) == 0
	})
	w.eventually(t, "me", "app")
	w.nothingLeft(t)
}

func TestPodsThatCannotBeSteered(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	for _, tc := range []struct {
		name   string
		change func(*agentpb.Pod)
		want   string
	}{
		{"on the host's network", func(p *agentpb.Pod) { p.HostNetwork = true }, "hostNetwork"},
		{"in a gVisor sandbox", func(p *agentpb.Pod) { p.RuntimeClass = "gvisor" }, "sandbox"},
		{"in a Kata virtual machine", func(p *agentpb.Pod) { p.RuntimeClass = "kata-qemu" }, "sandbox"},
		{"not on this node", func(p *agentpb.Pod) { p.Uid = "ffffffff-1111-2222-3333-444444444444" },
			"no process of the pod"},
		{"with another pod's address", func(p *agentpb.Pod) { p.Ips = []string{"198.18.200.2"} },
			"none of the pod's addresses"},
		{"with an expression that does not compile", func(p *agentpb.Pod) {
			p.Targets[0].Rules[0].Http.Headers[0].Match = &agentpb.HeaderMatch_Regex{Regex: "("}
		}, "missing closing"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			pod := w.wants()
			tc.change(pod)
			revision := w.assign(pod)
			r := w.await(t, tc.want, func(r *agentpb.Report) bool {
				return r.GetRevision() == revision && len(r.GetTargets()) == 1 &&
					strings.Contains(r.GetTargets()[0].GetMessage(), tc.want)
			})
			assert.False(t, r.GetTargets()[0].GetSteering())
			w.expect(t, "me", "app")
		})
	}
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
}

func TestLaptopThatDoesNotAnswerIsNotSteering(t *testing.T) {
	w := newWorld(t)
	w.away = true
	w.run(t)
	w.assign(w.wants())
	w.await(t, "sleeping laptop", func(r *agentpb.Report) bool {
		return len(r.GetTargets()) == 1 && strings.Contains(r.GetTargets()[0].GetMessage(), "the laptop sleeps")
	})
	w.expect(t, "me", "app")
	disconnected := w.wants()
	disconnected.Targets[0].Rules[0].Connected = false
	w.steering(t, w.assign(disconnected))
	w.mu.Lock()
	w.away = false
	w.mu.Unlock()
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
}

func TestManagerComesBack(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	w.steering(t, w.assign(w.wants()))
	w.expect(t, "me", "laptop")
	w.stop()
	w.expect(t, "me", "app")
	w.expect(t, "", "app")
	back := time.Now()
	w.start(t, w.address)
	w.eventually(t, "me", "laptop")
	assert.Less(t, time.Since(back), 20*time.Second)
	w.steering(t, 1)
}

func TestTokenIsReadAgain(t *testing.T) {
	w := newWorld(t)
	require.NoError(t, os.WriteFile(w.tokenFile, []byte("outdated"), 0o600))
	w.run(t)
	w.assign(w.wants())
	time.AfterFunc(300*time.Millisecond, func() { _ = os.WriteFile(w.tokenFile, []byte(bearer), 0o600) })
	w.steering(t, 1)
}

func TestCertificateAuthorityIsReadAgain(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	w.steering(t, w.assign(w.wants()))
	w.stop()
	w.certify(t)
	w.start(t, w.address)
	w.eventually(t, "me", "laptop")
}

func TestAgentGivesEverythingBackAtItsEnd(t *testing.T) {
	w := newWorld(t)
	stop := w.run(t)
	w.steering(t, w.assign(w.wants()))
	open, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(w.pod.IP4, appPort))
	require.NoError(t, err)
	defer open.Close()
	ask := func() string {
		_, err := io.WriteString(open, "GET / HTTP/1.1\r\nHost: orders\r\n\r\n")
		require.NoError(t, err)
		buf := make([]byte, 4096)
		require.NoError(t, open.SetReadDeadline(time.Now().Add(30*time.Second)))
		n, err := open.Read(buf)
		require.NoError(t, err)
		return string(buf[:n])
	}
	require.Contains(t, ask(), "app")
	stopped := make(chan struct{})
	go func() {
		stop()
		close(stopped)
	}()
	w.eventually(t, "me", "app")
	assert.Contains(t, ask(), "app", "an open connection goes on")
	w.nothingLeft(t)
	require.NoError(t, open.Close())
	<-stopped
	w.expect(t, "me", "app")
}

func TestAppCanRestartUnderAnIntercept(t *testing.T) {
	w := newWorld(t)
	w.run(t)
	w.steering(t, w.assign(w.wants()))
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6} {
		open, err := testnet.Dial(t.Context(), w.node.Namespace, netip.AddrPortFrom(ip, appPort))
		require.NoError(t, err)
		defer open.Close()
	}
	w.await(t, "open connections",
		func(r *agentpb.Report) bool { return r.GetTargets()[0].GetConnections() >= 2 })
	require.NoError(t, w.app.Close())
	serve(t, w.pod)
	w.expect(t, "", "app")
	w.expect(t, "me", "laptop")
}
