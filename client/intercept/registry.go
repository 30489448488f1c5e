// SPDX-License-Identifier: Apache-2.0

// Package intercept manages this laptop's intercepts: it creates, moves and deletes the objects,
// and follows them by watching the API. An intercept is in one of the states in state.go. What the
// laptop does for it is never read back from the API, see own.go.
package intercept

import (
	"cmp"
	"context"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/names"
)

// DefaultAddress is the address to which intercepted traffic is delivered by default.
const DefaultAddress = "127.0.0.1"

// Client is the holder of the intercepts.
type Client struct {
	Session string // UUID
	Holder  string // user@host
	KeyHash string // hex SHA-256 of the session key
}

// Registry is what the client knows of its own intercepts. The API is the source of truth, and the
// registry follows it.
type Registry struct {
	client   Client
	source   *kube.Source
	presence func() Presence
	wall     func() time.Time
	log      *slog.Logger
	save     func(namespaces []string, known []Known) error

	ctx     context.Context // of the watches
	stop    context.CancelFunc
	watches sync.WaitGroup

	mu        sync.Mutex
	clock     uint64 // counts events, to tell what happened before a list began and what after
	tracked   map[types.UID]*tracked
	reserved  map[string]*reservation
	strangers map[types.UID]struct{} // those that were logged
	watching  map[string]*watch
	changed   chan struct{}
	troubles  map[string]error // why intercepts cannot be followed, by namespace
}

// reservation is an intercept that is being created. The manager may send traffic for it before the
// call that creates it has returned and its UID is known.
type reservation struct {
	namespace, object, name string
	address                 string
	port                    int32 // 0: the container port, not known yet
	protocol                v1alpha1.Protocol
	uid                     types.UID           // "": not known yet
	seen                    *v1alpha1.Intercept // the last news of an object of that name until then
}

// Config of a Registry.
type Config struct {
	Client     Client
	Source     *kube.Source
	Namespaces []string // where there may be intercepts
	Known      []Known  // what an earlier daemon has kept on disk
	// Presence returns how the manager has seen this laptop. It is called with the registry locked.
	Presence func() Presence
	// Save keeps on disk which namespaces may have intercepts, before the first one is created
	// there, and which intercepts this laptop has created. It is called with the registry locked.
	Save func(namespaces []string, known []Known) error
	// Wall reads the wall clock, which runs while the laptop sleeps. Nil means the real one.
	Wall func() time.Time
	Log  *slog.Logger
}

// NewRegistry returns a Registry that watches the given namespaces.
func NewRegistry(c Config) *Registry {
	r := &Registry{
		client: c.Client, source: c.Source, presence: c.Presence, log: c.Log, save: c.Save,
		tracked: map[types.UID]*tracked{}, reserved: map[string]*reservation{},
		strangers: map[types.UID]struct{}{},
		watching:  map[string]*watch{}, changed: make(chan struct{}), troubles: map[string]error{},
	}
	if r.wall = c.Wall; r.wall == nil {
		r.wall = func() time.Time { return time.Now().Round(0) }
	}
	for _, k := range c.Known {
		t := k.tracked()
		r.tracked[t.uid] = t
	}
	r.ctx, r.stop = context.WithCancel(context.Background())
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, namespace := range c.Namespaces {
		r.watch(namespace)
	}
	return r
}

// Close ends the watches. The intercepts stay.
func (r *Registry) Close() {
	r.stop()
	r.watches.Wait()
}

// notify is called with mu held.
func (r *Registry) notify() {
	close(r.changed)
	r.changed = make(chan struct{})
}

// put takes in what the API says about an object.
func (r *Registry) put(object *v1alpha1.Intercept) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.putLocked(object)
}

func (r *Registry) putLocked(object *v1alpha1.Intercept) {
	if object.Labels[names.LabelSession] != r.client.Session {
		return
	}
	t := r.tracked[object.UID]
	if t != nil && (t.state == left || t.state == replaced || t.over() && t.why != endedWithKind) {
		return // old news
	}
	if !r.owns(object) {
		return
	}
	t = r.tracked[object.UID]
	switch {
	case !t.there():
		r.appear(t, object)
	case t.raw.Generation > object.Generation || t.raw.ResourceVersion == object.ResourceVersion:
		t.seen = r.wall()
		return
	default:
		r.clock++
		t.raw = object
	}
	t.seen = r.wall()
	r.show(t)
	r.notify()
}

// remove takes in that the API no longer has an intercept.
func (r *Registry) remove(uid types.UID, why string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.strangers, uid)
	if t := r.there(uid); t != nil {
		r.vanish(t, why)
	}
}

