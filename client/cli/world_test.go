// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/fstest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/install"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/daemon/socket"
	"sidestep.dev/sidestep/internal/reason"
)

var update = flag.Bool("update", false, "write what is printed into testdata instead of comparing it")

const (
	testVersion = "v1.2.3"
	testSession = "71d5e134-1163-4d17-8138-e35624c1e941"
)

// daemonServer is a daemon with a real socket that answers what a test wants.
type daemonServer struct {
	daemonpb.UnimplementedDaemonServer
	mu         sync.Mutex
	version    string
	status     *daemonpb.StatusInfo // with the session that Connect makes
	connected  bool
	connectErr error
	quitErr    error
	workloads  []*daemonpb.WorkloadInfo
	listErr    error
	progress   []string
	// intercept answers Intercept; nil makes an intercept from the request.
	warning   string // between the progress and the result
	intercept func(context.Context, *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error)
	// environment comes with each intercept that wants one.
	environment  *daemonpb.Environment
	left         []string
	leaveErr     error
	held         []string                  // what Hold was called for
	broken       int                       // calls of Hold that the caller has ended
	gone         chan struct{}             // ends every Hold
	holdWarnings []string                  // of every Hold
	agents       *daemonpb.NodeAgentsReply // nil: a daemon that does not know the call
	agentsErr    error
	level        *daemonpb.LogLevelRequest

	ended []*daemonpb.EndedInfo // news

	requests []proto.Message
	quit     func()
}

func (d *daemonServer) saw(m proto.Message) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.requests = append(d.requests, proto.Clone(m))
}

func (d *daemonServer) Version(context.Context, *daemonpb.Empty) (*daemonpb.VersionInfo, error) {
	return &daemonpb.VersionInfo{Version: d.version, Executable: "/usr/local/bin/sidestep", Pid: 4711}, nil
}

func (d *daemonServer) Status(ctx context.Context, _ *daemonpb.Empty) (*daemonpb.StatusInfo, error) {
	v, _ := d.Version(ctx, nil)
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.connected {
		return &daemonpb.StatusInfo{Daemon: v, State: "Not connected"}, nil
	}
	s := proto.Clone(d.status).(*daemonpb.StatusInfo)
	s.Daemon = v
	return s, nil
}

func (d *daemonServer) Ended(ctx context.Context, r *daemonpb.Empty) (*daemonpb.EndedReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	ended := d.ended
	d.ended = nil
	return &daemonpb.EndedReply{Ended: ended}, nil
}

func (d *daemonServer) NodeAgents(ctx context.Context, r *daemonpb.Empty) (*daemonpb.NodeAgentsReply, error) {
	if d.agents == nil && d.agentsErr == nil {
		return d.UnimplementedDaemonServer.NodeAgents(ctx, r)
	}
	return d.agents, d.agentsErr
}

func (d *daemonServer) Connect(ctx context.Context, r *daemonpb.ConnectRequest) (*daemonpb.StatusInfo, error) {
	d.saw(r)
	if d.connectErr != nil {
		return nil, d.connectErr
	}
	d.mu.Lock()
	d.connected = true
	d.mu.Unlock()
	return d.Status(ctx, nil)
}

func (d *daemonServer) Disconnect(context.Context, *daemonpb.Empty) (*daemonpb.Empty, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.connected = false
	return &daemonpb.Empty{}, d.quitErr
}

func (d *daemonServer) Quit(context.Context, *daemonpb.Empty) (*daemonpb.Empty, error) {
	go d.quit()
	return &daemonpb.Empty{}, d.quitErr
}

func (d *daemonServer) List(_ context.Context, r *daemonpb.ListRequest) (*daemonpb.ListReply, error) {
	d.saw(r)
	d.mu.Lock()
	defer d.mu.Unlock()
	return &daemonpb.ListReply{Workloads: d.workloads}, d.listErr
}

func (d *daemonServer) Intercept(r *daemonpb.InterceptRequest,
	stream grpc.ServerStreamingServer[daemonpb.InterceptEvent]) error {
	d.saw(r)
	d.mu.Lock()
	progress, answer := d.progress, d.intercept
	d.mu.Unlock()
	for _, p := range progress {
		if err := stream.Send(&daemonpb.InterceptEvent{Progress: p}); err != nil {
			return err
		}
	}
	if d.warning != "" {
		if err := stream.Send(&daemonpb.InterceptEvent{Warning: d.warning}); err != nil {
			return err
		}
	}
	if answer == nil {
		answer = func(_ context.Context, r *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, error) {
			return made(r), nil
		}
	}
	info, err := answer(stream.Context(), r)
	if err != nil {
		return err
	}
	event := &daemonpb.InterceptEvent{Result: info}
	if r.GetEnvironment() != daemonpb.InterceptRequest_NOT_WANTED {
		event.Environment = d.environment
	}
	return stream.Send(event)
}

