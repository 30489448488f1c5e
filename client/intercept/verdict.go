// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/meta"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// undoTimeout bounds the undoing of a failed request after the caller has gone.
const undoTimeout = 10 * time.Second

// wait follows the object's status until it is final, or the time is up.
func (m *maker) wait(ctx context.Context) (*v1alpha1.Intercept, error) {
	timer := time.NewTimer(m.ask.Timeout)
	defer timer.Stop()
	said := ""
	for {
		object, changed := m.registry.get(m.object.UID)
		if object == nil {
			return nil, reason.New(codes.Aborted, reason.NotSteering,
				"intercept %q was deleted while it was being made", m.ask.Spec.Name)
		}
		done, line, err := verdict(object, m.object.Generation)
		if done && err == nil && m.ask.Spec.Protocol == v1alpha1.ProtocolUDP &&
			object.Status.Protocol != v1alpha1.ProtocolUDP {
			err = tooOld()
		}
		if done {
			return object, m.ours(err)
		}
		if line != said {
			said = line
			m.progress(line)
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return nil, ctx.Err()
		case <-m.registry.ctx.Done():
			return nil, reason.New(codes.Aborted, reason.NoSession,
				"disconnected while intercept %q was being made", m.ask.Spec.Name)
		case <-timer.C:
			return nil, m.late(object)
		}
	}
}

// verdict reads a status: whether it is final for the generation that was written, and else a line
// about the progress.
func verdict(i *v1alpha1.Intercept, generation int64) (done bool, line string, err error) {
	s := i.Status
	if s.ObservedGeneration < generation {
		return false, "waiting for the traffic manager", nil
	}
	message := cmp.Or(s.Message, "the traffic manager states no reason")
	switch s.State {
	case v1alpha1.StateActive, v1alpha1.StateNoPods:
		return true, "", nil
	case v1alpha1.StateConflict:
		return true, "", reason.New(codes.AlreadyExists, reason.Conflict, "%s", message)
	case v1alpha1.StateInvalid:
		return true, "", reason.New(codes.InvalidArgument, reason.Invalid, "%s", message)
	case v1alpha1.StateFailed:
		return true, "", reason.New(codes.FailedPrecondition, reason.NotSteering, "%s", message)
	case v1alpha1.StateDisconnected:
		return false, "waiting for the traffic manager to see this laptop", nil
	}
	if s.Coverage == "" {
		return false, "waiting for the traffic manager", nil
	}
	return false, "waiting for pods to steer: " + s.Coverage, nil
}

// ours returns err with other words if it is a conflict with an intercept of this laptop, which nobody
// else can leave.
func (m *maker) ours(err error) error {
	var has *reason.Error
	if !errors.As(err, &has) || has.Reason != reason.Conflict {
		return err
	}
	for _, name := range m.registry.namesOf(m.ask.Namespace, m.ask.Spec.Workload) {
		theirs := fmt.Sprintf("%s (intercept %q)", m.registry.client.Holder, name)
		if name == m.ask.Spec.Name || !strings.Contains(has.Message, theirs) {
			continue
		}
		also := *has
		also.Message = strings.Replace(has.Message, theirs, fmt.Sprintf("your own intercept %q", name), 1)
		return also.Advise("run `sidestep leave %s` first, or intercept requests that differ by a header", name)
	}
	return err
}

// late returns the error that the intercept is not complete in time.
func (m *maker) late(object *v1alpha1.Intercept) error {
	late := func(why string) *reason.Error {
		return reason.New(codes.DeadlineExceeded, reason.NotSteering,
			"intercept %q is not complete after %v: %s", m.ask.Spec.Name, m.ask.Timeout, why)
	}
	if object.Status.ObservedGeneration < object.Generation || object.Status.State == "" {
		return late("the traffic manager has not seen it yet").Advise("check its log")
	}
	err := late(missing(object))
	if slices.ContainsFunc(object.Status.Pods, func(p v1alpha1.PodStatus) bool { return !p.Steering && p.Node != "" }) {
		return err.Advise("look at the node agents with `kubectl get pods --all-namespaces --selector %s=%s --output wide`, "+
			"or ask who runs the cluster", names.LabelComponent, names.ComponentNodeAgent)
	}
	return err
}

