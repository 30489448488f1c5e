// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/daemonpb"
)

// holdPatience is how long a program waits until its intercept is held.
const holdPatience = 5 * time.Second

// holdAgain is the pause between attempts to have something held again after the daemon has died.
const holdAgain = 500 * time.Millisecond

// program is what is run on this terminal.
type program struct {
	args []string
	vars []string        // KEY=VALUE, besides the environment of this process
	stop <-chan struct{} // closed when it is to end; may be nil
	// halt is a command line that ends it; without one it is sent SIGTERM.
	halt []string
	// aside: what it prints is not what the command line was asked for, and goes to the standard
	// error.
	aside bool
}

// runProgram runs a program until it ends. What is typed at the terminal, Ctrl-C included, reaches
// the program from the terminal itself; signals that were sent to this process are passed on.
func runProgram(_ context.Context, p program) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	cmd := exec.Command(p.args[0], p.args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if p.aside {
		cmd.Stdout = os.Stderr
	}
	cmd.Env = append(os.Environ(), p.vars...)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, onTerminal := isTerminal(os.Stdin)
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop := p.stop
	for {
		select {
		case sig := <-signals:
			typed := onTerminal && (sig == syscall.SIGINT || sig == syscall.SIGQUIT)
			if !typed {
				_ = cmd.Process.Signal(sig)
			}
		case <-stop:
			stop = nil
			go p.end(cmd)
		case err := <-ended:
			return exitCode(cmd, err)
		}
	}
}

func (p program) end(cmd *exec.Cmd) {
	if len(p.halt) > 0 && exec.Command(p.halt[0], p.halt[1:]...).Run() == nil {
		return
	}
	_ = cmd.Process.Signal(syscall.SIGTERM)
}

func exitCode(cmd *exec.Cmd, err error) (int, error) {
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return 0, err
	}
	if status, ok := cmd.ProcessState.Sys().(syscall.WaitStatus); ok && status.Signaled() {
		return 128 + int(status.Signal()), nil
	}
	return cmd.ProcessState.ExitCode(), nil
}

// runHeld runs a program for the length of which the daemon holds an intercept, or, when its name
// is empty, the session. When that is left by somebody else the program is ended; when this process
// is killed the daemon leaves it; and when the program has ended undo is called to leave it
// properly.
func (e *env) runHeld(ctx context.Context, g *global, s *session, name string, p program,
	undo func(context.Context, *session) error) error {
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	var over atomic.Bool
	gone, held, holds := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.stop = gone
	go func() {
		defer close(held)
		if !e.hold(holding, g, s, name, sync.OnceFunc(func() { close(holds) })) || over.Load() {
			return
		}
		what := "the session"
		if name != "" {
			what = "intercept " + name
		}
		e.note(g, "%s has ended, and so does %s", what, p.args[0])
		close(gone)
	}()
	select { // from here on it does not matter how this process ends
	case <-holds:
	case <-held:
	case <-time.After(holdPatience):
	}
	code, err := e.run(ctx, p)
	over.Store(true)
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), afterwards)
	defer cancel()
	undoErr := e.undo(undoCtx, g, s, undo) // before the holding ends, which would have the daemon do it
	release()
	<-held
	switch {
	case err != nil:
		return fmt.Errorf("run %s: %w", p.args[0], err)
	case undoErr != nil:
		return undoErr
	case code != 0:
		return programError(code)
	}
	return nil
}

// runFree runs a program that nothing depends on.
func (e *env) runFree(ctx context.Context, args []string) error {
	code, err := e.run(ctx, program{args: args})
	switch {
	case err != nil:
		return fmt.Errorf("run %s: %w", args[0], err)
	case code != 0:
		return programError(code)
	}
	return nil
}

// undo leaves, with the next daemon if this one has died meanwhile.
func (e *env) undo(ctx context.Context, g *global, s *session,
	undo func(context.Context, *session) error) error {
	err := undo(ctx, s)
	if status.Code(err) != codes.Unavailable {
		return err
	}
	next, nextErr := e.running(ctx, g)
	if nextErr != nil || next == nil {
		return err
	}
	defer next.Close()
	return undo(ctx, next)
}

// hold calls holds when it is held. It returns true when what is held is gone, and false when ctx
// ends. A daemon that dies is replaced, and told again.
func (e *env) hold(ctx context.Context, g *global, s *session, name string, holds func()) bool {
	for {
		err := s.hold(ctx, name, holds)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil, status.Code(err) == codes.NotFound, status.Code(err) == codes.FailedPrecondition:
			return true
		}
		if next, err := e.running(ctx, g); err == nil && next != nil {
			_ = next.Close() // s finds it by itself
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(holdAgain):
		}
	}
}

// hold returns nil when what is held is gone.
func (s *session) hold(ctx context.Context, name string, holds func()) error {
	stream, err := s.Hold(ctx, &daemonpb.HoldRequest{Intercept: name, Process: int32(os.Getpid())})
	if err != nil {
		return err
	}
	for {
		switch _, err := stream.Recv(); {
		case err == nil:
			holds()
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}
