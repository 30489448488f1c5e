// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

func someWorkloads() []*daemonpb.WorkloadInfo {
	bob := &daemonpb.InterceptInfo{Name: "orders", Holder: "bob@desk", Mechanism: "http",
		Conditions: []string{`header("coder") == "bob"`}, State: "ACTIVE"}
	ann := &daemonpb.InterceptInfo{Name: "stock", Holder: "ann@desk", Mechanism: "tcp", State: "ACTIVE"}
	return []*daemonpb.WorkloadInfo{
		{Kind: "StatefulSet", Name: "stock", Namespace: "shop", Others: []*daemonpb.InterceptInfo{ann}},
		{Kind: "Deployment", Name: "orders", Namespace: "shop",
			Intercepts: []*daemonpb.InterceptInfo{anIntercept()}, Others: []*daemonpb.InterceptInfo{bob}},
		{Kind: "Deployment", Name: "frontend", Namespace: "shop"},
		{Kind: "ReplicaSet", Name: "legacy", Namespace: "shop",
			NotInterceptable: "it runs on the host's network"},
	}
}

func TestList(t *testing.T) {
	elsewhere := &daemonpb.WorkloadInfo{Kind: "Deployment", Name: "frontend", Namespace: "default"}
	for name, set := range map[string]func(*world){
		"one namespace": func(w *world) { w.daemon.workloads = someWorkloads() },
		"several":       func(w *world) { w.daemon.workloads = append(someWorkloads(), elsewhere) },
		"a TLS port": func(w *world) {
			w.daemon.workloads = []*daemonpb.WorkloadInfo{{Kind: "Deployment", Name: "orders",
				Namespace: "shop", Intercepts: []*daemonpb.InterceptInfo{aDeafIntercept()}}}
		},
		"requests that are not answered": func(w *world) {
			w.daemon.workloads = []*daemonpb.WorkloadInfo{{Kind: "Deployment", Name: "orders",
				Namespace: "shop", Intercepts: []*daemonpb.InterceptInfo{anUnansweredIntercept()}}}
		},
		"kinds that share a name": func(w *world) {
			w.daemon.workloads = append(someWorkloads(),
				&daemonpb.WorkloadInfo{Kind: "DaemonSet", Name: "frontend", Namespace: "shop"},
				&daemonpb.WorkloadInfo{Kind: "Pod", Name: "debug", Namespace: "shop",
					NotInterceptable: "no service and no container port"})
		},
		"nothing":          func(*world) {},
		"colours":          func(w *world) { w.terminal = true; w.daemon.workloads = someWorkloads() },
		"without a daemon": func(w *world) { w.stop(); w.daemon.workloads = someWorkloads() },
	} {
		t.Run("list of "+name, func(t *testing.T) {
			w := newWorld(t)
			if name != "without a daemon" {
				w.connected(true)
			}
			w.vars["TERM"] = "xterm"
			set(w)
			w.progress(t)
			text := w.transcript("list")
			for _, args := range [][]string{{"list", "--output", "json"}, {"list", "--output", "yaml"}} {
				text += "\n" + w.transcript(args...)
			}
			golden(t, "list "+name, text)
		})
	}
}

// progress turns the spinner off, which the clock drives.
func (w *world) progress(*testing.T) {
	inner := w.IsTerminal
	w.IsTerminal = func(stream any) (int, bool) {
		if stream == w.Env.Stderr {
			return 0, false
		}
		return inner(stream)
	}
}

func TestListAsksTheDaemonForWhatTheFlagsSay(t *testing.T) {
	for args, want := range map[[3]string]*daemonpb.ListRequest{
		{"list"}:                           {Filter: "all"},
		{"list", "-n", "shop"}:             {Filter: "all", Namespace: "shop"},
		{"list", "-A"}:                     {Filter: "all", AllNamespaces: true},
		{"list", "-i"}:                     {Filter: "intercepted"},
		{"list", "--intercepts", "-A"}:     {Filter: "intercepted", AllNamespaces: true},
		{"list", "-t"}:                     {Filter: "wiretapped"},
		{"list", "--wiretaps", "-i"}:       {Filter: "held"},
		{"list", "-o"}:                     {Filter: "interceptable"},
		{"list", "--only-interceptable=0"}: {Filter: "all"},
		{"list", "--debug", "-a"}:          {Filter: "all"},
	} {
		w := newWorld(t).connected(true)
		var words []string
		for _, a := range args {
			if a != "" {
				words = append(words, a)
			}
		}
		assert.Zero(t, w.do(words...), w.stderr.String())
		got := request[*daemonpb.ListRequest](t, w)
		assert.Equal(t, want.String(), got.String(), words)
	}
}

func missingManager() error {
	return reason.New(codes.FailedPrecondition, reason.ManagerNotInstalled,
		"there is no traffic manager in namespace sidestep of https://10.0.0.1:6443")
}

