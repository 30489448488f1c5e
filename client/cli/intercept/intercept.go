// SPDX-License-Identifier: Apache-2.0

// Package intercept makes and leaves intercepts and wiretaps: it turns flags into a request to the
// user daemon, and runs a command or a container for as long as the intercept lasts.
package intercept

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"time"

	"github.com/spf13/cobra"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

// New returns the command intercept.
//
// Long: it is the help text and the list of flags.
func New(e *env.Env, g *env.Global) *cobra.Command {
	f := &flags{}
	cmd := &cobra.Command{
		Use:   "intercept NAME [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Send a workload's requests to this laptop",
		Long: `Send the requests of a workload to a port of this laptop: all connections, or the HTTP requests that match. Requests
that do not match go to the pods, and so do those that this laptop cannot answer. Workloads are Deployments,
StatefulSets, DaemonSets, ReplicaSets, Argo Rollouts, Jobs, CronJobs, and Pods without an owner.

NAME is the workload's name, and the intercept's. Write KIND/NAME, for example statefulset/orders, if workloads of
several kinds have that name. With --namespace the intercept is called NAME-NAMESPACE, unless --workload names the
workload; then NAME is only the intercept's name.

With a command after --, the intercept lasts as long as the command runs. When the intercept is left, the command ends.

Without --http-* flags the intercept takes all TCP connections, or all datagrams of a UDP port. Any of these flags implies
--mechanism http, and a request must meet all conditions. The command returns when every ready pod sends its matching
traffic here. Several developers can share a workload if their conditions exclude one another. The same command with
another service port moves the intercept to that port.

To try it, send a request from inside the cluster or through its ingress. kubectl port-forward enters the pod on its
loopback interface, which is never intercepted.

The command after -- gets the environment of the container, and so do --env-file and --env-json. $TELEPRESENCE_INTERCEPT_ID
and $TELEPRESENCE_CONTAINER are added. Variables about the place where the container runs, such as HOSTNAME, are left out,
unless the pod's specification sets them. Variables by which programs load code or take their settings, such as PATH,
LD_PRELOAD, BASH_ENV, NODE_OPTIONS and HTTPS_PROXY, are left out unless --env-keep names them: with these, somebody who
controls the container could run code on this laptop. If you may not read environments, there is no file and no
intercept, or the command runs without it after a warning.

Connections that clients opened before are taken over too. The first matching request on such a connection is reset before
the pod sees it. Most clients then send it again on a new connection, unless it is not safe to repeat (POST). Nobody else's
connection is touched, unless --existing is idle or all.`,
		Example: fmt.Sprintf(`  # Everything that is sent to orders, to port 9000
  %[1]s intercept orders --port 9000

  # The requests with a header of your own; the command prints which
  %[1]s intercept orders --port 9000 --http-header auto

  # Those with a given header, below a path
  %[1]s intercept orders --port 9000 --http-header Coder=Bob --http-path-prefix /api

  # The value may be a regular expression
  %[1]s intercept orders --port 9000 --http-header 'x-user: (ann|bob)@example\.com'

  # One of several ports and services, with another name and in another namespace
  %[1]s intercept try --workload echo --service echo-stable --port 3000:http --namespace shop

  # A UDP port, to port 5353
  %[1]s intercept resolver --port 5353:dns/UDP

  # As long as the program runs
  %[1]s intercept orders --port 9000 -- ./orders --listen :9000

  # With the container's environment in a file, for a shell to read
  %[1]s intercept orders --port 9000 --env-file orders.env --env-syntax sh:export

  # With a helper in the pod, which listens on its localhost only, at localhost:8081 of this laptop
  %[1]s intercept orders --port 9000 --to-pod 8081

  # The same in a container, built from what is in this directory; its app listens on port 8080
  %[1]s intercept orders --port 9000:8080 --docker-build .

  # As long as the container runs, which listens on port 8080; flags of docker run go before the image
  %[1]s intercept orders --port 9000:8080 --docker-run -- --volume ./data:/data registry.example/orders:dev`, e.Name),
		Args:              arguments,
		ValidArgsFunction: completeInterceptable(e, g),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.refuseUnavailable(cmd.Flags()); err != nil {
				return err
			}
			req, err := f.request(args[0], g.Namespace, cmd.Flags())
			if err != nil {
				return err
			}
			warnings, err := doubts(req)
			if err != nil {
				return err
			}
			for _, warning := range warnings {
				e.Warn(g, warning)
			}
			return run(e, cmd, g, f, req, args[1:])
		},
	}
	f.add(cmd.Flags())
	completeFlags(e, g, cmd)
	return cmd
}

