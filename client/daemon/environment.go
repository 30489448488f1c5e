// SPDX-License-Identifier: Apache-2.0

package daemon

import (
	"cmp"
	"context"
	"errors"
	"time"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/intercept"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/client/session"
	"sidestep.dev/sidestep/internal/reason"
)

// environmentTimeout bounds the wait for an environment. The manager tries several pods within ten
// seconds.
const environmentTimeout = 15 * time.Second

// makeWith makes an intercept and gets the environment that is wanted. If the environment is
// optional and not allowed, it makes the intercept without.
func makeWith(ctx context.Context, current *session.Session, ask *intercept.Ask,
	wanted daemonpb.InterceptRequest_Environment,
	report reports, finish func(*v1alpha1.Intercept, *daemonpb.Environment) error) error {
	confirm := func(made *v1alpha1.Intercept) error {
		if !ask.Spec.Environment {
			return finish(made, nil)
		}
		report.progress("reading the environment of the container")
		got, err := environment(ctx, current, made)
		if err != nil && wanted == daemonpb.InterceptRequest_IF_ALLOWED && ctx.Err() == nil {
			report.warn(without, asOneSentence(err))
			return finish(made, nil)
		}
		if err != nil {
			return lacking(err, "; everything is as it was")
		}
		return finish(made, got)
	}
	err := current.Registry.Make(ctx, ask, report.progress, confirm)
	if wanted == daemonpb.InterceptRequest_IF_ALLOWED && forbidsEnvironment(err) {
		report.warn(without, asOneSentence(err))
		ask.Spec.Environment = false
		err = current.Registry.Make(ctx, ask, report.progress, confirm)
	}
	return err
}

func environment(ctx context.Context, current *session.Session,
	made *v1alpha1.Intercept) (*daemonpb.Environment, error) {
	ctx, cancel := context.WithTimeout(ctx, environmentTimeout)
	defer cancel()
	state, _ := current.Link.State()
	reply, err := state.Environment(ctx,
		&clientpb.EnvironmentRequest{Namespace: made.Namespace, Name: made.Name,
			InterceptUid: string(made.UID)})
	if err != nil {
		return nil, err
	}
	return &daemonpb.Environment{Variables: reply.GetVariables(), Declared: reply.GetDeclared(),
		Container: reply.GetContainer(), Pod: reply.GetPod()}, nil
}

// forbidsEnvironment reports whether an intercept was refused only because it asks for an
// environment.
func forbidsEnvironment(err error) bool {
	return reason.Of(err) == reason.Forbidden && reason.Metadata(err)["resource"] == kube.EnvironmentResource
}

// without is the warning that an intercept is made without the environment.
const without = "the environment of the container is not there: %s"

// asOneSentence returns what happened and what to do in one sentence, since nothing has failed.
func asOneSentence(err error) string {
	text := reason.Message(err)
	if advice := reason.Advice(err); advice != "" {
		text += "; " + advice
	}
	return text
}

// lacking returns err as an error about the environment, with what it means for the intercept.
func lacking(err error, consequence string) error {
	var has *reason.Error
	if !errors.As(err, &has) {
		return err
	}
	return reason.New(has.Code, has.Reason, "cannot read the environment of the container: %s%s",
		has.Message, consequence).
		Advise("%s", cmp.Or(has.Advice, "try again, or leave out --env-file and --env-json"))
}
