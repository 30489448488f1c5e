// SPDX-License-Identifier: Apache-2.0

// Package identity knows for which Kubernetes user each laptop acts. The API server vouches for that
// by Logins, which an admission policy admits only from the user whom they name.
package identity

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/access"
)

const (
	// maxAge is how long after its creation a Login proves anything: v1alpha1.MaxLoginAge.
	maxAge = 24 * time.Hour
	// perUser bounds the Logins of one user, and inAll those of all. The oldest ones are deleted.
	perUser, inAll = 16, 20_000
	// maxUsers is how many users of one session count, if they are not asked for by name.
	maxUsers = 16
	// look is the time between looks at the policy, and sweep that between looks for what to delete.
	look, sweep = time.Second, 10 * time.Second
	// patience bounds a look at the policy, and a sweep.
	patience = 10 * time.Second
)

// Proof is what the API server vouches for about the user of a session.
type Proof struct {
	User    string
	Groups  []string
	Expires time.Time
}

// Config is what Logins need.
type Config struct {
	Client    client.WithWatch
	Namespace string // of the installation
	Guard     *access.Guard
	Log       *slog.Logger
	Now       func() time.Time
	// Changed is called with the key hash of a session about which something has changed.
	Changed func(keyHash string)
}

// Logins are the Logins of one installation. They are safe for concurrent use.
type Logins struct {
	cfg      Config
	informer cache.SharedIndexInformer

	mu       sync.Mutex
	all      map[types.UID]*v1alpha1.Login
	byKey    map[string]map[types.UID]*v1alpha1.Login
	missing  bool                     // the cluster has no definition of Logins
	looked   bool                     // the API server has said whether the policy is in force
	inForce  bool                     // it is
	since    time.Time                // the policy has admitted what was created after this
	vouching bool                     // what was logged last: that the API server vouches for users
	said     bool                     // vouching has been logged
	waiting  map[chan struct{}]string // key hashes
}

// New returns Logins. Run reads and follows them.
func New(cfg Config) (*Logins, error) {
	l := &Logins{cfg: cfg, all: map[types.UID]*v1alpha1.Login{},
		byKey: map[string]map[types.UID]*v1alpha1.Login{}, waiting: map[chan struct{}]string{}}
	lw := &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list := &v1alpha1.LoginList{}
			err := cfg.Client.List(ctx, list, &client.ListOptions{Raw: &o, Limit: o.Limit,
				Continue: o.Continue, Namespace: cfg.Namespace})
			l.served(err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			w, err := cfg.Client.Watch(ctx, &v1alpha1.LoginList{},
				&client.ListOptions{Raw: &o, Namespace: cfg.Namespace})
			l.served(err)
			return w, err
		},
	}
	l.informer = cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(lw, cfg.Client),
		&v1alpha1.Login{}, 0, cache.Indexers{})
	if err := l.informer.SetTransform(strip); err != nil {
		return nil, fmt.Errorf("set up an informer: %w", err)
	}
	_, err := l.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(obj any) { l.put(obj) },
		UpdateFunc: func(_, obj any) { l.put(obj) },
		DeleteFunc: func(obj any) { l.drop(obj) },
	})
	if err != nil {
		return nil, fmt.Errorf("set up an informer: %w", err)
	}
	return l, nil
}

// strip removes what the manager does not read. Labels, annotations and owners may be a megabyte.
func strip(obj any) (any, error) {
	if o, ok := obj.(*v1alpha1.Login); ok {
		o.ManagedFields, o.Labels, o.Annotations, o.OwnerReferences = nil, nil, nil, nil
	}
	return obj, nil
}

// served notes whether the cluster has the definition.
func (l *Logins) served(err error) {
	missing := apierrors.IsNotFound(err) || meta.IsNoMatchError(err)
	if err != nil && !missing {
		return
	}
	l.mu.Lock()
	changed := l.missing != missing
	l.missing = missing
	l.mu.Unlock()
	if changed {
		l.changed()
	}
}

// Absent reports that the API server vouches for no user: the cluster has no definition of Logins,
// or their policy is not in force.
func (l *Logins) Absent() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.absent()
}

