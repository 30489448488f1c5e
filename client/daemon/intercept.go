// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"time"

	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/link"
	"sidestep.dev/sidestep/client/session"
	"sidestep.dev/sidestep/client/workload"
	"sidestep.dev/sidestep/internal/reason"
)

// reports sends the command line the progress of an intercept and its warnings.
type reports struct {
	events daemonpb.Daemon_InterceptServer
}

func (r reports) progress(line string) { _ = r.events.Send(&daemonpb.InterceptEvent{Progress: line}) }

func (r reports) warn(format string, args ...any) {
	_ = r.events.Send(&daemonpb.InterceptEvent{Warning: fmt.Sprintf(format, args...)})
}

func (s *service) Intercept(req *daemonpb.InterceptRequest, events daemonpb.Daemon_InterceptServer) error {
	ctx := events.Context()
	current, err := s.session()
	if err != nil {
		return err
	}
	ask, err := intercept.NewAsk(req, current.Client, current.Record().Namespace)
	if err != nil {
		return err
	}
	report := reports{events}
	if err := connected(ctx, current, ask.Timeout, report.progress); err != nil {
		return err
	}
	if state, _ := current.Link.State(); ask.Spec.Wiretap && state.Connected && !state.Wiretaps {
		return reason.New(codes.FailedPrecondition, reason.VersionSkew,
			"the traffic manager (%s) is older than this sidestep and does not know wiretaps",
			state.ManagerVersion).
			Advise("ask who runs the cluster for `sidestep helm upgrade`")
	}
	cluster, err := current.Source.Cluster()
	if err != nil {
		return err
	}
	w := &ask.Spec.Workload
	if w.Kind, err = workload.Find(ctx, cluster, ask.Namespace, w.Kind, w.Name); err != nil {
		return err
	}
	release, err := current.Outbound.Reserve(ask.Spec.Name, ask.Spec.ToPod)
	if err != nil {
		return err
	}
	defer release()
	err = makeWith(ctx, current, ask, req.GetEnvironment(), report,
		func(made *v1alpha1.Intercept, environment *daemonpb.Environment) error {
			info := current.Print(ctx, []*v1alpha1.Intercept{made}, nil)[0]
			if silent(info.GetDestination(), info.GetProtocol()) {
				until := "the pods answer"
				if info.GetWiretap() {
					until = "copies are dropped"
				}
				report.warn("nothing listens on %s yet: until something does, %s", info.GetDestination(), until)
			}
			if other := current.Registry.SharesPort(made); other != "" {
				report.warn("intercept %s delivers to %s, too: the log at level debug says which got each connection",
					other, info.GetDestination())
			}
			if err := current.Unstored(); err != nil {
				report.warn("the session is not saved and ends with the daemon: %v", err)
			}
			return events.Send(&daemonpb.InterceptEvent{Result: info, Environment: environment})
		})
	if why := reason.Of(err); ask.Spec.Port != "" && (why == reason.InterceptExists || why == reason.Conflict) {
		// Whoever mistypes the port is not helped by what else is in the way.
		return cmp.Or(workload.CheckPort(ctx, cluster, ask.Namespace, w.Kind, w.Name, ask.Spec.Port), err)
	}
	return err
}

// connected waits until the link is connected again.
func connected(ctx context.Context, current *session.Session, timeout time.Duration,
	progress func(string)) error {
	state, _ := current.Link.State()
	if state.Connected {
		return nil
	}
	_, message := describe(state)
	progress("waiting for the traffic manager: " + message)
	waiting, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	state = current.Link.Wait(waiting,
		func(st link.State) bool { return st.Connected || link.IsLasting(st.Err) })
	switch {
	case state.Connected:
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case link.IsLasting(state.Err):
		return state.Err
	}
	_, message = describe(state)
	return reason.New(codes.Unavailable, reason.ManagerNotReady,
		"not connected to the traffic manager: %s", message).
		Advise("try again when `sidestep status` says Connected")
}

func (s *service) Leave(ctx context.Context, req *daemonpb.LeaveRequest) (*daemonpb.LeaveReply, error) {
	current, err := s.session()
	if err != nil {
		return nil, err
	}
	left, err := current.Registry.Leave(ctx, req.GetName())
	if err != nil {
		return nil, err
	}
	current.Outbound.Settle() // so that the next intercept can have the ports
	return &daemonpb.LeaveReply{Left: intercept.Print(left, false)}, nil
}

// Filters of List.
const (
	filterAll           = "all"
	filterIntercepted   = "intercepted"
	filterInterceptable = "interceptable"
	filterWiretapped    = "wiretapped"
	filterHeld          = "held" // intercepted or wiretapped
)

func (s *service) List(ctx context.Context, req *daemonpb.ListRequest) (*daemonpb.ListReply, error) {
	current, err := s.session()
	if err != nil {
		return nil, err
	}
	switch req.GetFilter() {
	case "", filterAll, filterIntercepted, filterInterceptable, filterWiretapped, filterHeld:
	default:
		return nil, reason.New(codes.InvalidArgument, reason.Invalid, "there is no filter %q",
			req.GetFilter()).
			Advise("use all, intercepted, wiretapped, held or interceptable")
	}
	namespace := req.GetNamespace()
	switch {
	case req.GetAllNamespaces():
		namespace = ""
	case namespace == "":
		namespace = current.Record().Namespace
	}
	cluster, err := current.Source.Cluster()
	if err != nil {
		return nil, err
	}
	listing, err := workload.List(ctx, cluster, namespace, current.Record().ManagerNamespace)
	if err != nil {
		return nil, err
	}
	reply := &daemonpb.ListReply{}
	for _, w := range listing.Workloads {
		info := &daemonpb.WorkloadInfo{Kind: w.Kind, Name: w.Name, Namespace: w.Namespace,
			NotInterceptable: w.NotInterceptable}
		mine := make([]bool, len(w.Intercepts))
		for i, object := range w.Intercepts {
			if own := current.Registry.Own(object.UID); own != nil {
				w.Intercepts[i], mine[i] = own, true
			}
		}
		for i, printed := range current.Print(ctx, w.Intercepts, listing.Services) {
			if mine[i] {
				info.Intercepts = append(info.Intercepts, printed)
			} else {
				info.Others = append(info.Others, printed)
			}
		}
		if wanted(info, req.GetFilter()) {
			reply.Workloads = append(reply.Workloads, info)
		}
	}
	return reply, nil
}

func wanted(w *daemonpb.WorkloadInfo, filter string) bool {
	switch filter {
	case filterHeld:
		return len(w.GetIntercepts()) > 0
	case filterIntercepted:
		return slices.ContainsFunc(w.GetIntercepts(),
			func(i *daemonpb.InterceptInfo) bool { return !i.GetWiretap() })
	case filterWiretapped:
		return slices.ContainsFunc(w.GetIntercepts(), (*daemonpb.InterceptInfo).GetWiretap)
	case filterInterceptable:
		return w.GetNotInterceptable() == ""
	default:
		return true
	}
}
