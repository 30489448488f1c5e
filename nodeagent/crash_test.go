// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bufio"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/testnet"
)

// scene is an intercepted pod whose node agent is a process, under load.
type scene struct {
	*world
	agent  *process
	road   *road        // between node agent and manager
	other  *testnet.Pod // a second pod that is intercepted, without load
	server *http.Server // the app of the other pod
	begun  time.Time
	dead   time.Time // connections begun later than this must not fail
	over   time.Time // when the cause was removed
}

// fault is one row of the crash matrix.
type fault struct {
	name string
	// strike lets it happen and removes its cause. It sets dead, if connections that were open may
	// break, and over.
	strike func(t *testing.T, s *scene)
	// breaks says that users' connections that were open may break, at its beginning or, after an
	// upgrade, at the end of the drain.
	breaks bool
	// stall is how long users' new connections may have to wait.
	stall time.Duration
}

// back is within what time matching requests are to be answered by the laptop again.
const back = 5 * time.Second

var faults = []fault{
	{name: "node agent: kill -9, restarted after 1 s", strike: killed, breaks: true},
	{name: "node agent: SIGSTOP for 5 s, then SIGCONT", strike: stopped, stall: 8 * time.Second},
	{name: "node agent: killed for lack of memory, restarted after 1 s", strike: outOfMemory, breaks: true},
	{name: "node agent: too few file descriptors for a while", strike: outOfFiles},
	{name: "node agent: upgrade, old one drains for 3 s", strike: upgraded, breaks: true},
	{name: "node agent: upgrade, new one dies at once", strike: upgradeDies, breaks: true},
	{name: "manager: gone for 5 s", strike: managerGone},
	{name: "manager: network swallows everything for 5 s", strike: networkCut},
	{name: "manager: all tunnels cut", strike: tunnelsCut},
	{name: "laptop: gone for 3 s", strike: laptopGone},
	{name: "laptop: hangs for 4 s, nobody has noticed", strike: laptopHangs},
	{name: "bpffs: all pins removed", strike: pinsRemoved},
	{name: "bpffs: unmounted", strike: unmounted},
	{name: "bpffs: pins removed, then node agent: kill -9, restarted after 1 s", strike: wipedAndKilled,
		breaks: true},
	{name: "another pod: deleted with its network namespace", strike: podGone},
}

// TestCrashMatrix prints docs/robustness.md's table.
func TestCrashMatrix(t *testing.T) {
	if testing.Short() {
		t.Skip("two minutes")
	}
	rows := []string{"| " + strings.Join(columns, " | ") + " |", strings.Repeat("|---", len(columns)) + "|"}
	for _, f := range faults {
		t.Run(f.name, func(t *testing.T) { rows = append(rows, f.run(t)) })
	}
	table := strings.Join(rows, "\n") + "\n"
	fmt.Println(table)
	if path := os.Getenv("SIDESTEP_CRASH_TABLE"); path != "" {
		require.NoError(t, os.WriteFile(path, []byte(table), 0o644))
	}
}

func (f fault) run(t *testing.T) string {
	w := newWorld(t)
	s := &scene{world: w, other: w.node.NewPod(t)}
	s.server = serve(t, s.other)
	s.road = newRoad(t, w.address)
	w.drain = 3 * time.Second
	s.agent = s.spawnOn(t)
	other := wants(s.other)
	other.Name = "orders-1"
	w.steering(t, w.assign(w.wants(), other))
	w.expect(t, "me", "laptop")

	c := newCrowd(t, w)
	time.Sleep(time.Second)
	s.begun = time.Now()
	s.dead = s.begun
	f.strike(t, s)
	require.False(t, s.over.IsZero())
	answers := c.matched[fresh]
	require.Eventually(t, func() bool {
		answers.mu.Lock()
		defer answers.mu.Unlock()
		return answers.answered.After(s.over) && answers.answered.Sub(answers.missed) > 500*time.Millisecond
	}, 15*time.Second, 10*time.Millisecond, "matching requests are not answered by the laptop any more")
	time.Sleep(time.Second)
	c.stop()
	f.judge(t, s, c)
	return f.row(s, c)
}

// spawnOn starts a node agent whose way to the manager is the road.
func (s *scene) spawnOn(t *testing.T) *process {
	t.Helper()
	direct := s.address
	s.address = s.road.address
	defer func() { s.address = direct }()
	return s.spawn(t)
}

