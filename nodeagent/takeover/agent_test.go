// SPDX-License-Identifier: Apache-2.0

package takeover_test

import (
	"bufio"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/takeover"
)

// Set in the environment, it turns the test's program into an app, or into what watches the
// connections of a pod: by clsact, or as the kernel has it. The pod's namespace is its file 3. It
// says what it does, and a watcher claims a request when it has been given a line.
const envChild = "SIDESTEP_TEST_CHILD"

func TestMain(m *testing.M) {
	what := os.Getenv(envChild)
	if what == "" {
		os.Exit(m.Run())
	}
	ns, err := netns.Open("/proc/self/fd/3")
	switch {
	case err != nil:
	case what == "app":
		err = app(ns)
	default:
		err = watcher(ns, what == "clsact")
	}
	fmt.Fprintln(os.Stderr, err)
	os.Exit(1)
}

func app(ns *netns.Namespace) (err error) {
	var l net.Listener
	if err := ns.Do(func() (err error) {
		l, err = net.Listen("tcp", fmt.Sprintf(":%d", port))
		return err
	}); err != nil {
		return err
	}
	fmt.Println("listening")
	return http.Serve(l, http.HandlerFunc(func(w http.ResponseWriter,
		_ *http.Request) {
		w.Header().Set("Served-By", "app")
	}))
}

func watcher(ns *netns.Namespace, clsact bool) error {
	lines := bufio.NewScanner(os.Stdin)
	cfg := takeover.Config{
		Namespace: ns, Port: port,
		Log: slog.New(slog.NewTextHandler(os.Stderr, &slog.HandlerOptions{Level: slog.LevelDebug})),
		Claims: func(match.Head) string {
			fmt.Println("asked")
			lines.Scan()
			return "ann"
		},
	}
	takeover.Clsact(&cfg, clsact)
	p, err := takeover.Open(cfg)
	if err != nil {
		return err
	}
	r, err := annsRule(takeover.Auto)
	if err != nil {
		return err
	}
	if err := p.SetRules([]takeover.Rule{r}); err != nil {
		return err
	}
	if err := p.Steered(); err != nil { // nothing is taken over before
		return err
	}
	fmt.Println("watching", p.Watched())
	select {}
}

// child is a process of its own.
type child struct {
	*exec.Cmd
	says *bufio.Reader
	tell func(line string) error
}

func (w *world) startAgent(t *testing.T, how string) *child {
	t.Helper()
	a := w.startChild(t, how)
	a.expect(t, "watching")
	return a
}

func (w *world) startChild(t *testing.T, what string) *child {
	t.Helper()
	a := &child{Cmd: exec.Command("/proc/self/exe")}
	a.Env = append(os.Environ(), envChild+"="+what)
	a.Stderr = t.Output()
	out, err := a.StdoutPipe()
	require.NoError(t, err)
	in, err := a.StdinPipe()
	require.NoError(t, err)
	a.says = bufio.NewReader(out)
	a.tell = func(line string) error {
		_, err := fmt.Fprintln(in, line)
		return err
	}
	require.NoError(t, w.pod.Control(func(fd int) error {
		copied, err := unix.FcntlInt(uintptr(fd), unix.F_DUPFD_CLOEXEC, 0)
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(copied), "netns")
		defer file.Close()
		a.ExtraFiles = []*os.File{file}
		return a.Start()
	}))
	t.Cleanup(func() { a.kill() })
	return a
}

func (a *child) expect(t *testing.T, word string) {
	t.Helper()
	line, err := a.says.ReadString('\n')
	require.NoError(t, err)
	require.True(t, strings.HasPrefix(line, word), line)
}

func (a *child) kill() {
	_ = a.Process.Kill()
	_ = a.Wait()
}

// answer is what became of a request.
type answer struct {
	who  string
	err  error
	took time.Duration
}

func (c *client) askLater(request string) <-chan answer {
	later := make(chan answer, 1)
	go func() {
		start := time.Now()
		who, err := c.ask(request)
		later <- answer{who, err, time.Since(start)}
	}()
	return later
}

