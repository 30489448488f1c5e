// SPDX-License-Identifier: Apache-2.0

package env

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"syscall"
	"time"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/client/cli/progress"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/version"
)

// Afterwards bounds the undoing of what a command did, after the command or its user has given up.
const Afterwards = 15 * time.Second

// WarnLeft turns the error that the session has ended and its intercepts could not be deleted into
// a warning.
func (e *Env) WarnLeft(g *Global, err error) error {
	if reason.Of(err) != reason.InterceptsLeft {
		return err
	}
	e.Warn(g, output.Sentence(err))
	return nil
}

// StopDaemon ends the daemon and returns when its socket is gone, so that the next command does not
// meet a dying one.
func (e *Env) StopDaemon(ctx context.Context, g *Global, s *Daemon) error {
	_, err := s.Quit(ctx, &daemonpb.Empty{})
	if err := e.WarnLeft(g, err); err != nil {
		return err
	}
	deadline, cancel := context.WithTimeout(ctx, Afterwards)
	defer cancel()
	tick := time.NewTicker(20 * time.Millisecond)
	defer tick.Stop()
	for {
		_, closer, err := e.Dial(deadline)
		if err != nil {
			return ctx.Err()
		}
		_ = closer.Close()
		select {
		case <-deadline.Done():
			if ctx.Err() != nil {
				return ctx.Err()
			}
			return reason.Advise(fmt.Errorf("the daemon was told to end and has not within %s", Afterwards),
				"see its log in ~/.cache/sidestep/logs")
		case <-tick.C:
		}
	}
}

// resumePatience is how long a command waits for a session that a new daemon resumes.
const resumePatience = 3 * time.Second

// Daemon is a daemon that answers, used by one command.
type Daemon struct {
	daemonpb.DaemonClient
	io.Closer
	Line *progress.Line
	// Warn prints a line that stays on the screen, which progress does not.
	Warn    func(string)
	version string // of the daemon
}

// NotRunning reports whether dialling failed because there is no daemon.
func NotRunning(err error) bool {
	return errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ECONNREFUSED)
}

// Running reaches the daemon if one runs or has left a session to resume; the result is nil
// otherwise.
func (e *Env) Running(ctx context.Context, g *Global) (*Daemon, error) {
	s, err := e.Reach(ctx, g)
	if NotRunning(err) {
		if !e.Saved() {
			return nil, nil
		}
		if s, err = e.start(ctx, g); err != nil {
			return nil, err
		}
		return s, s.resumed(ctx)
	}
	return s, err
}