func (d *daemonServer) Hold(r *daemonpb.HoldRequest,
	stream grpc.ServerStreamingServer[daemonpb.HoldEvent]) error {
	d.mu.Lock()
	d.held = append(d.held, r.GetIntercept())
	d.mu.Unlock()
	if err := stream.Send(&daemonpb.HoldEvent{}); err != nil {
		return err
	}
	for _, text := range d.holdWarnings {
		if err := stream.Send(&daemonpb.HoldEvent{Warning: text}); err != nil {
			return err
		}
	}
	select {
	case <-d.gone:
		return nil
	case <-stream.Context().Done():
		d.mu.Lock()
		defer d.mu.Unlock()
		d.broken++
		return stream.Context().Err()
	}
}

func (d *daemonServer) Config(context.Context, *daemonpb.Empty) (*daemonpb.ConfigInfo, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	c := &daemonpb.ConfigInfo{
		LogLevel: "info", Socket: "/run/user/1000/sidestep/daemon.sock",
		LogFile:     "/home/jane/.cache/sidestep/logs/daemon.log",
		SessionFile: "/home/jane/.cache/sidestep/session.json",
	}
	if d.level != nil {
		c.LogLevel, c.LogLevelRevertsMs = d.level.GetLevel(), d.level.GetDurationMs()
	}
	if d.connected {
		c.SessionGraceMs = (15 * time.Minute).Milliseconds()
	}
	return c, nil
}

func (d *daemonServer) SetLogLevel(_ context.Context, r *daemonpb.LogLevelRequest) (*daemonpb.Empty, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.level = r
	return &daemonpb.Empty{}, nil
}

func (d *daemonServer) Leave(_ context.Context, r *daemonpb.LeaveRequest) (*daemonpb.LeaveReply, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.leaveErr != nil {
		return nil, d.leaveErr
	}
	for _, i := range d.status.GetIntercepts() {
		if i.GetName() == r.GetName() {
			d.left = append(d.left, r.GetName())
			return &daemonpb.LeaveReply{Left: i}, nil
		}
	}
	return nil, reason.New(codes.NotFound, reason.InterceptNotFound, "intercept named %q not found", r.GetName()).
		Advise("'sidestep list --intercepts' shows yours")
}

// made returns the intercept that the request asks for, as it is if all is well.
func made(r *daemonpb.InterceptRequest) *daemonpb.InterceptInfo {
	i := &daemonpb.InterceptInfo{
		Name: r.GetName(), Namespace: "default", WorkloadKind: "Deployment", Workload: r.GetWorkload(),
		State:       "ACTIVE",
		Destination: net.JoinHostPort(r.GetAddress(), fmt.Sprint(r.GetLocalPort())),
		Service:     r.GetWorkload(), ServicePort: r.GetPortIdentifier(),
		Mechanism: r.GetMechanism(), Holder: "jane@laptop", Coverage: "1/1",
		Id: testSession + ":" + r.GetName(), Container: r.GetContainer(), ToPod: r.GetToPod(),
		Wiretap: r.GetWiretap(),
	}
	if r.GetNamespace() != "" {
		i.Namespace = r.GetNamespace()
	}
	if r.GetAutoHeader() {
		id := testSession + ":" + r.GetName()
		i.Conditions = append(i.Conditions,
			fmt.Sprintf(`header("x-telepresence-intercept-id") ~= regexp("%s")`, id))
		i.CurlHeaders = append(i.CurlHeaders, "x-telepresence-intercept-id: "+id)
	}
	return i
}

// world is a laptop for the length of a test.
type world struct {
	*env.Env
	t              *testing.T
	daemon         *daemonServer
	cluster        *clusterSpy
	stdin          *bytes.Buffer
	stdout, stderr bytes.Buffer
	vars           map[string]string
	launches       int
	cleaned        int
	hasSaved       bool
	terminal       bool // all three streams
	programs       [][]string
	programVars    []string // of the last one
	programCode    int
	tools          []string // on the PATH
	socket         string
	serving        *grpc.Server
}

