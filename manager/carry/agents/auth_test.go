// SPDX-License-Identifier: Apache-2.0

package agents

import (
	"context"
	"errors"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"
	authv1 "k8s.io/api/authentication/v1"
)

const username = "system:serviceaccount:sidestep:sidestep-nodeagent"

func with(token string) context.Context {
	return metadata.NewIncomingContext(context.Background(), metadata.Pairs("authorization", token))
}

func good() authv1.TokenReviewStatus {
	return authv1.TokenReviewStatus{
		Authenticated: true, Audiences: []string{"sidestep-manager"},
		User: authv1.UserInfo{Username: username,
			Extra: map[string]authv1.ExtraValue{nodeNameExtra: {"node-1"}}},
	}
}

// server answers reviews and counts them.
type server struct {
	mu     sync.Mutex
	status authv1.TokenReviewStatus
	err    error
	asked  int
	delay  time.Duration
}

func (s *server) review(_ context.Context, r *authv1.TokenReview) error {
	time.Sleep(s.delay)
	s.mu.Lock()
	defer s.mu.Unlock()
	s.asked++
	r.Status = s.status
	return s.err
}

func (s *server) authenticator() *Authenticator {
	return NewAuthenticator(s.review, "sidestep-manager", "sidestep", "sidestep-nodeagent")
}

func TestWhatTokensAreRefused(t *testing.T) {
	for _, tc := range []struct {
		name   string
		header string
		change func(*authv1.TokenReviewStatus)
		code   codes.Code
		says   string
	}{
		{"none", "", nil, codes.Unauthenticated, "Bearer"},
		{"another scheme", "Basic x", nil, codes.Unauthenticated, "Bearer"},
		{"an unknown one", "Bearer x",
			func(s *authv1.TokenReviewStatus) { *s = authv1.TokenReviewStatus{Error: "expired"} },
			codes.Unauthenticated, "expired"},
		{"one for others", "Bearer x",
			func(s *authv1.TokenReviewStatus) { s.Audiences = []string{"api"} }, codes.Unauthenticated,
			"audience sidestep-manager"},
		{"one whose audience nobody has checked", "Bearer x",
			func(s *authv1.TokenReviewStatus) { s.Audiences = nil }, codes.Unauthenticated,
			"audience sidestep-manager"},
		{"one of another account", "Bearer x",
			func(s *authv1.TokenReviewStatus) { s.User.Username = "system:serviceaccount:default:default" }, codes.PermissionDenied, "not of " + username},
		{"one that is bound to no node", "Bearer x",
			func(s *authv1.TokenReviewStatus) { s.User.Extra = nil }, codes.PermissionDenied,
			"not bound to a node"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			s := &server{status: good()}
			if tc.change != nil {
				tc.change(&s.status)
			}
			_, err := s.authenticator().Node(with(tc.header))
			assert.Equal(t, tc.code, status.Code(err))
			assert.ErrorContains(t, err, tc.says)
		})
	}
}

func TestReviewIsRememberedForAMinute(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{status: good()}
		a := s.authenticator()
		ask := func() (string, error) { return a.Node(with("Bearer x")) }
		node, err := ask()
		require.NoError(t, err)
		assert.Equal(t, "node-1", node)
		time.Sleep(59 * time.Second)
		_, err = ask()
		require.NoError(t, err)
		assert.Equal(t, 1, s.asked)
		time.Sleep(2 * time.Second)
		_, err = ask()
		require.NoError(t, err)
		assert.Equal(t, 2, s.asked)

		// An API server that cannot be asked stops no traffic for a while.
		s.err = errors.New("connection refused")
		time.Sleep(9 * time.Minute)
		_, err = ask()
		require.NoError(t, err)
		_, err = a.Node(with("Bearer another"))
		assert.Equal(t, codes.Unavailable, status.Code(err), "a token that was never reviewed is not trusted")
		time.Sleep(2 * time.Minute)
		_, err = ask()
		assert.Equal(t, codes.Unavailable, status.Code(err))

		// One that says no is obeyed at once.
		s.err = nil
		_, err = ask()
		require.NoError(t, err)
		time.Sleep(2 * time.Minute)
		s.status = authv1.TokenReviewStatus{Error: "revoked"}
		_, err = ask()
		assert.Equal(t, codes.Unauthenticated, status.Code(err))
		s.err = errors.New("connection refused")
		_, err = ask()
		assert.Equal(t, codes.Unavailable, status.Code(err), "and the token stays forgotten")
	})
}

func TestManyCallsWithOneTokenAreOneReview(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &server{status: good(), delay: time.Second}
		a := s.authenticator()
		var wg sync.WaitGroup
		for range 100 {
			wg.Go(func() {
				_, err := a.Node(with("Bearer x"))
				assert.NoError(t, err)
			})
		}
		wg.Wait()
		assert.Equal(t, 1, s.asked)
	})
}