// resumed waits up to resumePatience until a daemon that has just started is connected again, so that
// status shows the session and not only how it begins.
func (s *Daemon) resumed(ctx context.Context) error {
	s.Line.Set("connecting to the traffic manager")
	defer s.Line.Close()
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

// Started connects to the daemon, and starts it if none runs.
func (e *Env) Started(ctx context.Context, g *Global) (*Daemon, error) {
	s, err := e.Reach(ctx, g)
	if NotRunning(err) {
		return e.start(ctx, g)
	}
	return s, err
}

// Reach connects to the running daemon. It does not start one.
func (e *Env) Reach(ctx context.Context, g *Global) (*Daemon, error) {
	client, closer, err := e.Dial(ctx)
	if err != nil {
		return nil, err
	}
	line := e.Line(g)
	warn := func(text string) {
		line.Close()
		e.Warn(g, text)
	}
	s := &Daemon{DaemonClient: client, Closer: closer, Line: line, Warn: warn}
	if err := e.answers(ctx, s); err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

// answers checks that the daemon does not hang: the kernel accepts connections for it even then.
func (e *Env) answers(ctx context.Context, s *Daemon) error {
	patience, cancel := context.WithTimeout(ctx, e.Patience)
	defer cancel()
	v, err := s.Version(patience, &daemonpb.Empty{})
	if patience.Err() != nil && ctx.Err() == nil {
		return e.Hung()
	}
	s.version = v.GetVersion()
	return err
}

func (e *Env) start(ctx context.Context, g *Global) (*Daemon, error) {
	e.Note(g, "Launching %s User Daemon", e.Brand())
	if err := e.Launch(ctx); err != nil {
		return nil, err
	}
	return e.Reach(ctx, g)
}

// OtherVersion returns an error if the daemon is not of this version.
func (e *Env) OtherVersion(s *Daemon) error {
	if s.version == e.Version {
		return nil
	}
	return reason.Advise(fmt.Errorf("the running daemon is %s and this is %s %s", s.version, e.Name, e.Version),
		"run `%s quit -s` and try again", e.Name)
}

// SameVersion makes sure that the daemon is of this version. It replaces a daemon that has no
// session, and otherwise refuses to ask it for more than its status. It returns s, or the new
// daemon.
func (e *Env) SameVersion(ctx context.Context, g *Global, s *Daemon) (*Daemon, error) {
	if s.version == e.Version {
		return s, nil
	}
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return s, err
	}
	if st.GetSession() != "" {
		return s, e.OtherVersion(s)
	}
	e.Note(g, "The running daemon is %s and this is %s %s: it is replaced", s.version, e.Name, e.Version)
	if err := e.StopDaemon(ctx, g, s); err != nil {
		return s, err
	}
	next, err := e.start(ctx, g)
	if err != nil {
		return s, err
	}
	_ = s.Close()
	if next.version != e.Version {
		return next, reason.Advise(fmt.Errorf("the daemon that was started is %s and this is %s %s",
			next.version, e.Name, e.Version), "is there another %s at its place?", e.Name)
	}
	return next, nil
}

// News prints what has ended since the last command without having been left.
func (e *Env) News(ctx context.Context, s *Daemon) {
	reply, err := s.Ended(ctx, &daemonpb.Empty{})
	if err != nil {
		return // a daemon of an older version
	}
	for _, ended := range reply.GetEnded() {
		s.Warn(fmt.Sprintf("intercept %s of %s %s in namespace %s has ended: %s",
			ended.GetName(), ended.GetWorkloadKind(), ended.GetWorkload(), ended.GetNamespace(),
			ended.GetReason()))
	}
}

// Connected connects to the daemon and makes sure that it has a session: the present one, if the
// flags do not ask for another, or a new one.
func (e *Env) Connected(ctx context.Context, g *Global) (*Daemon, error) {
	s, err := e.Started(ctx, g)
	if err != nil {
		return nil, err
	}
	if s, err = e.SameVersion(ctx, g, s); err == nil {
		err = e.ensureSession(ctx, g, s)
	}
	if err != nil {
		_ = s.Close()
		return nil, err
	}
	return s, nil
}

func (e *Env) ensureSession(ctx context.Context, g *Global, s *Daemon) error {
	e.News(ctx, s)
	st, err := s.Status(ctx, &daemonpb.Empty{})
	if err != nil {
		return err
	}
	if st.GetSession() != "" && !choosesCluster(setFlags(g.Kube)) {
		return nil
	}
	// The namespace of a command that connects implicitly is its workload's, and not the session's.
	now, err := e.Connect(ctx, g, s, "")
	if err != nil {
		return err
	}
	if st.GetSession() == "" {
		e.Note(g, "%s", ConnectedTo(now))
		e.Skew(g, now)
	}
	return nil
}

// Connect begins the session.
func (e *Env) Connect(ctx context.Context, g *Global, s *Daemon,
	namespace string) (*daemonpb.StatusInfo, error) {
	dir, err := e.WorkingDir()
	if err != nil {
		return nil, err
	}
	s.Line.Set("connecting to the traffic manager")
	defer s.Line.Close()
	return s.Connect(ctx, &daemonpb.ConnectRequest{
		KubeFlags: setFlags(g.Kube), KubeconfigEnv: e.Getenv("KUBECONFIG"),
		Namespace: namespace, ManagerNamespace: g.ManagerNamespace, WorkingDir: dir,
	})
}

// Skew warns of a traffic manager whose version is not tested with this one.
func (e *Env) Skew(g *Global, st *daemonpb.StatusInfo) {
	older, newer := version.Apart(e.Version, st.GetManagerVersion())
	mend := ""
	switch {
	case older:
		mend = "get " + e.Name + " " + st.GetManagerVersion()
	case newer:
		mend = "run `" + e.Name + " helm upgrade`"
	default:
		return
	}
	e.Warn(g, fmt.Sprintf("the traffic manager is %s and this is %s %s: versions that are more than one minor "+
		"apart are not tested together%s%s",
		st.GetManagerVersion(), e.Name, e.Version, reason.Dash, mend))
}

// ConnectedTo returns the line that says which cluster a session is with.
func ConnectedTo(s *daemonpb.StatusInfo) string {
	return fmt.Sprintf("Connected to context %s, namespace %s (%s)", s.GetKubernetesContext(),
		s.GetNamespace(), s.GetKubernetesServer())
}

// holdsSession reports whether the daemon, if one runs, has a session.
func holdsSession(ctx context.Context, s *Daemon) bool {
	st, err := s.Status(ctx, &daemonpb.Empty{})
	return err == nil && st.GetSession() != ""
}
