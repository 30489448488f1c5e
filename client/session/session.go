// SPDX-License-Identifier: Apache-2.0

package session

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"reflect"
	"slices"
	"sync"
	"time"

	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/client/deliver"
	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/client/outbound"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tunnel"
)

const (
	// syncTimeout bounds how long a connection to the manager waits for the list of intercepts to
	// which it delivers.
	syncTimeout = 3 * time.Second
	// resumeTimeout bounds how long Reuse waits for a connection that is being remade.
	resumeTimeout = 10 * time.Second
	// endTimeout bounds how long End tries to delete the intercepts if the cluster does not answer.
	endTimeout = 10 * time.Second
)

// Target is the cluster that a caller means.
type Target struct {
	Access           kube.Access
	Namespace        string // chosen by the caller; empty: the kubeconfig's
	ManagerNamespace string
}

// Session is a session that lasts until End or Close.
type Session struct {
	Link     *link.Link
	Registry *intercept.Registry
	Source   *kube.Source
	Client   intercept.Client
	Outbound *outbound.Ports

	login   *login
	store   Store
	log     *slog.Logger
	done    <-chan struct{}
	cancel  context.CancelFunc
	running sync.WaitGroup

	mu       sync.Mutex
	record   Record
	stored   bool  // the record has to be on disk
	unstored error // why it is not there
	ports    map[string]bool
}

// Options of sessions.
type Options struct {
	Store  Store
	Log    *slog.Logger
	Timing link.Timing
	// Forward connects to a port of a pod. Nil means through the API server.
	Forward link.Forward
	// Wall reads the wall clock. Nil means the real one.
	Wall func() time.Time
}

// Open begins a session with a cluster. It returns when the manager has been reached, or with an
// error.
func Open(ctx context.Context, target Target, o Options) (*Session, error) {
	record, err := NewRecord()
	if err != nil {
		return nil, err
	}
	cluster, err := target.Access.Load()
	if err != nil {
		return nil, err
	}
	record.adopt(target, cluster)
	s, err := start(record, false, o)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, s.Link.Timing.Ready)
	defer cancel()
	state := s.Link.Wait(ctx, func(st link.State) bool {
		return st.Connected || st.Err != nil && !s.login.hopes(st.Err) &&
			(link.IsLasting(st.Err) || reason.Of(st.Err) == reason.NoCluster)
	})
	if state.Connected {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stored = true
		s.save()
		return s, nil
	}
	s.abort()
	if state.Err == nil {
		return nil, reason.New(codes.DeadlineExceeded, reason.ManagerNotReady,
			"the traffic manager in namespace %s does not answer", record.ManagerNamespace)
	}
	return nil, state.Err
}

// abort closes a session that was never established, and deletes its Login.
func (s *Session) abort() {
	s.cancel()
	ctx, cancel := context.WithTimeout(context.Background(), syncTimeout)
	defer cancel()
	_ = s.login.end(ctx) // otherwise it expires
	s.Close()
}

// Resume resumes the session on disk, if there is one. It does not wait for the cluster.
func Resume(o Options) (*Session, error) {
	record, err := o.Store.Load()
	if err != nil || record == nil {
		return nil, err
	}
	return start(record, true, o)
}

func start(record *Record, stored bool, o Options) (*Session, error) {
	client, key, err := record.client()
	if err != nil {
		return nil, err
	}
	s := &Session{
		Source: kube.NewSource(record.Access), Client: client, store: o.Store, log: o.Log,
		record: *record, stored: stored, ports: map[string]bool{},
	}
	s.login = &login{source: s.Source, namespace: record.ManagerNamespace, keyHash: client.KeyHash,
		wall: o.Wall, log: o.Log, save: s.saveLogin}
	if record.Login != nil {
		s.login.current = *record.Login
	}
	if o.Wall == nil {
		s.login.wall = time.Now
	}
	route := &link.Route{Source: s.Source, Namespace: record.ManagerNamespace, Forward: o.Forward}
	s.Link = link.New(link.Config{
		Session: record.ID, Key: key, Holder: record.Holder, Log: o.Log, Timing: o.Timing, Wall: o.Wall,
		Dead: s.Source.Drop,
		Dial: func(ctx context.Context) (*link.Way, error) { return s.dial(ctx, route) },
		Serve: func(ctx context.Context, clients clientpb.ClientsClient, further <-chan link.Line,
			wants <-chan uint32) {
			s.Registry.Refresh()
			var restoring sync.WaitGroup
			defer restoring.Wait()
			restoring.Go(func() { s.Registry.Restore(ctx) })
			deliver.NewPool(clients, s.Registry, o.Log).Run(ctx, further, wants)
		},
	})
	s.Registry = intercept.NewRegistry(intercept.Config{
		Client: client, Source: s.Source, Namespaces: record.Namespaces, Known: record.Intercepts,
		Presence: s.presence, Save: s.saveIntercepts, Wall: o.Wall, Log: o.Log,
	})
	s.Outbound = outbound.New(s.Registry.All,
		func(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
			state, _ := s.Link.State()
			return state.ToPod(ctx, open)
		}, o.Log)
	ctx, cancel := context.WithCancel(context.Background())
	s.cancel, s.done = cancel, ctx.Done()
	s.running.Go(func() { s.Link.Run(ctx) })
	s.running.Go(func() { s.keepKnown(ctx) })
	s.running.Go(func() { s.login.keep(ctx) })
	s.running.Go(func() { s.Outbound.Run(ctx) })
	return s, nil
}

