// SPDX-License-Identifier: Apache-2.0

package laptops

import (
	"context"
	"log/slog"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/reason"
)

// vouched is what is known about every session.
type vouched struct {
	proven, absent, unknown atomic.Bool
	lapsed                  sync.Map // key hashes
}

func (v *vouched) Wait(ctx context.Context, keyHash string) bool {
	if !v.proven.Load() && !v.absent.Load() {
		<-ctx.Done()
	}
	return v.Proven(keyHash)
}

func (v *vouched) Proven(string) bool { return v.proven.Load() }
func (v *vouched) Absent() bool       { return v.absent.Load() }
func (v *vouched) Known() bool        { return !v.unknown.Load() }

// quick are Proofs that look often, and wait briefly for a Login.
func quick(v *vouched, older bool) *Proofs {
	p := NewProofs(v, older, func(keyHash string) { v.lapsed.Store(keyHash, true) })
	p.check, p.patience = 20*time.Millisecond, 50*time.Millisecond
	return p
}

// open opens a session, and returns how it ends.
func open(t *testing.T, c clientpb.ClientsClient) <-chan error {
	t.Helper()
	ctx, _ := withKey(t, 1)
	s, err := c.Session(ctx)
	require.NoError(t, err)
	require.NoError(t, s.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: &clientpb.ClientHello{
			Session: "0b7a3f5e-9d0c-4b5e-8a52-6f2d1c0e9a11", Holder: "alice@laptop", Protocol: 1,
		}}}))
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := s.Recv()
			if err != nil {
				ended <- err
				return
			}
			if ping := m.GetPing(); ping != nil {
				_ = s.Send(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Pong{Pong: ping}})
			}
		}
	}()
	return ended
}

func TestOnlyProvenLaptopsAreAdmitted(t *testing.T) {
	v := &vouched{}
	proofs := quick(v, false)
	c, registry := serveConfig(t, Config{Proofs: proofs})
	_, hash := withKey(t, 1)
	err := <-open(t, c)
	assert.Equal(t, codes.PermissionDenied, status.Code(err))
	assert.Equal(t, reason.NotProven, reason.Of(err))
	assert.Zero(t, registry.Len())

	v.unknown.Store(true)
	assert.Equal(t, codes.Unavailable, status.Code(<-open(t, c)), "it has to come again")
	v.unknown.Store(false)
	v.proven.Store(true)
	ended := open(t, c)
	connected := func() bool { return registry.Connected(hash) }
	require.Eventually(t, connected, 5*time.Second, time.Millisecond)
	assert.Zero(t, proofs.Unproven())
	v.proven.Store(false)
	assert.Equal(t, codes.PermissionDenied, status.Code(<-ended), "its Login is gone")
	_, lapsed := v.lapsed.Load(hash)
	assert.True(t, lapsed, "what it carries ends with it")
	require.Eventually(t, func() bool { return !connected() }, 5*time.Second, time.Millisecond)
	assert.Zero(t, proofs.Unproven())
}

func TestLaptopsThatProveNothingAreCountedWhereTheyAreAdmitted(t *testing.T) {
	v := &vouched{}
	proofs := quick(v, true)
	c, registry := serveConfig(t, Config{Proofs: proofs})
	_, hash := withKey(t, 1)
	open(t, c)
	counts := func(n int) {
		t.Helper()
		require.Eventually(t, func() bool { return registry.Connected(hash) && proofs.Unproven() == n },
			5*time.Second, time.Millisecond)
	}
	counts(1)
	v.proven.Store(true)
	counts(0)
}

func TestWhereNobodyCanBeProvenLaptopsComeInOnlyAsOlderOnes(t *testing.T) {
	v := &vouched{}
	v.absent.Store(true)
	c, registry := serveConfig(t, Config{Proofs: quick(v, false)})
	err := <-open(t, c)
	assert.Equal(t, reason.NotProven, reason.Of(err))
	assert.ErrorContains(t, err, "sidestep-login, is missing or not in force")
	assert.Zero(t, registry.Len())

	older := quick(v, true)
	c, registry = serveConfig(t, Config{Proofs: older})
	_, hash := withKey(t, 1)
	open(t, c)
	require.Eventually(t, func() bool { return registry.Connected(hash) && older.Unproven() == 1 },
		5*time.Second, time.Millisecond)

	one := &proof{all: older, keyHash: hash, proven: true}
	assert.NoError(t, one.look(), "a session that was proven before goes on")
}

func TestAnOlderLaptopDoesNotWaitLong(t *testing.T) {
	proofs := NewProofs(&vouched{}, true, nil)
	began := time.Now()
	_, err := proofs.admit(t.Context(), "k", slog.New(slog.DiscardHandler))
	require.NoError(t, err)
	assert.Less(t, time.Since(began), time.Second)
}
