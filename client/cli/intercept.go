// SPDX-License-Identifier: Apache-2.0

package cli

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
	"sidestep.dev/sidestep/client/cli/layout"
)

func newInterceptCmd(e *env, g *global) *cobra.Command {
	f := &interceptFlags{}
	cmd := &cobra.Command{
		Use:     "intercept NAME [flags] [-- COMMAND [ARGUMENT...]]",
		Short:   "Send a workload's requests to this laptop",
		GroupID: groupTraffic,
		Long: `Send the requests of a workload to a port of this laptop: all connections, or the HTTP requests that match. What does not
match, and what this laptop cannot answer, goes to the pods as always. Workloads are Deployments, StatefulSets, DaemonSets,
ReplicaSets, Rollouts of Argo Rollouts, and Pods that belong to none of these.

NAME is the workload's name, and the intercept's too; write KIND/NAME, as in statefulset/orders, if workloads of several
kinds have it. With --namespace the intercept is called NAME-NAMESPACE, unless
--workload names the workload; then NAME is just the intercept's name. With a command after --, the intercept lasts as
long as the command runs; when the intercept is left, the command is ended.

The command gets the environment of the intercepted container, as the container's process has it, and so do --env-file
and --env-json. What is about the place where the container runs, as PATH and HOME, is left out unless the pod's
specification sets it. $TELEPRESENCE_INTERCEPT_ID and $TELEPRESENCE_CONTAINER are added. Who may not read environments
gets no file and no intercept, or a command without it and a warning.

Without --http-* flags all TCP connections are taken, or all datagrams of a UDP port. Any of them means --mechanism http, and
all conditions must hold.
The command returns when every ready pod sends its matching traffic here. Several developers can share a workload if their
conditions exclude one another. The same command with another service port moves the intercept to that port.

Connections that clients keep open are taken over too. The first matching request on such a connection gets a reset instead
of an answer, before the pod has seen it; clients that keep connections open send it again on a new one, as a rule all but
those that are not safe to repeat (POST). Nobody else's connection is touched, unless --existing says idle or all.`,
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
  %[1]s intercept orders --port 9000:8080 --docker-run -- --volume ./data:/data registry.example/orders:dev`, e.name),
		Args:              interceptArgs,
		ValidArgsFunction: completeInterceptable(e, g),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.refuseUnavailable(cmd.Flags()); err != nil {
				return err
			}
			req, err := f.request(args[0], g.namespace, cmd.Flags())
			if err != nil {
				return err
			}
			return e.runIntercept(cmd, g, f, req, args[1:])
		},
	}
	f.add(cmd.Flags())
	completeInterceptFlags(e, g, cmd)
	return cmd
}

// interceptArgs wants one name, and a command only after --.
func interceptArgs(cmd *cobra.Command, args []string) error {
	words := len(args)
	if dash := cmd.ArgsLenAtDash(); dash >= 0 {
		words = dash
		if len(args) == dash {
			return usagef("there is no command after --")
		}
	}
	switch {
	case words == 0:
		return usagef("the workload's name is missing — usage: %s", cmd.UseLine())
	case words > 1:
		return usagef("unexpected argument %s — put a command to be run after --", args[1])
	}
	return nil
}

func (e *env) runIntercept(cmd *cobra.Command, g *global, f *interceptFlags,
	req *daemonpb.InterceptRequest, args []string) error {
	ctx := cmd.Context()
	tool := ""
	if err := f.docker.check(args); err != nil {
		return err
	}
	if f.docker.wanted() {
		var err error
		if tool, err = e.containerTool(); err != nil {
			return err
		}
		if args, err = e.image(ctx, tool, f.docker, args); err != nil {
			return err
		}
	}
	files, err := f.environment.open()
	if err != nil {
		return err
	}
	defer discard(files)
	s, err := e.connected(ctx, g)
	if err != nil {
		return err
	}
	defer s.Close()
	before := s.holds(ctx, req.GetName())
	req.Environment = f.environment.wanted(len(args) > 0)
	made, environment, err := s.intercept(ctx, req)
	if canceled(err) {
		s.awaitUndo(ctx, req.GetName(), before)
	}
	if err != nil {
		return err
	}
	if environment == nil && len(files) > 0 {
		return s.unmake(ctx, req.GetName(), before, errors.New("the daemon gave no environment"))
	}
	vars := variables(made, environment)
	if err := e.writeEnvironment(g, files, vars); err != nil {
		return s.unmake(ctx, req.GetName(), before, err)
	}
	if err := e.show(cmd, made, f.environment.printed()); err != nil || len(args) == 0 {
		return err
	}
	p := program{args: args, vars: settings(vars)}
	if f.docker.wanted() {
		c := container{tool: tool, port: f.containerPort, args: args}
		var done func()
		if p, done, err = e.inContainer(g, c, made, environment); err != nil {
			return s.unmake(ctx, req.GetName(), before, err)
		}
		defer done()
	}
	return e.runHeld(ctx, g, s, req.GetName(), p, func(ctx context.Context, s *session) error {
		_, err := s.Leave(ctx, &daemonpb.LeaveRequest{Name: req.GetName()})
		if status.Code(err) == codes.NotFound {
			return nil // somebody was quicker: leave, or quit
		}
		return err
	})
}

// show says which intercept was made; on the standard error if the standard output is for something
// else.
func (e *env) show(cmd *cobra.Command, made *daemonpb.InterceptInfo, taken bool) error {
	if format := outputOf(cmd); format != formatText {
		return e.write(format, layout.InterceptRecord(made))
	}
	to := e.stdout
	if taken {
		to = e.stderr
	}
	return layout.NewIntercept(to, made, e.paint(to))
}

// maxEvent bounds one event of making an intercept, in bytes: the last brings the environment.
const maxEvent = 16 << 20

// warning begins a line on the standard error that stays on the screen.
const warning = "warning: "

// intercept makes the intercept and shows the progress. When ctx ends before it is made, the daemon
// undoes it.
func (s *session) intercept(ctx context.Context,
	req *daemonpb.InterceptRequest) (*daemonpb.InterceptInfo, *daemonpb.Environment, error) {
	doing := "intercepting "
	if req.GetWiretap() {
		doing = "wiretapping "
	}
	s.line.Set(doing + req.GetWorkload())
	defer s.line.Close()
	stream, err := s.Intercept(ctx, req, grpc.MaxCallRecvMsgSize(maxEvent))
	if err != nil {
		return nil, nil, err
	}
	for {
		event, err := stream.Recv()
		switch {
		case errors.Is(err, io.EOF):
			return nil, nil, errors.New("the daemon ended the call without an answer — try again")
		case err != nil:
			return nil, nil, err
		case event.GetResult() != nil:
			return event.GetResult(), event.GetEnvironment(), nil
		case event.GetWarning() != "":
			s.warn(event.GetWarning())
		default:
			s.line.Set(event.GetProgress())
		}
	}
}

// holds tells whether this laptop has an intercept of that name.
func (s *session) holds(ctx context.Context, name string) bool {
	st, err := s.Status(ctx, &daemonpb.Empty{})
	return err == nil && slices.ContainsFunc(st.GetIntercepts(),
		func(i *daemonpb.InterceptInfo) bool { return i.GetName() == name })
}

// awaitUndo waits for a moment until the daemon has undone an intercept that was interrupted, so
// that whoever looks next does not see it.
func (s *session) awaitUndo(ctx context.Context, name string, before bool) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for s.holds(ctx, name) != before {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}
