// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	apimeta "k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/session"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/unanswered"
)

const (
	// leaveTimeout bounds one attempt to end what no command holds any more.
	leaveTimeout = 10 * time.Second
	// leaveAgain is the pause after an attempt that failed.
	leaveAgain = 2 * time.Second
)

// Hold ends an intercept with the command that it was made for, however that command ends: a process
// that is killed cannot leave, but its call breaks off.
func (s *service) Hold(req *daemonpb.HoldRequest, events daemonpb.Daemon_HoldServer) error {
	current, err := s.session()
	if err != nil {
		return err
	}
	h := holding{service: s, session: current, name: req.GetIntercept()}
	if h.name != "" {
		var ok bool
		if h.uid, ok = h.find(); !ok {
			return reason.New(codes.NotFound, reason.InterceptNotFound, "there is no intercept %q", h.name)
		}
	}
	if process := int(req.GetProcess()); process != 0 {
		s.holds(current, &h, process)
	}
	if err := events.Send(&daemonpb.HoldEvent{}); err != nil {
		return err
	}
	ctx := events.Context()
	h.warn = func(text string) { _ = events.Send(&daemonpb.HoldEvent{Warning: text}) } // ctx tells if it fails
	switch gone := h.gone(ctx); {
	case gone:
		return nil
	case s.isStopping():
		return status.Error(codes.Unavailable, "the daemon ends; the next one can hold it again")
	}
	h.leave()
	return ctx.Err()
}

func (s *service) isStopping() bool {
	select {
	case <-s.stopping:
		return true
	default:
		return false
	}
}

// holding is one call of Hold.
type holding struct {
	service *service
	session *session.Session
	name    string    // of the intercept; empty: the session is held
	uid     types.UID // of its object
	warn    func(text string)
	warned  []unanswered.Reason
}

func (h *holding) find() (types.UID, bool) {
	all, _ := h.session.Registry.All()
	for _, i := range all {
		if i.Spec.Name == h.name {
			return i.UID, true
		}
	}
	return "", false
}

// gone waits until the held intercept or session is gone, and then returns true. It returns false when
// the caller or the daemon ends.
func (h *holding) gone(ctx context.Context) bool {
	for {
		all, changed := h.session.Registry.All()
		if h.name != "" {
			h.tell(all)
			var still bool
			if h.uid, still = h.session.Registry.Still(h.uid); !still {
				return true
			}
		}
		select {
		case <-h.service.stopping:
			return false
		case <-h.session.Done():
			return true
		case <-changed:
		case <-ctx.Done():
			return false
		}
	}
}

// tell warns of requests that this laptop does not answer, once for each reason.
func (h *holding) tell(all []*v1alpha1.Intercept) {
	i := slices.IndexFunc(all, func(i *v1alpha1.Intercept) bool { return i.UID == h.uid })
	if i < 0 {
		return
	}
	for _, r := range missedLately(&all[i].Status) {
		if !slices.Contains(h.warned, r) {
			h.warned = append(h.warned, r)
			h.warn(fmt.Sprintf("a request that matches intercept %s was not answered here: %s", h.name, r.Text()))
		}
	}
}

// missedLately returns the reasons of the last minute. It compares times of the manager's clock
// alone, since this laptop's may differ.
func missedLately(st *v1alpha1.InterceptStatus) []unanswered.Reason {
	if !apimeta.IsStatusConditionFalse(st.Conditions, v1alpha1.ConditionAnswered) {
		return nil
	}
	var newest time.Time
	for _, u := range st.Unanswered {
		if u.Last.After(newest) {
			newest = u.Last.Time
		}
	}
	var lately []unanswered.Reason
	for _, u := range st.Unanswered {
		if newest.Sub(u.Last.Time) < time.Minute {
			lately = append(lately, unanswered.Reason(u.Reason))
		}
	}
	return lately
}

// leave ends what the caller held. It tries until that has succeeded or there is nothing to end.
func (h *holding) leave() {
	what := "the session"
	if h.name != "" {
		what = "intercept " + h.name
	}
	h.service.log.Info("its command has ended without leaving", "leaving", what)
	for {
		ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
		err := h.tryLeave(ctx)
		cancel()
		if err == nil {
			return
		}
		h.service.log.Warn("cannot leave yet", "leaving", what, "error", err)
		select {
		case <-h.service.stopping:
			return
		case <-h.session.Done():
			return
		case <-time.After(leaveAgain):
		}
	}
}

func (h *holding) tryLeave(ctx context.Context) error {
	if h.name == "" {
		return h.service.endIf(ctx, h.session)
	}
	var still bool
	if h.uid, still = h.session.Registry.Still(h.uid); !still {
		return nil
	}
	if uid, ok := h.find(); ok && uid != h.uid {
		return nil
	}
	_, err := h.session.Registry.Leave(ctx, h.name)
	if reason.Of(err) == reason.InterceptNotFound {
		return nil
	}
	return err
}

// holds notes for the next daemon which process holds the session or an intercept.
func (s *service) holds(current *session.Session, h *holding, process int) {
	if h.name != "" {
		current.Registry.Hold(h.uid, process)
		return
	}
	s.mu.Lock()
	s.heldSession = true
	s.mu.Unlock()
	current.Hold(process)
}

// errOwnerless is what the next command is told about a session that awaitCommand has ended.
var errOwnerless = errors.New(
	"the session has ended: the command that held it has ended, and so had the daemon that would have ended it")

// awaitCommand ends a session unless the command that held it by a call to an earlier daemon holds it
// again.
func (s *service) awaitCommand(resumed *session.Session, process int) {
	running, stop := context.WithCancel(context.Background())
	defer stop()
	go func() {
		select {
		case <-s.stopping:
			stop()
		case <-running.Done():
		}
	}()
	settled := intercept.AwaitCommand(running, process, func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		return s.heldSession || s.current != resumed
	})
	if settled || s.isStopping() {
		return
	}
	ctx, cancel := context.WithTimeout(context.Background(), leaveTimeout)
	defer cancel()
	err := s.endIf(ctx, resumed)
	s.log.Info("session ended: its command has, and so had the daemon", "error", err)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.current == nil {
		s.trouble = errOwnerless
	}
}

// endIf ends the session if it is still the current one.
func (s *service) endIf(ctx context.Context, held *session.Session) error {
	done, err := s.change(ctx)
	if err != nil {
		return err
	}
	defer done()
	s.mu.Lock()
	same := s.current == held
	s.mu.Unlock()
	if !same {
		return nil
	}
	err = s.end(ctx)
	if reason.Of(err) == reason.InterceptsLeft {
		return nil // the session is over; the manager deletes them
	}
	return err
}