// presence returns how the manager has seen this laptop.
func (s *Session) presence() intercept.Presence {
	state, _ := s.Link.State()
	p := intercept.Presence{Connected: state.Connected, Since: state.Since, Grace: state.Grace}
	switch {
	case state.Heard.IsZero():
	case state.Connected:
		p.Away = state.Since.Sub(state.Heard)
	default:
		p.Away = s.Link.Wall().Sub(state.Heard)
	}
	return p
}

// keepKnown saves what the next daemon has to know about intercepts.
func (s *Session) keepKnown(ctx context.Context) {
	for {
		select {
		case <-s.Registry.Keep():
		case <-ctx.Done():
			return
		}
	}
}

// dial connects to the manager. Meanwhile it logs in and lists the intercepts, because the manager
// delivers as soon as it has said hello.
func (s *Session) dial(ctx context.Context, route *link.Route) (*link.Way, error) {
	before, _ := s.Link.State()
	logged := make(chan struct{})
	go func() {
		defer close(logged)
		s.login.ensure(ctx, reason.Of(before.Err) == reason.NotProven)
	}()
	synced := make(chan struct{})
	go func() {
		defer close(synced)
		ctx, cancel := context.WithTimeoutCause(ctx, syncTimeout, fmt.Errorf("no answer in %v", syncTimeout))
		defer cancel()
		if err := s.Registry.Sync(ctx); err != nil {
			s.log.Warn("connecting without knowing all intercepts", "error", err)
		}
	}()
	way, err := route.Dial(ctx)
	if err == nil {
		<-synced
		<-logged
	}
	return way, err
}

// adopt sets the record's target. The context is pinned: if the kubeconfig's current context
// changes, the session does not follow.
func (r *Record) adopt(t Target, cluster *kube.Cluster) {
	r.Access = t.Access
	if cluster.Context != "" {
		flags := maps.Clone(t.Access.Flags)
		if flags == nil {
			flags = map[string]string{}
		}
		flags["context"] = cluster.Context
		r.Access.Flags = flags
	}
	r.Server, r.Context = cluster.Server, cluster.Context
	r.ManagerNamespace = cmp.Or(t.ManagerNamespace, r.ManagerNamespace, names.Sidestep)
	switch {
	case t.Namespace != "":
		r.Namespace, r.NamespaceChosen = t.Namespace, true
	case !r.NamespaceChosen:
		r.Namespace = cluster.Namespace
	}
}

// Reuse lets the session serve a caller who means target, if that is the session's cluster. It
// waits a little for a connection that is being remade, and returns an error if that fails for a
// lasting reason.
func (s *Session) Reuse(ctx context.Context, t Target) error {
	cluster, err := t.Access.Load()
	if err != nil {
		return err
	}
	s.mu.Lock()
	have := s.record
	if err := have.same(t, cluster); err != nil {
		s.mu.Unlock()
		return err
	}
	s.record.adopt(t, cluster)
	s.Source.Use(s.record.Access)
	if changed := s.record.Namespace != have.Namespace || s.record.NamespaceChosen != have.NamespaceChosen ||
		!sameAccess(s.record.Access, have.Access); changed && s.stored {
		s.save()
	}
	s.mu.Unlock()

	before, _ := s.Link.State()
	if before.Connected {
		return nil
	}
	s.Link.Hurry()
	ctx, cancel := context.WithTimeout(ctx, resumeTimeout)
	defer cancel()
	bad := func(err error) bool {
		return err != nil && (link.IsLasting(err) || reason.Of(err) == reason.NoCluster)
	}
	state := s.Link.Wait(ctx,
		func(st link.State) bool { return st.Connected || st.Attempts > before.Attempts && bad(st.Err) })
	if !state.Connected && bad(state.Err) {
		return state.Err
	}
	return nil
}