func (l *Logins) absent() bool { return l.missing || l.looked && !l.inForce }

// Known reports whether all Logins have been read, or there are none that prove anything.
func (l *Logins) Known() bool {
	synced := l.informer.HasSynced()
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.absent() || l.looked && synced
}

// changed logs, once, whether the API server vouches for users, and wakes all who wait for it.
func (l *Logins) changed() {
	l.mu.Lock()
	absent, missing := l.absent(), l.missing
	news := (absent || l.inForce) && (!l.said || l.vouching == absent)
	if news {
		l.said, l.vouching = true, !absent
	}
	l.mu.Unlock()
	switch {
	case news && missing:
		l.cfg.Log.Error("laptops cannot prove who their user is: the cluster has no definition of Logins")
	case news && absent:
		l.cfg.Log.Error("laptops cannot prove who their user is: the admission policy is not in force",
			"policy", access.LoginPolicy)
	case news:
		l.cfg.Log.Info("laptops prove who their user is")
	}
	l.wakeAll()
}

// Run follows Logins and the policy, and deletes useless Logins, until ctx is done.
func (l *Logins) Run(ctx context.Context) {
	var wg sync.WaitGroup
	defer wg.Wait()
	wg.Go(func() { l.informer.RunWithContext(ctx) })
	ticker := time.NewTicker(look)
	defer ticker.Stop()
	var swept time.Time
	for {
		l.follow(ctx)
		if now := time.Now(); now.Sub(swept) >= sweep {
			swept = now
			l.clean(ctx)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// follow checks the policy. Until the API server has answered, no user is proven.
func (l *Logins) follow(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	since, inForce, err := l.cfg.Guard.InForce(ctx, access.LoginPolicy)
	if err != nil {
		return
	}
	l.mu.Lock()
	changed := !l.looked || l.inForce != inForce || !l.since.Equal(since)
	l.looked, l.inForce, l.since = true, inForce, since
	l.mu.Unlock()
	if changed {
		l.changed()
	}
}

func (l *Logins) put(obj any) {
	login, ok := obj.(*v1alpha1.Login)
	if !ok {
		return
	}
	hash := login.Spec.KeyHash
	l.mu.Lock()
	l.all[login.UID] = login
	if l.byKey[hash] == nil {
		l.byKey[hash] = map[types.UID]*v1alpha1.Login{}
	}
	l.byKey[hash][login.UID] = login
	l.mu.Unlock()
	l.wake(hash)
}

func (l *Logins) drop(obj any) {
	if gone, ok := obj.(cache.DeletedFinalStateUnknown); ok {
		obj = gone.Obj
	}
	login, ok := obj.(*v1alpha1.Login)
	if !ok {
		return
	}
	hash := login.Spec.KeyHash
	l.mu.Lock()
	delete(l.all, login.UID)
	delete(l.byKey[hash], login.UID)
	if len(l.byKey[hash]) == 0 {
		delete(l.byKey, hash)
	}
	l.mu.Unlock()
	l.wake(hash)
}

func expires(login *v1alpha1.Login) time.Time {
	most := login.CreationTimestamp.Add(maxAge)
	if login.Spec.Expires.Time.Before(most) {
		return login.Spec.Expires.Time
	}
	return most
}

// trusts is called with mu held. A Login of the second in which the policy was created may be older
// than the policy: times of creation have no fractions.
func (l *Logins) trusts(login *v1alpha1.Login, now time.Time) bool {
	return l.inForce && login.DeletionTimestamp == nil && login.CreationTimestamp.After(l.since) &&
		now.Before(expires(login))
}

// Proven reports whether the session with this key hash acts for a user that the API server vouches
// for.
func (l *Logins) Proven(keyHash string) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.proven(keyHash)
}

func (l *Logins) proven(keyHash string) bool {
	now := l.cfg.Now()
	for _, login := range l.byKey[keyHash] {
		if l.trusts(login, now) {
			return true
		}
	}
	return false
}

// Proofs returns what is proven about the session with this key hash, for a user or, if that is "",
// for all. Anyone can create a Login for any key hash, but only as themselves. So a session may be
// proven for several users, and each of them has their own Intercepts.
func (l *Logins) Proofs(keyHash, user string) []Proof {
	l.mu.Lock()
	defer l.mu.Unlock()
	now := l.cfg.Now()
	best := map[string]*v1alpha1.Login{} // the one of each user that lasts longest
	for _, login := range l.byKey[keyHash] {
		name := login.Spec.User
		if user != "" && name != user || !l.trusts(login, now) {
			continue
		}
		if best[name] == nil || expires(best[name]).Before(expires(login)) {
			best[name] = login
		}
	}
	var all []Proof
	for name, login := range best {
		all = append(all, Proof{User: name, Groups: login.Spec.Groups, Expires: expires(login)})
	}
	slices.SortFunc(all, func(a, b Proof) int { return cmp.Compare(a.User, b.User) })
	return all[:min(len(all), maxUsers)]
}

// Wait returns whether a session is proven, as soon as it is, nobody is, or ctx ends.
func (l *Logins) Wait(ctx context.Context, keyHash string) bool {
	news := make(chan struct{}, 1)
	l.mu.Lock()
	if l.proven(keyHash) || l.absent() {
		defer l.mu.Unlock()
		return l.proven(keyHash)
	}
	l.waiting[news] = keyHash
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, news)
	}()
	for {
		select {
		case <-news:
			if proven := l.Proven(keyHash); proven || l.Absent() {
				return proven
			}
		case <-ctx.Done():
			return l.Proven(keyHash)
		}
	}
}