// missing returns which pods are not steering, and why.
func missing(i *v1alpha1.Intercept) string {
	var pods []string
	for _, pod := range i.Status.Pods {
		if !pod.Steering {
			line := pod.Name
			if pod.Node != "" {
				line += " on " + pod.Node
			}
			pods = append(pods, line+": "+cmp.Or(pod.Message, "no report from its node agent"))
		}
	}
	slices.Sort(pods)
	if len(pods) == 0 {
		return cmp.Or(i.Status.Message, "its state is "+string(i.Status.State))
	}
	if i.Status.Coverage != "" {
		return i.Status.Coverage + " pods steer; " + strings.Join(pods, "; ")
	}
	return strings.Join(pods, "; ")
}

// undo reverts what was written and returns the error that made it necessary.
func (m *maker) undo(ctx context.Context, cause error) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var err error
	if m.before != nil {
		was := m.before.Spec
		_, err = m.update(ctx, m.object, func(s *v1alpha1.InterceptSpec) { moveTo(s, &was) })
	} else {
		err = m.registry.delete(ctx, m.cluster, m.object)
	}
	if err == nil || apierrors.IsNotFound(err) {
		return cause
	}
	m.registry.log.Error("cannot undo", "intercept", m.ask.Spec.Name, "error", err)
	var has *reason.Error
	if errors.As(cause, &has) {
		also := *has
		also.Message += fmt.Sprintf("; and it could not be undone (%v)", m.cluster.Explain(err))
		return also.Advise("run `sidestep leave %s`", m.ask.Spec.Name)
	}
	return cause
}

// explain explains errors of calls that concern the Intercept itself.
func (m *maker) explain(err error) error {
	var answer apierrors.APIStatus
	namespace := m.ask.Namespace
	switch {
	case err == nil:
		return nil
	case meta.IsNoMatchError(err):
		return notInstalled()
	case apierrors.IsNotFound(err) && errors.As(err, &answer):
		if d := answer.Status().Details; d != nil && d.Kind == "namespaces" {
			return reason.New(codes.NotFound, reason.Invalid, "namespace %s does not exist", namespace)
		}
		if m.before != nil {
			return reason.New(codes.Aborted, reason.NotSteering,
				"intercept %q was deleted meanwhile", m.ask.Spec.Name).
				Advise("try again")
		}
		return notInstalled()
	case m.ask.Spec.Wiretap && apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "spec.wiretap"):
		return reason.New(codes.FailedPrecondition, reason.VersionSkew,
			"the cluster's definition of Intercepts is older than this sidestep and does not know wiretaps").
			Advise("ask who runs the cluster for `sidestep helm upgrade`")
	case explainOverlap(err) != nil:
		return m.ours(explainOverlap(err))
	case apierrors.IsInvalid(err) && errors.As(err, &answer):
		var causes []string
		if d := answer.Status().Details; d != nil {
			for _, cause := range d.Causes {
				causes = append(causes, cause.Message)
			}
		}
		if len(causes) == 0 {
			causes = []string{answer.Status().Message}
		}
		return invalid("the cluster does not accept the intercept: %s", strings.Join(causes, "; "))
	default:
		return m.cluster.Explain(err)
	}
}

// tooOld is the error for a manager without UDP.
func tooOld() error {
	return reason.New(codes.FailedPrecondition, reason.NotSteering,
		"the traffic manager is older than this program and does not know UDP ports").
		Advise("whoever runs the cluster has to upgrade it (`sidestep helm upgrade`), or leave out /TCP and /UDP")
}

func notInstalled() error {
	return reason.New(codes.FailedPrecondition, reason.ManagerNotInstalled,
		"the cluster does not know Intercepts: sidestep is not installed").
		Advise("run `sidestep helm install`")
}
