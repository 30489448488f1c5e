// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/progress"
	"sidestep.dev/sidestep/internal/version"
)

// resumePatience is how long a command waits for a session that a new daemon takes up.
const resumePatience = 3 * time.Second

// session is a daemon that answers, for the length of a command.
type session struct {
	daemonpb.DaemonClient
	io.Closer
	line *progress.Line
	// warn prints what must not pass by as progress does.
	warn    func(string)
	version string // of the daemon
}

// notRunning tells whether dialling failed because there is no daemon.
func notRunning(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// running reaches the daemon if one runs or has left a session to resume; the result is nil
// otherwise.
func (e *env) running(ctx context.Context, g *global) (*session, error) {
	s, err := e.reach(ctx, g)
	if notRunning(err) {
		if !e.saved() {
			return nil, nil
		}
		if s, err = e.start(ctx, g); err != nil {
			return nil, err
		}
		return s, s.resumed(ctx)
	}
	return s, err
}

// resumed gives a daemon that has just been started a moment to connect again, so that what is
// shown is not just the beginning.
func (s *session) resumed(ctx context.Context) error {
	s.line.Set("connecting to the traffic manager")
	defer s.line.Close()
	patience, cancel := context.WithTimeout(ctx, resumePatience)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		st, err := s.Status(patience, &daemonpb.Empty{})
		if err == nil && (st.GetConnected() || st.GetSession() == "") {
			return nil
		}
		select {
		case <-patience.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

// started reaches the daemon and starts it if none runs.
func (e *env) started(ctx context.Context, g *global) (*session, error) {
	s, err := e.reach(ctx, g)
	if notRunning(err) {
		return e.start(ctx, g)
	}
	return s, err
}

func (e *env) reach(ctx context.Context, g *global) (*session, error) {
	client, closer, err := e.dial(ctx)
	if err != nil {
		return nil, err
	}
	line := e.line(g)
	warn := func(text string) {
		line.Close()
		e.warn(g, text)
	}
	s := &session{DaemonClient: client, Closer: closer, line: line, warn: warn}
	if err := e.answers(ctx, s); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// answers makes sure that the daemon is not one that hangs: the kernel accepts connections for it
// all the same.
func (e *env) answers(ctx context.Context, s *session) error {
	patience, cancel := context.WithTimeout(ctx, e.patience)
	defer cancel()
	v, err := s.Version(patience, &daemonpb.Empty{})
	if patience.Err() != nil && ctx.Err() == nil {
		return e.hung()
	}
	s.version = v.GetVersion()
	return err
}

func (e *env) start(ctx context.Context, g *global) (*session, error) {
	e.note(g, "Launching %s User Daemon", e.brand())
	if err := e.launch(ctx); err != nil {
		return nil, err
	}
	return e.reach(ctx, g)
}

// otherVersion is an error if the daemon is not of this version.
func (e *env) otherVersion(s *session) error {
	if s.version == e.version {
		return nil
	}
	return fmt.Errorf("the running daemon is %s and this is %s %s — run `%s quit -s` and try again",
		s.version, e.name, e.version, e.name)
}

// sameVersion sees that the daemon is of this version: it replaces one that has no session, and
// refuses to ask any other for more than its status. The session of the result is s, or that of the
// new daemon.
func (e *env) sameVersion(ctx context.Context, g *global, s *session) (*session, error) {
	if s.version == e.version {
		return s, nil
	}
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return s, err
	}
	if st.GetSession() != "" {
		return s, e.otherVersion(s)
	}
	e.note(g, "The running daemon is %s and this is %s %s: it is replaced", s.version, e.name, e.version)
	if err := e.stopDaemon(ctx, g, s); err != nil {
		return s, err
	}
	next, err := e.start(ctx, g)
	if err != nil {
		return s, err
	}
	_ = s.Close()
	if next.version != e.version {
		return next, fmt.Errorf("the daemon that was started is %s and this is %s %s — is there another %s at its place?", next.version, e.name, e.version, e.name)
	}
	return next, nil
}

// news tells what has ended since the last command without having been left.
func (e *env) news(ctx context.Context, s *session) {
	reply, err := s.Ended(ctx, &daemonpb.Empty{})
	if err != nil {
		return // a daemon of an older version
	}
	for _, ended := range reply.GetEnded() {
		s.warn(fmt.Sprintf("intercept %s of %s %s in namespace %s has ended: %s",
			ended.GetName(), ended.GetWorkloadKind(), ended.GetWorkload(), ended.GetNamespace(),
			ended.GetReason()))
	}
}

// connected reaches the daemon and sees that it has a session: the one there is, if the flags do
// not ask for another, or a new one.
func (e *env) connected(ctx context.Context, g *global) (*session, error) {
	s, err := e.started(ctx, g)
	if err != nil {
		return nil, err
	}
	if s, err = e.sameVersion(ctx, g, s); err == nil {
		err = e.ensureSession(ctx, g, s)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (e *env) ensureSession(ctx context.Context, g *global, s *session) error {
	e.news(ctx, s)
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return err
	}
	if st.GetSession() != "" && !choosesCluster(setFlags(g.kube)) {
		return nil
	}
	// The namespace of a command that connects on the way is that of its workload and not of the
	// session.
	now, err := e.connect(ctx, g, s, "")
	if err != nil {
		return err
	}
	if st.GetSession() == "" {
		e.note(g, "%s", connectedTo(now))
		e.skew(g, now)
	}
	return nil
}

// connect makes the session.
func (e *env) connect(ctx context.Context, g *global, s *session,
	namespace string) (*daemonpb.StatusInfo, error) {
	dir, err := e.workingDir()
	if err != nil {
		return nil, err
	}
	s.line.Set("connecting to the traffic manager")
	defer s.line.Close()
	return s.Connect(ctx, &daemonpb.ConnectRequest{
		KubeFlags: setFlags(g.kube), KubeconfigEnv: e.getenv("KUBECONFIG"),
		Namespace: namespace, ManagerNamespace: g.managerNamespace, WorkingDir: dir,
	})
}

// skew warns of a traffic manager whose version is not tested with this one.
func (e *env) skew(g *global, st *daemonpb.StatusInfo) {
	older, newer := version.Apart(e.version, st.GetManagerVersion())
	mend := ""
	switch {
	case older:
		mend = "get " + e.name + " " + st.GetManagerVersion()
	case newer:
		mend = "run `" + e.name + " helm upgrade`"
	default:
		return
	}
	e.warn(g, fmt.Sprintf("the traffic manager is %s and this is %s %s: versions that are more than one minor apart are not tested together%s%s",
		st.GetManagerVersion(), e.name, e.version, dash, mend))
}

func connectedTo(s *daemonpb.StatusInfo) string {
	return fmt.Sprintf("Connected to context %s, namespace %s (%s)", s.GetKubernetesContext(),
		s.GetNamespace(), s.GetKubernetesServer())
}