func (l *Logins) wake(keyHash string) {
	l.mu.Lock()
	for news, hash := range l.waiting {
		if hash == keyHash {
			notify(news)
		}
	}
	l.mu.Unlock()
	l.cfg.Changed(keyHash)
}

func (l *Logins) wakeAll() {
	l.mu.Lock()
	hashes := make([]string, 0, len(l.byKey))
	for hash := range l.byKey {
		hashes = append(hashes, hash)
	}
	for news := range l.waiting {
		notify(news)
	}
	l.mu.Unlock()
	for _, hash := range hashes {
		l.cfg.Changed(hash)
	}
}

func notify(news chan struct{}) {
	select {
	case news <- struct{}{}:
	default:
	}
}

// clean deletes expired Logins, and the oldest where there are too many. Only Logins that the
// policy has admitted count for a user, because others may name any user.
func (l *Logins) clean(ctx context.Context) {
	now := l.cfg.Now()
	l.mu.Lock()
	all := make([]*v1alpha1.Login, 0, len(l.all))
	for _, login := range l.all {
		if login.DeletionTimestamp == nil { // else somebody's finalizer keeps it, and it proves nothing
			all = append(all, login)
		}
	}
	slices.SortFunc(all, func(a, b *v1alpha1.Login) int { // the youngest first
		return cmp.Or(b.CreationTimestamp.Compare(a.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	count, kept := map[string]int{}, 0
	var useless []*v1alpha1.Login
	for _, login := range all {
		trusted := l.trusts(login, now)
		if trusted {
			count[login.Spec.User]++
		}
		if !now.Before(expires(login)) || trusted && count[login.Spec.User] > perUser || kept >= inAll {
			useless = append(useless, login)
			continue
		}
		kept++
	}
	l.mu.Unlock()
	ctx, cancel := context.WithTimeout(ctx, patience) // the next sweep goes on
	defer cancel()
	for _, login := range useless {
		err := l.cfg.Client.Delete(ctx, &v1alpha1.Login{ObjectMeta: metav1.ObjectMeta{
			Namespace: login.Namespace, Name: login.Name}}, client.Preconditions{UID: &login.UID})
		if client.IgnoreNotFound(err) != nil && !apierrors.IsConflict(err) {
			l.cfg.Log.Warn("login not deleted", "login", login.Name, "error", err)
			return
		}
		l.cfg.Changed(login.Spec.KeyHash)
	}
}
