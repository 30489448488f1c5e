// SPDX-License-Identifier: Apache-2.0

package session

import (
	"context"
	"errors"
	"log/slog"
	"slices"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/reason"
)

const (
	// loginFor is how long a Login is good.
	loginFor = 12 * time.Hour
	// loginEarly is how long before it expires a Login is replaced.
	loginEarly = time.Hour
	// loginCheck is the time between looks whether it is to be replaced.
	loginCheck = time.Minute
	// loginRest is the time between Logins that the manager does not accept.
	loginRest = 15 * time.Second
	// maxGroups is how many groups a Login may name, and maxGroup the length of a name.
	maxGroups, maxGroup = 256, 1024
)

// Login names the object by which the API server vouches to the manager for the user of a session.
type Login struct {
	Name    string    `json:"name"`
	Expires time.Time `json:"expires"`
}

// login keeps a session's Login in force.
type login struct {
	source    *kube.Source
	namespace string
	keyHash   string
	wall      func() time.Time
	log       *slog.Logger
	save      func(Login)

	making sync.Mutex // one at a time creates

	mu       sync.Mutex
	current  Login
	replaced time.Time // when one was that the manager did not accept
	trouble  error     // why there is no Login
	said     string
}

// ensure creates a Login unless there is one that is good for long enough. refused says that the
// manager does not accept the present one. Without a Login the session goes on: what that means is
// the manager's decision.
func (l *login) ensure(ctx context.Context, refused bool) {
	l.making.Lock()
	defer l.making.Unlock()
	now := l.wall()
	l.mu.Lock()
	before, replaced := l.current, l.replaced
	l.mu.Unlock()
	good := before.Name != "" && before.Expires.Sub(now) > loginEarly
	if good && (!refused || now.Sub(replaced) < loginRest) {
		return
	}
	next, err := l.create(ctx, now)
	l.mu.Lock()
	l.trouble = err
	text := ""
	if err != nil {
		text = err.Error()
	}
	fresh := text != "" && text != l.said
	l.said = text
	if err == nil && next.Name != "" {
		l.current = next
	}
	if refused {
		l.replaced = now
	}
	l.mu.Unlock()
	if fresh && ctx.Err() == nil {
		l.log.Warn("not logged in at the traffic manager", "error", err)
	}
	if err != nil || next.Name == "" {
		return
	}
	l.save(next)
	if before.Name != "" {
		_ = l.delete(ctx, before.Name) // else it expires
	}
}

// hopes reports whether a refusal may not last, because the manager has not been shown a second Login
// yet: one that was created before the installation's policy was in force proves nothing.
func (l *login) hopes(err error) bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return reason.Of(err) == reason.NotProven && l.current.Name != "" && l.replaced.IsZero()
}

// create makes a Login; it returns none where the cluster has no such definition.
func (l *login) create(ctx context.Context, now time.Time) (Login, error) {
	cluster, err := l.source.Cluster()
	if err != nil {
		return Login{}, err
	}
	user, err := cluster.User(ctx)
	if err != nil {
		return Login{}, cluster.Explain(err)
	}
	if user.Name == "" { // the API server does not tell
		return Login{}, nil
	}
	api, err := cluster.Client()
	if err != nil {
		return Login{}, err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	object := &v1alpha1.Login{
		ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, GenerateName: "laptop-"},
		Spec: v1alpha1.LoginSpec{User: user.Name, Groups: loginGroups(user.Groups), KeyHash: l.keyHash,
			Expires: metav1.NewTime(now.Add(loginFor))},
	}
	switch err := api.Create(ctx, object); {
	case apierrors.IsNotFound(err), meta.IsNoMatchError(err): // an older definition
		return Login{}, nil
	case err != nil:
		return Login{}, cluster.Explain(err)
	}
	return Login{Name: object.Name, Expires: object.Spec.Expires.Time}, nil
}

// loginGroups returns the groups that a Login has room for. Each of them is a right more, so a Login
// without some of them proves less and nothing wrong.
func loginGroups(all []string) []string {
	groups := slices.Clone(all)
	slices.Sort(groups)
	groups = slices.DeleteFunc(slices.Compact(groups), func(g string) bool { return len(g) > maxGroup })
	return groups[:min(len(groups), maxGroups)]
}

func (l *login) delete(ctx context.Context, name string) error {
	cluster, err := l.source.Cluster()
	if err != nil {
		return err
	}
	api, err := cluster.Client()
	if err != nil {
		return err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	return client.IgnoreNotFound(api.Delete(ctx,
		&v1alpha1.Login{ObjectMeta: metav1.ObjectMeta{Namespace: l.namespace, Name: name}}))
}

// end deletes the Login.
func (l *login) end(ctx context.Context) error {
	l.making.Lock()
	defer l.making.Unlock()
	l.mu.Lock()
	name := l.current.Name
	l.current = Login{}
	l.mu.Unlock()
	if name == "" {
		return nil
	}
	return l.delete(ctx, name)
}

// keep replaces the Login before it expires, until ctx ends.
func (l *login) keep(ctx context.Context) {
	ticker := time.NewTicker(loginCheck)
	defer ticker.Stop()
	for {
		select {
		case <-ticker.C:
			l.mu.Lock()
			wanted := l.current.Name != "" || l.trouble != nil
			l.mu.Unlock()
			if wanted { // else the cluster has no such definition, or had none
				l.ensure(ctx, false)
			}
		case <-ctx.Done():
			return
		}
	}
}

// problem is why there is no Login; nil if there is one, or if the cluster has none.
func (l *login) problem() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if errors.Is(l.trouble, context.Canceled) {
		return nil
	}
	return l.trouble
}