func (f fault) judge(t *testing.T, s *scene, c *crowd) {
	for k, users := range c.users {
		n, first := users.since(s.dead)
		assert.Zero(t, n, "%s: users' requests that were begun after the fault have failed, the first %v", k, first)
		assert.Zero(t, users.byLaptop, "%s: users' requests came to the laptop", k)
		assert.NotZero(t, users.byApp, k)
		if !f.breaks {
			assert.Empty(t, users.failed, k)
			assert.Zero(t, users.broken, k)
		}
	}
	n, first := c.matched[fresh].since(s.dead)
	if n == 1 && c.matched[fresh].straddled(s.dead) {
		n = 0
	}
	assert.Zero(t, n, "matching requests that were begun after the fault have failed, the first %v", first)
	assert.LessOrEqual(t, c.users[fresh].slowest, max(f.stall, 3*time.Second), "longest wait of users")
	assert.LessOrEqual(t, c.matched[fresh].slowest, max(f.stall, 5*time.Second),
		"longest wait of the developer")
	assert.LessOrEqual(t, s.back(c), back, "matching requests were answered by the laptop late")
}

// back is when the app last answered a matching request on a new connection, after the cause was
// removed.
func (s *scene) back(c *crowd) time.Duration { return max(0, c.matched[fresh].missed.Sub(s.over)) }

// columns is the head of the table that row makes the rows of.
var columns = []string{
	"what happened", "users' new connections", "failed", "begun after it struck", "waited over 1 s",
	"longest wait",
	"open connections broken (8 clients)", "streams broken (4 clients)", "longest wait in them",
	"matching requests: by laptop / by app / failed", "longest wait", "back after",
}

func (f fault) row(s *scene, c *crowd) string {
	users := c.users[fresh]
	late, _ := users.since(s.dead)
	var laptop, app, lost int
	var wait time.Duration
	for _, m := range c.matched {
		laptop, app, lost, wait = laptop+m.byLaptop, app+m.byApp, lost+len(m.failed), max(wait, m.slowest)
	}
	ms := func(d time.Duration) string { return fmt.Sprintf("%d ms", d.Milliseconds()) }
	cells := []string{
		f.name, fmt.Sprint(users.asked), fmt.Sprint(len(users.failed)), fmt.Sprint(late),
		fmt.Sprint(users.stalled), ms(users.slowest),
		fmt.Sprint(c.users[busy].broken + c.users[idle].broken), fmt.Sprint(c.users[stream].broken),
		ms(max(c.users[busy].slowest, c.users[idle].slowest, c.users[stream].slowest)),
		fmt.Sprintf("%d / %d / %d", laptop, app, lost), ms(wait), ms(s.back(c)),
	}
	return "| " + strings.Join(cells, " | ") + " |"
}

func (s *scene) restart(t *testing.T) {
	t.Helper()
	time.Sleep(time.Second)
	s.agent = s.spawnOn(t)
	s.over = time.Now()
}

func target(p *testnet.Pod) netip.AddrPort { return netip.AddrPortFrom(p.IP4, appPort) }

func killed(t *testing.T, s *scene) {
	s.agent.kill(t)
	s.dead = time.Now()
	s.restart(t)
}

func stopped(t *testing.T, s *scene) {
	require.NoError(t, s.agent.Process.Signal(syscall.SIGSTOP))
	time.Sleep(5 * time.Second)
	require.NoError(t, s.agent.Process.Signal(syscall.SIGCONT))
	s.over = time.Now()
}

func outOfMemory(t *testing.T, s *scene) {
	confineMemory(t, s.agent.Process.Pid, 8<<20)
	for range 20000 {
		if err := s.agent.Process.Signal(syscall.Signal(0)); err != nil {
			break
		}
		c, err := testnet.Dial(t.Context(), s.node.Namespace, target(s.pod))
		if err == nil {
			defer c.Close()
			_ = request(c, "/", "")
		}
		if _, err := os.Stat(fmt.Sprintf("/proc/%d/ns/net", s.agent.Process.Pid)); err != nil {
			break
		}
	}
	require.Error(t, s.agent.end())
	require.Equal(t, syscall.SIGKILL, s.agent.ProcessState.Sys().(syscall.WaitStatus).Signal())
	s.dead = time.Now()
	s.restart(t)
}

func outOfFiles(t *testing.T, s *scene) {
	pid := s.agent.Process.Pid
	open, err := os.ReadDir(fmt.Sprintf("/proc/%d/fd", pid))
	require.NoError(t, err)
	var before unix.Rlimit
	require.NoError(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, nil, &before))
	// Enough for what is open and what comes until the agent has noticed.
	few := unix.Rlimit{Cur: uint64(len(open) + 200), Max: before.Max}
	require.NoError(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &few, nil))
	time.Sleep(time.Second)
	kept, err := testnet.Dial(t.Context(), s.node.Namespace, target(s.pod))
	require.NoError(t, err)
	defer kept.Close()
	answers := bufio.NewReader(kept)
	for struck := time.Now(); time.Since(struck) < 6*time.Second; time.Sleep(50 * time.Millisecond) {
		by, err := exchange(kept, answers, "me")
		require.NoError(t, err, "its next connection would come to the app as well")
		require.Equal(t, "app", by)
	}
	require.NoError(t, unix.Prlimit(pid, unix.RLIMIT_NOFILE, &before, nil))
	s.over = time.Now()
	require.Eventually(t, func() bool {
		_, err = exchange(kept, answers, "me")
		return err != nil
	}, 15*time.Second, 100*time.Millisecond, "a connection from that time stays with the app")
	require.ErrorIs(t, err, syscall.ECONNRESET)
}