// newWorld has a cluster, no daemon yet, and no terminal.
func newWorld(t *testing.T) *world {
	w := &world{t: t, cluster: &clusterSpy{}, stdin: &bytes.Buffer{},
		vars: map[string]string{"KUBECONFIG": "kube/config"}}
	w.socket = filepath.Join(t.TempDir(), "d.sock")
	w.daemon = &daemonServer{version: testVersion, status: statusOf(), quit: w.stop, gone: make(chan struct{})}
	t.Cleanup(w.stop)
	w.Env = &env.Env{
		Name: "sidestep", Version: testVersion,
		Stdin: w.stdin, Stdout: &w.stdout, Stderr: &w.stderr,
		Getenv:     func(name string) string { return w.vars[name] },
		Now:        func() time.Time { return time.Date(2026, 1, 2, 3, 4, 5, 0, time.UTC) },
		LogFile:    func() string { return "/home/jane/.cache/sidestep/logs/daemon.log" },
		IsTerminal: func(any) (int, bool) { return 60, w.terminal },
		WorkingDir: func() (string, error) { return "/home/jane/orders", nil },
		Launch: func(context.Context) error {
			w.launches++
			w.connected(w.hasSaved)
			return nil
		},
		Saved:      func() bool { return w.hasSaved },
		Clean:      func() error { w.cleaned++; return nil },
		Patience:   20 * time.Second,
		Hung:       func() error { return socket.Hung(w.socket) },
		Foreground: func(context.Context) error { return errors.New("the daemon ran") },
		Chart:      fstest.MapFS{},
	}
	w.Dial = func(ctx context.Context) (daemonpb.DaemonClient, io.Closer, error) {
		return socket.DialPath(ctx, w.socket)
	}
	w.Env.Cluster = func(o install.Options) (env.Cluster, error) { w.cluster.options = o; return w.cluster, nil }
	w.Run = func(_ context.Context, p env.Program) (int, error) {
		w.programs, w.programVars = append(w.programs, p.Args), p.Vars
		return w.programCode, nil
	}
	w.LookPath = func(name string) (string, error) {
		if !slices.Contains(w.tools, name) {
			return "", exec.ErrNotFound
		}
		return "/usr/bin/" + name, nil
	}
	return w
}

func statusOf(intercepts ...*daemonpb.InterceptInfo) *daemonpb.StatusInfo {
	return &daemonpb.StatusInfo{
		Connected: true, Session: testSession, State: "Connected",
		KubernetesServer: "https://10.0.0.1:6443", KubernetesContext: "staging",
		Namespace: "default", ManagerNamespace: "sidestep", ManagerVersion: testVersion,
		Holder: "jane@laptop", Intercepts: intercepts,
	}
}

// connected starts the daemon, with a session or without.
func (w *world) connected(session bool) *world {
	w.daemon.mu.Lock()
	w.daemon.connected = session
	w.daemon.mu.Unlock()
	listener, err := net.Listen("unix", w.socket)
	require.NoError(w.t, err)
	w.serving = grpc.NewServer()
	daemonpb.RegisterDaemonServer(w.serving, w.daemon)
	serving := w.serving
	go func() { _ = serving.Serve(listener) }()
	return w
}

func (w *world) stop() {
	if w.serving != nil {
		w.serving.GracefulStop()
	}
}

// do runs a command line.
func (w *world) do(args ...string) int { return w.doCtx(context.Background(), args...) }

func (w *world) doCtx(ctx context.Context, args ...string) int {
	w.stdout.Reset()
	w.stderr.Reset()
	return Run(ctx, w.Env, args)
}

// transcript runs a command line and returns it as a terminal would have shown it.
func (w *world) transcript(args ...string) string {
	code := w.do(args...)
	text := "$ " + w.Name
	for _, a := range args {
		if strings.ContainsAny(a, " ()[]*?'\"$&;|") || a == "" {
			a = layout.Quote(a)
		}
		text += " " + a
	}
	text += "\n" + w.stdout.String()
	if w.stderr.Len() > 0 {
		text += "[stderr]\n" + w.stderr.String()
	}
	return text + fmt.Sprintf("[exit %d]\n", code)
}

// golden compares text with a file in testdata.
func golden(t *testing.T, name, text string) {
	t.Helper()
	path := filepath.Join("testdata", strings.ReplaceAll(strings.ReplaceAll(name, ",", ""), " ", "-")+".golden")
	if *update {
		require.NoError(t, os.MkdirAll(filepath.Dir(path), 0o755))
		require.NoError(t, os.WriteFile(path, []byte(text), 0o644))
		return
	}
	want, err := os.ReadFile(path)
	require.NoError(t, err, "run the tests with -update to make it")
	assert.Equal(t, string(want), text)
}

// request is the last request of type T that the daemon saw.
func request[T proto.Message](t *testing.T, w *world) T {
	t.Helper()
	w.daemon.mu.Lock()
	defer w.daemon.mu.Unlock()
	var none T
	for i := len(w.daemon.requests) - 1; i >= 0; i-- {
		if r, ok := w.daemon.requests[i].(T); ok {
			return r
		}
	}
	require.Failf(t, "the daemon saw no such request", "%T", none)
	return none
}