// interceptArgs wants one name, and a command only after --.
func arguments(cmd *cobra.Command, args []string) error {
	words := len(args)
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		words = dash
		if len(args) == dash {
			return output.Usagef("there is no command after --")
		}
	}
	switch {
	case words == 0:
		return output.Usagef("the workload's name is missing").
			Advise("usage: %s", cmd.UseLine())
	case words > 1:
		return output.Usagef("unexpected argument %s", args[1]).
			Advise("put a command to be run after --")
	}
	return nil
}

// run makes the intercept, and runs the command if one is given.
//
// Long: it is the steps of the command in their order, each of which can end it.
func run(e *env.Env, cmd *cobra.Command, g *env.Global, f *flags,
	req *daemonpb.InterceptRequest, args []string) error {
	ctx := cmd.Context()
	tool := ""
	if err := f.docker.check(args); err != nil {
		return err
	}
	if f.docker.wanted() {
		var err error
		if tool, err = containerTool(e); err != nil {
			return err
		}
		if args, err = image(ctx, e, tool, f.docker, args); err != nil {
			return err
		}
	}
	files, err := f.environment.open()
	if err != nil {
		return err
	}
	defer discard(files)
	s, err := e.Connected(ctx, g)
	if err != nil {
		return err
	}
	defer s.Close()
	before := holds(ctx, s, req.GetName())
	req.Environment = f.environment.wanted(len(args) > 0)
	made, environment, err := intercept(ctx, s, req)
	if output.Canceled(err) {
		awaitUndo(ctx, s, req.GetName(), before)
	}
	if err != nil {
		return err
	}
	if environment == nil && len(files) > 0 {
		return unmake(ctx, s, req.GetName(), before, errors.New("the daemon returned no environment"))
	}
	kept := imported(e, g, environment, f.environment.keep)
	vars := variables(made, environment, kept)
	if err := writeEnvironment(e, g, files, vars); err != nil {
		return unmake(ctx, s, req.GetName(), before, err)
	}
	if err := show(e, g, cmd, made, req, f.environment.printed()); err != nil || len(args) == 0 {
		return err
	}
	p := env.Program{Args: args, Vars: settings(vars)}
	if f.docker.wanted() {
		c := container{tool: tool, port: f.containerPort, args: args}
		var done func()
		if p, done, err = inContainer(e, g, c, made, environment, kept); err != nil {
			return unmake(ctx, s, req.GetName(), before, err)
		}
		defer done()
	}
	return e.RunHeld(ctx, g, s, req.GetName(), p, func(ctx context.Context, s *env.Daemon) error {
		_, err := s.Leave(ctx, &daemonpb.LeaveRequest{Name: req.GetName()})
		if status.Code(err) == codes.NotFound {
			return nil // the intercept was left, or the session ended, meanwhile
		}
		return err
	})
}

// show prints which intercept was made, to standard error if standard output is used otherwise.
func show(e *env.Env, g *env.Global, cmd *cobra.Command, made *daemonpb.InterceptInfo,
	req *daemonpb.InterceptRequest, taken bool) error {
	if format := output.OutputOf(cmd); format != output.FormatText {
		return e.Write(format, layout.InterceptRecord(made))
	}
	to := e.Stdout
	if taken {
		to = e.Stderr
	}
	return layout.NewIntercept(to, made, example(cmd.Context(), e, g, made, req), e.Paint(to))
}

// maxEvent bounds one event of an intercept, in bytes. The last one has the environment.
const maxEvent = 16 << 20

// intercept makes the intercept and shows the progress. If ctx ends before, the daemon undoes it.
func intercept(ctx context.Context, s *env.Daemon,
	req *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, *daemonpb.Environment, error) {
	doing := "intercepting "
	if req.GetWiretap() {
		doing = "wiretapping "
	}
	s.Line.Set(doing + req.GetWorkload())
	defer s.Line.Close()
	stream, err := s.Intercept(ctx, req, grpc.MaxCallRecvMsgSize(maxEvent))
	if err != nil {
		return nil, nil, err
	}
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, nil, reason.Advise(errors.New("the daemon ended the call without an answer"),
				"try again")
		case err != nil:
			return nil, nil, err
		case event.GetResult() != nil:
			return event.GetResult(), event.GetEnvironment(), nil
		case event.GetWarning() != "":
			s.Warn(event.GetWarning())
		default:
			s.Line.Set(event.GetProgress())
		}
	}
}

// holds reports whether this laptop has an intercept of that name.
func holds(ctx context.Context, s *env.Daemon, name string) bool {
	st, err := s.Status(ctx, &daemonpb.Empty{})
	return err == nil && slices.ContainsFunc(st.GetIntercepts(),
		func(i *daemonpb.InterceptInfo) bool { return i.GetName() == name })
}

// awaitUndo waits a moment until the daemon has undone an interrupted intercept, so that the next
// command does not see it.
func awaitUndo(ctx context.Context, s *env.Daemon, name string, before bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for holds(ctx, s, name) != before {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