// succeed starts another agent beside the one that runs, and waits until it has the pod.
func (s *scene) succeed(t *testing.T) *process {
	t.Helper()
	s.mu.Lock()
	s.report = nil
	s.mu.Unlock()
	next := s.spawnOn(t)
	s.steering(t, 1)
	require.Eventually(t, func() bool {
		code, _ := fetch(t, "http://"+next.http+"/readyz")
		return code == http.StatusOK
	}, 10*time.Second, 10*time.Millisecond)
	return next
}

func upgraded(t *testing.T, s *scene) {
	next := s.succeed(t)
	require.NoError(t, s.agent.Process.Signal(syscall.SIGTERM))
	require.NoError(t, s.agent.end())
	s.agent = next
	s.over = time.Now()
	s.dead = s.over // what was open when the drain ended
}

func upgradeDies(t *testing.T, s *scene) {
	s.succeed(t).kill(t)
	s.dead = time.Now()
	s.over = s.dead
}

func managerGone(t *testing.T, s *scene) {
	s.stop()
	time.Sleep(5 * time.Second)
	s.start(t, s.address)
	s.over = time.Now()
}

func networkCut(_ *testing.T, s *scene) {
	s.road.block()
	time.Sleep(5 * time.Second)
	s.road.clear()
	s.over = time.Now()
}

func tunnelsCut(_ *testing.T, s *scene) {
	s.laptop(false, false)
	s.over = time.Now()
}

// connected says to the node agents whether the laptop is there.
func (s *scene) connected(yes bool) {
	pod := s.wants()
	pod.Targets[0].Rules[0].Connected = yes
	s.assign(pod)
}

func laptopGone(_ *testing.T, s *scene) {
	s.laptop(true, false)
	s.connected(false)
	time.Sleep(3 * time.Second)
	s.laptop(false, false)
	s.connected(true)
	s.over = time.Now()
}

func laptopHangs(_ *testing.T, s *scene) {
	s.laptop(false, true)
	time.Sleep(4 * time.Second)
	s.laptop(false, false)
	s.over = time.Now()
}

func (s *scene) wipe(t *testing.T) {
	t.Helper()
	require.NoError(t, os.RemoveAll(filepath.Join(s.bpffs, "sidestep")))
}

func pinsRemoved(t *testing.T, s *scene) {
	s.wipe(t)
	s.over = time.Now()
	s.pinned(t)
}

func (s *scene) pinned(t *testing.T) {
	t.Helper()
	require.Eventually(t, func() bool {
		pins, err := filepath.Glob(filepath.Join(s.bpffs, "sidestep/*/*"))
		return err == nil && len(pins) == 2
	}, back, 10*time.Millisecond, "pinned again")
}

func unmounted(t *testing.T, s *scene) {
	require.NoError(t, unix.Unmount(s.bpffs, 0))
	s.over = time.Now()
	s.pinned(t)
}

func wipedAndKilled(t *testing.T, s *scene) {
	s.wipe(t)
	killed(t, s)
}

func podGone(t *testing.T, s *scene) {
	for range 20 {
		c, err := testnet.Dial(t.Context(), s.node.Namespace, target(s.other))
		require.NoError(t, err)
		defer c.Close()
		require.NoError(t, request(c, streamPath, "me"))
		// While nobody has decided whose it is, the end of the app's connection is that of the
		// client's.
		_ = c.SetReadDeadline(time.Now().Add(patience))
		_, err = io.ReadFull(c, make([]byte, 1))
		require.NoError(t, err)
	}
	gone := testnet.Watch(t, s.other)
	require.NoError(t, s.server.Close())
	require.Eventually(t, func() bool { return !closing(t, s.other) }, back, 5*time.Millisecond,
		"the app's connections do not end")
	deleted := time.Now()
	s.other.Delete()
	require.Eventually(t, gone, back, 5*time.Millisecond,
		"something keeps the namespace of the deleted pod alive")
	t.Logf("the namespace was gone after %s", time.Since(deleted).Round(time.Millisecond))
	s.over = time.Now()
	s.await(t, "the deleted pod is not steered", func(r *agentpb.Report) bool {
		for _, target := range r.GetTargets() {
			if target.GetPodUid() == s.other.UID && target.GetSteering() {
				return false
			}
		}
		return true
	})
}