// leaves notes that this laptop is about to delete the object.
func (r *Registry) leaves(uid types.UID) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.there(uid); t != nil {
		t.state = leaving
	}
}

// deleted notes that this laptop has deleted the object, or failed to.
func (r *Registry) deleted(uid types.UID, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.there(uid)
	switch {
	case t == nil:
	case err != nil:
		t.state = present
	default:
		t.state = leaving
		r.vanish(t, "left")
	}
}

// forgetNamespace stops watching a namespace in which this client has nothing left. It is called
// with mu held.
func (r *Registry) forgetNamespace(namespace string) {
	for _, t := range r.tracked {
		if t.namespace == namespace && (t.there() || t.again() || t.state == expected) {
			return
		}
	}
	for _, s := range r.reserved {
		if s.namespace == namespace {
			return
		}
	}
	if w, ok := r.watching[namespace]; ok {
		w.stop()
		delete(r.watching, namespace)
		delete(r.troubles, namespace)
		r.keep()
	}
}

// keep is called with mu held.
func (r *Registry) keep() {
	if err := r.save(r.namespaces(), r.known()); err != nil {
		r.log.Warn("the session cannot be saved: the next daemon will not know its intercepts", "error", err)
	}
}

func (r *Registry) namespaces() []string {
	names := make([]string, 0, len(r.watching))
	for namespace := range r.watching {
		names = append(names, namespace)
	}
	slices.Sort(names)
	return names
}

// All lists the intercepts by name. The channel is closed when the list changes.
func (r *Registry) All() ([]*v1alpha1.Intercept, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	all := []*v1alpha1.Intercept{}
	for _, t := range r.presents() {
		all = append(all, t.object)
	}
	return all, r.changed
}

// get returns one intercept as it is known now, nil if it is gone. The channel is closed when
// anything changes.
func (r *Registry) get(uid types.UID) (*v1alpha1.Intercept, <-chan struct{}) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.there(uid); t != nil {
		return t.object, r.changed
	}
	return nil, r.changed
}

// Knows reports whether an intercept is this client's. It waits for one that is being created.
func (r *Registry) Knows(ctx context.Context, open *tunnelpb.Open) bool {
	ok := false
	r.find(ctx, open, func(*tracked) bool { ok = true; return true })
	return ok
}

// Target returns the local address to which a connection goes, "" if it is not for one of this
// client's intercepts. It waits for an intercept that is being created, and for a port that is not
// known yet.
func (r *Registry) Target(ctx context.Context, open *tunnelpb.Open) string {
	addr := ""
	r.find(ctx, open, func(t *tracked) bool { addr = localAddr(t.object); return addr != "" })
	return addr
}

// find waits until found returns true for the intercept of a connection, or there is no such
// intercept. found is called with mu held.
func (r *Registry) find(ctx context.Context, open *tunnelpb.Open, found func(*tracked) bool) {
	ctx, cancel := context.WithTimeout(ctx, portTimeout)
	defer cancel()
	uid := types.UID(open.GetInterceptUid())
	for {
		r.mu.Lock()
		t := r.there(uid)
		done := t != nil && found(t) || t == nil && !r.creating(open)
		changed := r.changed
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return
		}
	}
}

// creating reports whether a connection may be for an intercept whose UID is not known yet. It is
// called with mu held.
func (r *Registry) creating(open *tunnelpb.Open) bool {
	for _, s := range r.reserved {
		if s.uid == "" && s.namespace == open.GetInterceptNamespace() && s.object == open.GetInterceptName() {
			return true
		}
	}
	return false
}

// localAddr returns where an intercept delivers: the port that was asked for, else the container
// port.
func localAddr(i *v1alpha1.Intercept) string {
	return join(i.Spec.Destination.Address, localPort(i))
}

// protocolOf returns the protocol of the resolved port, else the one that was asked for.
func protocolOf(i *v1alpha1.Intercept) v1alpha1.Protocol {
	if i.Status.State == "" {
		return cmp.Or(i.Spec.Protocol, v1alpha1.ProtocolTCP)
	}
	return cmp.Or(i.Status.Protocol, i.Spec.Protocol, v1alpha1.ProtocolTCP)
}

func localPort(i *v1alpha1.Intercept) int32 {
	if i.Spec.Destination.Port != 0 {
		return i.Spec.Destination.Port
	}
	for _, pod := range i.Status.Pods {
		if pod.Port != 0 {
			return pod.Port
		}
	}
	return 0
}

func join(address string, port int32) string {
	if port == 0 {
		return ""
	}
	return net.JoinHostPort(cmp.Or(address, DefaultAddress), strconv.Itoa(int(port)))
}