// Whatever becomes of the one who holds a packet back, the app gets it, and nobody's connection
// breaks.
func TestAgentThatEndsWithAPacketInItsHandsHurtsNobody(t *testing.T) {
	for _, c := range []struct {
		name, how string
		six, stop bool
	}{
		{"killed", "tcx", false, false},
		{"killed, over IPv6", "tcx", true, false},
		{"killed, before Linux 6.6", "clsact", false, false},
		{"stopped", "tcx", false, true},
		{"stopped, over IPv6", "tcx", true, true},
		{"stopped, before Linux 6.6", "clsact", false, true},
	} {
		t.Run(c.name, func(t *testing.T) {
			w := newWorld(t)
			ip := w.pod.IP4
			if c.six {
				ip = w.pod.IP6
			}
			developer, bystander := dial(t, w.node.Namespace, ip), dial(t, w.node.Namespace, ip)
			for _, c := range []*client{developer, bystander} {
				// until TCP has forgotten how long it took to find the pod, and no longer waits for
				// that
				for range 40 {
					_, err := c.ask(plain)
					require.NoError(t, err)
				}
			}
			a := w.startAgent(t, c.how)
			held := developer.askLater(marked)
			a.expect(t, "asked")
			if c.stop {
				require.NoError(t, a.Process.Signal(unix.SIGSTOP))
			} else {
				require.NoError(t, a.Process.Kill())
			}
			was := (<-bystander.askLater(plain))
			require.NoError(t, was.err)
			assert.Equal(t, "app", was.who)
			got := <-held
			require.NoError(t, got.err)
			assert.Equal(t, "app", got.who)
			assert.EqualValues(t, 1, w.app.marked.Load())
			t.Logf("the held request was answered after %v, somebody else's after %v", got.took, was.took)
			if c.stop {
				// The decision comes too late: the app has had the request, and the client may be
				// in the middle of another one.
				require.NoError(t, a.tell("take it"))
				require.NoError(t, a.Process.Signal(unix.SIGCONT))
			}
			for range 3 {
				for _, c := range []*client{developer, bystander} {
					who, err := c.ask(plain)
					require.NoError(t, err)
					assert.Equal(t, "app", who)
				}
			}
		})
	}
}

func TestWhoDecidesTooLateTakesNothingOver(t *testing.T) {
	for name, timeout := range map[string]time.Duration{
		"the packet's timeout passes first":           0,
		"the agent counts as dead before the timeout": time.Minute,
	} {
		t.Run(name, func(t *testing.T) { decidesTooLate(t, timeout) })
	}
}

func decidesTooLate(t *testing.T, timeout time.Duration) {
	w := newWorld(t)
	c := dial(t, w.node.Namespace, w.pod.IP4)
	_, err := c.ask(plain)
	require.NoError(t, err)
	asked, decide := make(chan bool), make(chan bool)
	w.watch(t, func(cfg *takeover.Config) {
		takeover.Patient(cfg, timeout, 0)
		claims := cfg.Claims
		cfg.Claims = func(head match.Head) string {
			asked <- true
			<-decide
			return claims(head)
		}
	}, rule(t, takeover.Auto))
	w.steer(t)
	held := c.askLater(marked)
	<-asked
	got := <-held
	require.NoError(t, got.err)
	assert.Equal(t, "app", got.who)
	decide <- true
	_, err = c.ask(plain)
	require.NoError(t, err, "the app has had the request, so the connection lives on")
	assert.Zero(t, w.counters.TakenOver.Load())
	assert.Eventually(t, func() bool { return w.counters.TimedOut.Load() == 1 }, 20*time.Second,
		10*time.Millisecond, "it is counted")
	// The next one is taken over, once the kernel knows that there is somebody to decide.
	assert.Eventually(t, func() bool {
		held := c.askLater(marked)
		for {
			select {
			case <-asked: // maybe about a request that has passed to the app meanwhile
				decide <- true
			case got := <-held:
				return got.err != nil
			}
		}
	}, 20*time.Second, 10*time.Millisecond)
	w.tookOver(t, 1)
}

func (w *world) filters(t *testing.T) (names []string) {
	t.Helper()
	require.NoError(t, w.pod.Do(func() error {
		l, err := netlink.LinkByName("eth0")
		if err != nil {
			return err
		}
		filters, err := netlink.FilterList(l, netlink.HANDLE_MIN_INGRESS)
		for _, f := range filters {
			names = append(names, f.(*netlink.BpfFilter).Name)
		}
		return err
	}))
	return names
}

func TestFilterOfAKilledAgentIsRemovedByTheNext(t *testing.T) {
	w := newWorld(t)
	developer, bystander := dial(t, w.node.Namespace, w.pod.IP4), dial(t, w.node.Namespace, w.pod.IP6)
	for _, c := range []*client{developer, bystander} {
		_, err := c.ask(plain)
		require.NoError(t, err)
	}
	w.startAgent(t, "clsact").kill()
	left := w.filters(t)
	require.Len(t, left, 1)
	// also within the second in which its last sign of life counts, where nobody asks for it back
	for range 5 {
		for _, c := range []*client{developer, bystander} {
			who, err := c.ask(plain)
			require.NoError(t, err)
			assert.Equal(t, "app", who)
		}
	}
	who, err := developer.ask(marked)
	require.NoError(t, err)
	assert.Equal(t, "app", who)
	// The next one wants nothing of these connections.
	w.watch(t, nil, rule(t, takeover.None))
	assert.Empty(t, w.filters(t))
	require.NoError(t, w.port.Close())
	w.watch(t, func(c *takeover.Config) { takeover.Clsact(c, true) }, rule(t, takeover.Auto))
	w.steer(t)
	require.Len(t, w.filters(t), 1)
	assert.NotEqual(t, left, w.filters(t))
	_, err = developer.ask(marked)
	assert.ErrorIs(t, err, unix.ECONNRESET)
	who, err = bystander.ask(plain)
	require.NoError(t, err)
	assert.Equal(t, "app", who)
	require.NoError(t, w.port.Close())
	assert.Empty(t, w.filters(t))
}
