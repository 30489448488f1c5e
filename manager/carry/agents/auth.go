// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"context"
	"crypto/sha256"
	"fmt"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sync/singleflight"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"

	"sidestep.dev/sidestep/manager/carry/gate"
)

// nodeNameExtra is where the API server puts the node of the pod to which a token is bound.
const nodeNameExtra = "authentication.kubernetes.io/node-name"

const (
	// trust is how long a reviewed token is accepted without another review.
	trust = time.Minute
	// trustStale is how long a review counts while the API server does not answer: traffic must not
	// stop because of that.
	trustStale = 10 * time.Minute
	// reviewTimeout bounds one review.
	reviewTimeout = 5 * time.Second
	maxCached     = 20_000
)

// Review sends a TokenReview to the API server and fills in its status.
type Review func(ctx context.Context, review *authv1.TokenReview) error

// Authenticator determines the node of a call from its service-account token. It is safe for
// concurrent use.
type Authenticator struct {
	review   Review
	audience string
	username string
	now      func() time.Time
	flights  singleflight.Group
	reviews  *reviews

	mu    sync.Mutex
	known map[[sha256.Size]byte]identity
}

type identity struct {
	node string
	at   time.Time
}

// NewAuthenticator returns an Authenticator that accepts tokens of one service account for one
// audience.
func NewAuthenticator(review Review, audience, namespace, serviceAccount string) *Authenticator {
	return &Authenticator{
		review: review, audience: audience,
		username: fmt.Sprintf("system:serviceaccount:%s:%s", namespace, serviceAccount),
		now:      time.Now, reviews: newReviews(time.Now), known: map[[sha256.Size]byte]identity{},
	}
}

// Node returns the node to which the caller's token is bound, or a gRPC status.
func (a *Authenticator) Node(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get("authorization")
	if len(values) != 1 {
		return "", status.Error(codes.Unauthenticated,
			"the call carries no token: metadata authorization must be \"Bearer <token>\"")
	}
	token, ok := strings.CutPrefix(values[0], "Bearer ")
	if !ok || token == "" {
		return "", status.Error(codes.Unauthenticated, "metadata authorization must be \"Bearer <token>\"")
	}
	key := sha256.Sum256([]byte(token))
	a.mu.Lock()
	cached, ok := a.known[key]
	a.mu.Unlock()
	age := a.now().Sub(cached.at)
	conn := gate.From(ctx)
	if ok && age < trust {
		conn.Prove(peerName(cached.node))
		return cached.node, nil
	}
	// The review continues if the caller gives up: others may wait for the same one.
	found, err, _ := a.flights.Do(string(key[:]),
		func() (any, error) { return a.ask(context.WithoutCancel(ctx), conn.Host(), token) })
	switch {
	case err == nil:
		conn.Prove(peerName(found.(string)))
		a.remember(key, found.(string))
		return found.(string), nil
	case status.Code(err) == codes.Unavailable && ok && age < trustStale:
		conn.Prove(peerName(cached.node))
		return cached.node, nil
	case status.Code(err) != codes.Unavailable:
		a.forget(key)
	}
	return "", err
}

// peerName tells node agents from laptops.
func peerName(node string) string { return "node " + node }

// ask returns the node of a token that came from an address.
func (a *Authenticator) ask(ctx context.Context, address, token string) (node string, err error) {
	ctx, cancel := context.WithTimeout(ctx, reviewTimeout)
	defer cancel()
	done, err := a.reviews.begin(ctx, address)
	if err != nil {
		return "", err
	}
	defer func() { done(err) }()
	review := &authv1.TokenReview{Spec: authv1.TokenReviewSpec{Token: token, Audiences: []string{a.audience}}}
	if err := a.review(ctx, review); err != nil {
		return "", status.Errorf(codes.Unavailable, "ask the API server about the token: %v", err)
	}
	st := review.Status
	switch {
	case !st.Authenticated:
		return "", status.Errorf(codes.Unauthenticated, "the API server does not accept the token: %s",
			st.Error)
	case !slices.Contains(st.Audiences, a.audience):
		return "", status.Errorf(codes.Unauthenticated, "the token is not for audience %s", a.audience)
	case st.User.Username != a.username:
		return "", status.Errorf(codes.PermissionDenied, "the token is of %s, not of %s",
			st.User.Username, a.username)
	}
	bound := st.User.Extra[nodeNameExtra]
	if len(bound) != 1 || bound[0] == "" {
		return "", status.Error(codes.PermissionDenied,
			"the token is not bound to a node: it is to be a projected token of a pod (Kubernetes 1.30 or newer)")
	}
	return bound[0], nil
}

func (a *Authenticator) remember(key [sha256.Size]byte, node string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	now := a.now()
	if len(a.known) >= maxCached {
		for k, id := range a.known {
			if now.Sub(id.at) > trust {
				delete(a.known, k)
			}
		}
	}
	if len(a.known) < maxCached {
		a.known[key] = identity{node, now}
	}
}

func (a *Authenticator) forget(key [sha256.Size]byte) {
	a.mu.Lock()
	defer a.mu.Unlock()
	delete(a.known, key)
}
