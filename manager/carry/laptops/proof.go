// SPDX-License-Identifier: Apache-2.0

package laptops

import (
	"context"
	"log/slog"
	"sync/atomic"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/reason"
)

const (
	// proofPatience is how long the manager waits to hear of a laptop's Login. With olderPatience it
	// finds out whether a laptop is of the version before, which has none.
	proofPatience, olderPatience = 5 * time.Second, 200 * time.Millisecond
	// proofCheck is the time between looks whether a session is still proven.
	proofCheck = 10 * time.Second
)

// Logins know for which sessions the API server vouches.
type Logins interface {
	// Wait returns whether a session is proven, as soon as it is, nobody is, or ctx ends.
	Wait(ctx context.Context, keyHash string) bool
	Proven(keyHash string) bool
	// Absent reports that nobody can be proven: definition or policy of Logins are not there.
	Absent() bool
	// Known reports whether all Logins have been read.
	Known() bool
}

// Proofs decide which sessions are admitted. Services over the same registry share them.
type Proofs struct {
	logins          Logins
	older           bool
	check, patience time.Duration
	lapsed          func(keyHash string)

	unproven atomic.Int64
}

// NewProofs makes Proofs. older says that laptops of the version before, which prove nothing, are
// admitted. lapsed is called when a session ends because nobody vouches for its user any more.
func NewProofs(logins Logins, older bool, lapsed func(keyHash string)) *Proofs {
	p := &Proofs{logins: logins, older: older, lapsed: lapsed, check: proofCheck, patience: proofPatience}
	if older {
		p.patience = olderPatience
	}
	return p
}

// Unproven returns the number of sessions that nobody vouches for.
func (p *Proofs) Unproven() int { return int(p.unproven.Load()) }

var errUnproven = reason.New(codes.PermissionDenied, reason.NotProven,
	"the API server does not vouch for the user of this session: it has no Login that is in force").
	Advise("upgrade sidestep on the laptop, or ask for the Role sidestep-user in the traffic manager's " +
		"namespace")

var errAbsent = reason.New(codes.FailedPrecondition, reason.NotProven,
	"the traffic manager admits no laptop: the definition of Logins, or their admission policy "+
		"sidestep-login, is missing or not in force").
	Advise("ask who runs the cluster to upgrade the installation with `sidestep helm upgrade`")

var errUnread = status.Error(codes.Unavailable, "the manager has not read Logins yet")

// proof is that of one session.
type proof struct {
	all     *Proofs
	keyHash string
	proven  bool
}

// admit returns the proof of a session, or why there is to be no session.
func (p *Proofs) admit(ctx context.Context, keyHash string, log *slog.Logger) (*proof, error) {
	ctx, cancel := context.WithTimeout(ctx, p.patience)
	defer cancel()
	one := &proof{all: p, keyHash: keyHash, proven: p.logins.Wait(ctx, keyHash)}
	switch {
	case one.proven:
	case p.older:
		p.unproven.Add(1)
		log.Warn("laptop admitted although nobody vouches for its user")
	case p.logins.Absent():
		log.Error("laptop refused: nobody can be vouched for")
		return nil, errAbsent
	case !p.logins.Known():
		return nil, errUnread
	default:
		log.Warn("laptop refused: nobody vouches for its user")
		return nil, errUnproven
	}
	return one, nil
}

// look returns why the session is to end, if it is. One that was proven once is to stay so, unless
// nobody can be proven any more: a policy that is installed anew ends no session.
func (o *proof) look() error {
	now := o.all.logins.Proven(o.keyHash)
	switch {
	case now && !o.proven:
		o.proven = true
		o.all.unproven.Add(-1)
	case !now && o.proven && !o.all.logins.Absent():
		o.all.lapsed(o.keyHash)
		return errUnproven
	}
	return nil
}

func (o *proof) end() {
	if !o.proven {
		o.all.unproven.Add(-1)
	}
}
