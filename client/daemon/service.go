// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"runtime/debug"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/client/session"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/version"
)

// States of the session, as people read them.
const (
	stateConnected    = "Connected"
	stateReconnecting = "Reconnecting"
	stateNone         = "Not connected"
)

// service implements the calls of the command line.
type service struct {
	daemonpb.UnimplementedDaemonServer
	options  session.Options
	log      *slog.Logger
	quit     chan struct{} // closed by Quit
	quitOnce sync.Once
	stopping chan struct{} // closed when the daemon ends, before calls are aborted
	place    Options
	level    *logLevel

	changing chan struct{} // has a token while no call connects or disconnects

	mu      sync.Mutex
	current *session.Session
	trouble error // why the session on disk could not be resumed, or was ended
	// heldSession reports that a command holds the session by a call to this daemon.
	heldSession bool
}

func newService(o session.Options, place Options, level *logLevel) *service {
	s := &service{
		options: o, log: o.Log, place: place, level: level,
		quit: make(chan struct{}), stopping: make(chan struct{}), changing: make(chan struct{}, 1),
	}
	s.changing <- struct{}{}
	return s
}

// resume resumes the session that an earlier daemon has saved.
func (s *service) resume() {
	resumed, err := session.Resume(s.options)
	if err != nil {
		s.log.Error("cannot resume", "error", err)
	}
	if resumed != nil {
		s.log.Info("session resumed", "session", resumed.Client.Session, "server", resumed.Record().Server)
	}
	s.mu.Lock()
	s.current, s.trouble = resumed, err
	s.mu.Unlock()
	if resumed == nil {
		return
	}
	if process := resumed.Record().Process; process != 0 {
		go s.awaitCommand(resumed, process)
	}
}

// close closes the session in this process. The next daemon resumes it.
func (s *service) close() {
	if current := s.take(); current != nil {
		current.Close()
	}
}

func (s *service) take() *session.Session {
	s.mu.Lock()
	defer s.mu.Unlock()
	current := s.current
	s.current = nil
	return current
}

// session returns the current session, or the error that there is none.
func (s *service) session() (*session.Session, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		return nil, reason.New(codes.FailedPrecondition, reason.NoSession,
			"not connected to a cluster").
			Advise("run `sidestep connect`")
	}
	return s.current, nil
}

