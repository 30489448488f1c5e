// SPDX-License-Identifier: Apache-2.0

package env

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
	"sidestep.dev/sidestep/client/cli/output"
)

// holdPatience is how long a program waits until its intercept is held.
const holdPatience = 5 * time.Second

// holdAgain is the pause between calls of Hold after the daemon has died.
const holdAgain = 500 * time.Millisecond

// Program is a program to run on this terminal.
type Program struct {
	Args []string
	Vars []string        // KEY=VALUE, in addition to the environment of this process
	stop <-chan struct{} // closed when it has to end; may be nil
	// Halt is a command line that ends it. Without one it receives SIGTERM.
	Halt []string
	// Aside is set if its output is not the command's result, and goes to standard error.
	Aside bool
}

// RunProgram runs a program until it ends. What is typed at the terminal, Ctrl-C included, reaches
// the program from the terminal itself; signals that were sent to this process are passed on.
func RunProgram(_ context.Context, p Program) (int, error) {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT)
	defer signal.Stop(signals)
	cmd := exec.Command(p.Args[0], p.Args[1:]...)
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	if p.Aside {
		cmd.Stdout = os.Stderr
	}
	cmd.Env = append(os.Environ(), p.Vars...)
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	_, onTerminal := IsTerminal(os.Stdin)
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

func (p Program) end(cmd *exec.Cmd) {
	if len(p.Halt) > 0 && exec.Command(p.Halt[0], p.Halt[1:]...).Run() == nil {
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

// RunHeld runs a program. Meanwhile the daemon holds an intercept or, if its name is empty, the
// session. If it is left by another command, RunHeld ends the program. If this process is killed,
// the daemon leaves it. When the program has ended, RunHeld calls undo to leave it.
func (e *Env) RunHeld(ctx context.Context, g *Global, s *Daemon, name string, p Program,
	undo func(context.Context, *Daemon) error) error {
	holding, release := context.WithCancel(context.WithoutCancel(ctx))
	defer release()
	var over atomic.Bool
	gone, held, holds := make(chan struct{}), make(chan struct{}), make(chan struct{})
	p.stop = gone
	warned := map[string]bool{} // a daemon that takes over from another warns again
	on := holdEvents{holds: sync.OnceFunc(func() { close(holds) }), warns: func(text string) {
		if !warned[text] {
			warned[text] = true
			e.Warn(g, text)
		}
	}}
	go func() {
		defer close(held)
		if !e.hold(holding, g, s, name, on) || over.Load() {
			return
		}
		what := "the session"
		if name != "" {
			what = "intercept " + name
		}
		e.Note(g, "%s has ended, and so does %s", what, p.Args[0])
		close(gone)
	}()
	select { // from here on the daemon leaves it, however this process ends
	case <-holds:
	case <-held:
	case <-time.After(holdPatience):
	}
	code, err := e.Run(ctx, p)
	over.Store(true)
	undoCtx, cancel := context.WithTimeout(context.WithoutCancel(ctx), Afterwards)
	defer cancel()
	undoErr := e.undo(undoCtx, g, s, undo) // before the call of Hold ends, or the daemon would do it
	release()
	<-held
	switch {
	case err != nil:
		return fmt.Errorf("run %s: %w", p.Args[0], err)
	case undoErr != nil:
		return undoErr
	case code != 0:
		return output.ProgramError(code)
	}
	return nil
}

// RunFree runs a program on which nothing depends.
func (e *Env) RunFree(ctx context.Context, args []string) error {
	code, err := e.Run(ctx, Program{Args: args})
	switch {
	case err != nil:
		return fmt.Errorf("run %s: %w", args[0], err)
	case code != 0:
		return output.ProgramError(code)
	}
	return nil
}

// undo calls undo, with the next daemon if this one has died meanwhile.
func (e *Env) undo(ctx context.Context, g *Global, s *Daemon,
	undo func(context.Context, *Daemon) error) error {
	err := undo(ctx, s)
	if status.Code(err) != codes.Unavailable {
		return err
	}
	next, nextErr := e.Running(ctx, g)
	if nextErr != nil || next == nil {
		return err
	}
	defer next.Close()
	return undo(ctx, next)
}

// holdEvents are callbacks while something is held.
type holdEvents struct {
	holds func() // it is held
	warns func(text string)
}

// hold returns true when what is held is gone, and false when ctx ends. If the daemon dies, hold
// calls the next one.
func (e *Env) hold(ctx context.Context, g *Global, s *Daemon, name string, on holdEvents) bool {
	for {
		err := s.hold(ctx, name, on)
		switch {
		case ctx.Err() != nil:
			return false
		case err == nil, status.Code(err) == codes.NotFound, status.Code(err) == codes.FailedPrecondition:
			return true
		}
		if next, err := e.Running(ctx, g); err == nil && next != nil {
			_ = next.Close() // s connects to it by itself
		}
		select {
		case <-ctx.Done():
			return false
		case <-time.After(holdAgain):
		}
	}
}

// hold returns nil when what is held is gone.
func (s *Daemon) hold(ctx context.Context, name string, on holdEvents) error {
	stream, err := s.Hold(ctx, &daemonpb.HoldRequest{Intercept: name, Process: int32(os.Getpid())})
	if err != nil {
		return err
	}
	for {
		switch event, err := stream.Recv(); {
		case event.GetWarning() != "":
			on.warns(event.GetWarning())
		case err == nil:
			on.holds()
		case errors.Is(err, io.EOF):
			return nil
		default:
			return err
		}
	}
}