func TestListInstallsTheTrafficManagerThatIsMissing(t *testing.T) {
	start := func(t *testing.T) *world {
		w := newWorld(t).connected(false)
		w.daemon.workloads = someWorkloads()
		w.daemon.connectErr = missingManager()
		w.cluster.after = func() { w.daemon.connectErr = nil }
		return w
	}
	t.Run("not without being told to, when nobody can be asked", func(t *testing.T) {
		w := start(t)
		golden(t, "list manager missing", w.transcript("list")+"\n"+w.transcript("list", "--output", "json"))
		assert.Empty(t, w.cluster.calls)
	})
	t.Run("with --yes", func(t *testing.T) {
		w := start(t)
		golden(t, "list manager missing, yes", w.transcript("list", "--yes"))
		assert.Equal(t, []string{"install"}, w.cluster.calls)
		assert.True(t, w.cluster.settings.Wait)
		assert.True(t, w.cluster.settings.CreateNamespace)
		assert.Equal(t, "sidestep", w.cluster.options.Namespace)
	})
	t.Run("when the user agrees with Enter", func(t *testing.T) {
		w := start(t)
		w.terminal, w.vars["TERM"] = true, "dumb"
		w.stdin.WriteString("\n")
		golden(t, "list manager missing, agreed", w.transcript("list"))
		assert.Equal(t, []string{"install"}, w.cluster.calls)
	})
	t.Run("not when the user refuses", func(t *testing.T) {
		w := start(t)
		w.terminal, w.vars["TERM"] = true, "dumb"
		w.stdin.WriteString("n\n")
		golden(t, "list manager missing, refused", w.transcript("list"))
		assert.Empty(t, w.cluster.calls)
	})
	t.Run("not when there is no answer", func(t *testing.T) {
		w := start(t)
		w.terminal, w.vars["TERM"] = true, "dumb"
		assert.Equal(t, exitError, w.do("list"))
		assert.Empty(t, w.cluster.calls)
	})
	t.Run("not when the user presses Ctrl-C", func(t *testing.T) {
		w := start(t)
		w.terminal, w.vars["TERM"] = true, "dumb"
		ctx, cancel := context.WithCancelCause(context.Background())
		w.Env.Stdin = blockingReader{onRead: func() { cancel(output.SignalError(2)) }}
		assert.Equal(t, 130, w.doCtx(ctx, "list"))
		assert.Empty(t, w.cluster.calls)
	})
}

// blockingReader is a terminal at which no one types.
type blockingReader struct{ onRead func() }

func (b blockingReader) Read([]byte) (int, error) {
	b.onRead()
	select {}
}

// lists waits until the daemon has been asked for the list n more times.
func (w *world) lists(n int) {
	w.t.Helper()
	asked := func() int {
		w.daemon.mu.Lock()
		defer w.daemon.mu.Unlock()
		return len(w.daemon.requests)
	}
	before := asked()
	require.Eventually(w.t, func() bool { return asked() >= before+n }, 30*time.Second, 5*time.Millisecond)
}

func TestAListThatIsFollowed(t *testing.T) {
	w := newWorld(t).connected(true)
	w.daemon.workloads = someWorkloads()[2:3]
	ctx, interrupt := context.WithCancel(t.Context())
	ended := make(chan int, 1)
	go func() { ended <- w.doCtx(ctx, "list", "--output", "json-stream") }()
	w.lists(2)
	change := func(to []*daemonpb.WorkloadInfo, err error) {
		w.daemon.mu.Lock()
		defer w.daemon.mu.Unlock()
		w.daemon.workloads, w.daemon.listErr = to, err
	}
	change(nil, nil)
	w.lists(2)
	interrupt()
	assert.Zero(t, <-ended, "that it is interrupted is no error")
	assert.Equal(t, `[{"name":"frontend","namespace":"shop","workload_kind":"Deployment","state":"ready to intercept"}]
[]
`, w.stdout.String(), "a line for each list that is another")

	change(nil, status.Error(codes.Internal, "the cluster does not answer"))
	assert.Equal(t, exitError, w.do("list", "--output", "json-stream"))
	assert.Equal(t, `{"cmd":"list","err":"the cluster does not answer"}`+"\n", w.stdout.String())
}

func TestARecordIsOneLineOfAStream(t *testing.T) {
	for _, args := range [][]string{{"status"}, {"version"}, {"intercept", "orders", "--port", "9000"},
		{"list-contexts"}, {"quit"}} {
		w := newWorld(t).connected(true)
		assert.Zero(t, w.do(append(args, "--output=json-stream")...), args)
		assert.Equal(t, 1, strings.Count(w.stdout.String(), "\n"), "%s: %s", args, w.stdout.String())
		assert.True(t, json.Valid(w.stdout.Bytes()), args)
	}
}