func sameAccess(a, b kube.Access) bool {
	return maps.Equal(a.Flags, b.Flags) && a.KubeconfigEnv == b.KubeconfigEnv && a.Dir == b.Dir
}

func (r *Record) same(t Target, cluster *kube.Cluster) error {
	switch {
	case r.Server != cluster.Server || r.Context != cluster.Context:
		name := r.Server
		if r.Context != "" {
			name = fmt.Sprintf("context %s (%s)", r.Context, r.Server)
		}
		return reason.New(codes.FailedPrecondition, reason.OtherCluster,
			"already connected to %s", name).
			Advise("run `sidestep quit` first")
	case t.ManagerNamespace != "" && t.ManagerNamespace != r.ManagerNamespace:
		return reason.New(codes.FailedPrecondition, reason.OtherCluster,
			"already connected to the traffic manager in namespace %s", r.ManagerNamespace).
			Advise("run `sidestep quit` first")
	}
	return nil
}

// Record returns a copy of the current record.
func (s *Session) Record() Record {
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.record
	r.Namespaces, r.Intercepts = slices.Clone(r.Namespaces), slices.Clone(r.Intercepts)
	return r
}

// Hold notes that a process holds the session. 0 means that none does.
func (s *Session) Hold(process int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.Process = process
	if s.stored {
		_ = s.save() // Unstored tells
	}
}

// Done returns a channel that is closed when the session ends in this process.
func (s *Session) Done() <-chan struct{} { return s.done }

// LoginTrouble returns why the laptop could not prove to the manager who its user is, nil if it
// could.
func (s *Session) LoginTrouble() error { return s.login.problem() }

func (s *Session) saveLogin(l Login) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.record.Login = &l
	if s.stored {
		_ = s.save() // Unstored tells
	}
}

// Unstored returns why the session is not on disk, nil if it is.
func (s *Session) Unstored() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.unstored
}

func (s *Session) saveIntercepts(namespaces []string, known []intercept.Known) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if slices.Equal(s.record.Namespaces, namespaces) && reflect.DeepEqual(s.record.Intercepts, known) {
		return nil
	}
	s.record.Namespaces, s.record.Intercepts = namespaces, known
	if !s.stored {
		return nil
	}
	return s.save()
}

// save is called with mu held. If the disk cannot be written, the session goes on, but cannot be
// resumed.
func (s *Session) save() error {
	err := s.store.Save(&s.record)
	if err != nil && s.unstored == nil {
		s.log.Warn("the session cannot be saved: the next daemon will not resume it", "error", err)
	}
	s.unstored = err
	return err
}

// Close ends the session in this process. It stays on disk, and its intercepts in the cluster.
func (s *Session) Close() {
	s.cancel()
	s.Registry.Close()
	s.running.Wait()
	s.Source.Drop()
}

// End ends the session for good and deletes its intercepts. If some cannot be deleted, it returns
// an error, and the session is over all the same.
func (s *Session) End(ctx context.Context) error {
	leaving, cancel := context.WithTimeout(ctx, endTimeout)
	defer cancel()
	left := s.Registry.LeaveAll(leaving)
	s.mu.Lock()
	s.stored = false
	s.mu.Unlock()
	s.cancel() // nothing logs in again
	if err := s.login.end(leaving); err != nil {
		s.log.Warn("the login stays until it expires", "error", err)
	}
	s.Close()
	if err := s.store.Remove(); err != nil {
		s.log.Warn("the session's file stays", "error", err)
	}
	if left == nil {
		return nil
	}
	grace := "its grace period"
	if state, _ := s.Link.State(); state.Grace > 0 {
		grace = state.Grace.String()
	}
	return reason.New(codes.Unavailable, reason.InterceptsLeft,
		"disconnected, but intercepts could not be deleted (%v)", left).
		Advise("the traffic manager deletes them after %s", grace)
}