// change waits until no other call connects or disconnects.
func (s *service) change(ctx context.Context) (done func(), err error) {
	select {
	case <-s.changing:
		return func() { s.changing <- struct{}{} }, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (s *service) Version(context.Context, *daemonpb.Empty) (*daemonpb.VersionInfo, error) {
	return versionInfo(), nil
}

func versionInfo() *daemonpb.VersionInfo {
	executable, err := os.Executable()
	if err != nil {
		executable = os.Args[0]
	}
	return &daemonpb.VersionInfo{Version: version.Version, Executable: executable, Pid: int32(os.Getpid())}
}

func (s *service) Status(ctx context.Context, _ *daemonpb.Empty) (*daemonpb.StatusInfo, error) {
	s.mu.Lock()
	current, trouble := s.current, s.trouble
	s.mu.Unlock()
	info := &daemonpb.StatusInfo{Daemon: versionInfo(), State: stateNone}
	if current == nil {
		if trouble != nil {
			info.Message = trouble.Error()
		}
		return info, nil
	}
	record := current.Record()
	info.Session, info.Holder = record.ID, record.Holder
	info.KubernetesServer, info.KubernetesContext = record.Server, record.Context
	info.Namespace, info.ManagerNamespace = record.Namespace, record.ManagerNamespace
	state, _ := current.Link.State()
	info.Connected, info.ManagerVersion = state.Connected, state.ManagerVersion
	info.State, info.Message = describe(state)
	if err := current.Unstored(); err != nil && info.Message == "" {
		info.Message = fmt.Sprintf("the session is not saved and ends with the daemon: %v", err)
	}
	if err := current.LoginTrouble(); err != nil && info.Message == "" {
		info.Message = fmt.Sprintf("the traffic manager does not know who you are: %v", err)
	}
	if err := cmp.Or(current.Registry.Trouble(), current.Source.Trouble()); err != nil && info.Message == "" {
		info.Message = fmt.Sprintf("the state of intercepts may be stale: %v", err)
	}
	all, _ := current.Registry.All()
	info.Intercepts = current.Print(ctx, all, nil)
	info.Ended = printEnded(current.Registry.Ended(false))
	return info, nil
}

// Ended returns what has ended without having been left, once.
func (s *service) Ended(context.Context, *daemonpb.Empty) (*daemonpb.EndedReply, error) {
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current == nil {
		return &daemonpb.EndedReply{}, nil
	}
	return &daemonpb.EndedReply{Ended: printEnded(current.Registry.Ended(true))}, nil
}

func printEnded(ended []intercept.Ended) []*daemonpb.EndedInfo {
	var infos []*daemonpb.EndedInfo
	for _, e := range ended {
		infos = append(infos, &daemonpb.EndedInfo{
			Name: e.Name, Namespace: e.Namespace, WorkloadKind: e.WorkloadKind, Workload: e.Workload,
			Reason: e.Why, At: e.At.Unix(), Again: e.Again,
		})
	}
	return infos
}

// nodesTimeout bounds the wait for the manager's answer about node agents.
const nodesTimeout = 3 * time.Second

func (s *service) NodeAgents(ctx context.Context, _ *daemonpb.Empty) (*daemonpb.NodeAgentsReply, error) {
	current, err := s.session()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, nodesTimeout)
	defer cancel()
	state, _ := current.Link.State()
	told, err := state.Nodes(ctx)
	if err != nil {
		return nil, err
	}
	reply := &daemonpb.NodeAgentsReply{}
	for _, a := range told.GetAgents() {
		reply.Agents = append(reply.Agents, &daemonpb.NodeAgentInfo{
			Node: a.GetNode(), Attached: a.GetAttached(), Version: a.GetVersion(),
			Kernel: a.GetKernel(), Datapath: a.GetDatapath(), Reason: a.GetReason(),
		})
	}
	all, _ := current.Registry.All()
	for _, t := range told.GetTraffic() {
		i := slices.IndexFunc(all,
			func(i *v1alpha1.Intercept) bool { return string(i.UID) == t.GetInterceptUid() })
		if i >= 0 {
			info := intercept.Print(all[i], false)
			reply.Traffic = append(reply.Traffic,
				&daemonpb.TrafficInfo{InterceptId: info.GetId(), Traffic: t.GetTraffic(),
					Copies: t.GetCopies(), Answered: t.Answered, Unanswered: t.GetUnanswered()})
		}
	}
	return reply, nil
}

func describe(state link.State) (name, message string) {
	switch {
	case state.Connected:
		return stateConnected, ""
	case state.Err != nil:
		return stateReconnecting, state.Err.Error()
	default:
		return stateReconnecting, "connecting to the traffic manager"
	}
}

func (s *service) Connect(ctx context.Context, req *daemonpb.ConnectRequest) (*daemonpb.StatusInfo, error) {
	done, err := s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	target := session.Target{
		Access: kube.Access{Flags: req.GetKubeFlags(), KubeconfigEnv: req.GetKubeconfigEnv(),
			Dir: req.GetWorkingDir()},
		Namespace:        cmp.Or(req.GetNamespace(), req.GetKubeFlags()["namespace"]),
		ManagerNamespace: req.GetManagerNamespace(),
	}
	s.mu.Lock()
	current := s.current
	s.mu.Unlock()
	if current != nil {
		if err := current.Reuse(ctx, target); err != nil {
			return nil, err
		}
		return s.Status(ctx, nil)
	}
	opened, err := session.Open(ctx, target, s.options)
	if err != nil {
		return nil, err
	}
	s.mu.Lock()
	s.current, s.trouble = opened, nil
	s.mu.Unlock()
	s.log.Info("session begun", "session", opened.Client.Session, "server", opened.Record().Server)
	return s.Status(ctx, nil)
}

func (s *service) Disconnect(ctx context.Context, _ *daemonpb.Empty) (*daemonpb.Empty, error) {
	done, err := s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	return &daemonpb.Empty{}, s.end(ctx)
}

// end ends the session, even if the caller does not wait for it.
func (s *service) end(ctx context.Context) error {
	current := s.take()
	if current == nil {
		return nil
	}
	err := current.End(context.WithoutCancel(ctx))
	s.log.Info("session ended", "session", current.Client.Session, "error", err)
	return err
}

func (s *service) Quit(ctx context.Context, _ *daemonpb.Empty) (*daemonpb.Empty, error) {
	done, err := s.change(ctx)
	if err != nil {
		return nil, err
	}
	defer done()
	defer s.quitOnce.Do(func() { close(s.quit) })
	return &daemonpb.Empty{}, s.end(ctx)
}

// unary and stream give errors a code, and survive a panic in a call.
func (s *service) unary(ctx context.Context, req any, call *grpc.UnaryServerInfo,
	next grpc.UnaryHandler) (reply any, err error) {
	defer s.finish(call.FullMethod, &err)
	return next(ctx, req)
}

func (s *service) stream(srv any, stream grpc.ServerStream, call *grpc.StreamServerInfo,
	next grpc.StreamHandler) (err error) {
	defer s.finish(call.FullMethod, &err)
	return next(srv, stream)
}

func (s *service) finish(method string, err *error) {
	if cause := recover(); cause != nil {
		s.log.Error("panic", "call", method, "cause", cause, "stack", string(debug.Stack()))
		*err = reason.New(codes.Internal, "", "the daemon failed: %v", cause).Advise("its log says more")
		return
	}
	if *err == nil {
		return
	}
	s.log.Info("call failed", "call", method, "error", *err)
	var coded interface{ GRPCStatus() *status.Status }
	if !errors.As(*err, &coded) {
		*err = status.FromContextError(*err).Err()
	}
}
