// SPDX-License-Identifier: Apache-2.0

// Package output has what all commands print alike: formats, records of failures, and errors that
// tell users what to do.
package output

import (
	"context"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/reason"
)

// UsageError is the error of a wrong command line.
type UsageError struct{ err error }

// Error implements error.
func (u UsageError) Error() string { return u.err.Error() }

// Unwrap returns the error that says what is wrong with the command line.
func (u UsageError) Unwrap() error { return u.err }

// Usage marks err as the error of a wrong command line.
func Usage(err error) error { return UsageError{err} }

// Usagef returns a UsageError.
func Usagef(format string, args ...any) UsageError {
	return UsageError{fmt.Errorf(format, args...)}
}

// Advise returns the error with what to do about it, where the command's help does not help.
func (u UsageError) Advise(format string, args ...any) UsageError {
	return UsageError{reason.Advise(u.err, format, args...)}
}

// HasAdvice reports whether err says what to do about it.
func HasAdvice(err error) bool {
	// Older daemons and managers have it in their message.
	return reason.Advice(err) != "" ||
		reason.Of(err) != "" && strings.Contains(err.Error(), reason.Dash)
}

// ProgramError is the exit code of a program that was run. Nothing is printed about it.
type ProgramError int

// Error implements error.
func (p ProgramError) Error() string { return fmt.Sprintf("exit status %d", int(p)) }

// SignalError is the cause of a context that a signal ended.
type SignalError syscall.Signal

// Error implements error.
func (s SignalError) Error() string { return syscall.Signal(s).String() }

// Unavailable returns the error for what Telepresence can do and this version cannot.
func Unavailable(what, instead string) error {
	return reason.Advise(fmt.Errorf("%s not available in this version", what), "%s", instead)
}

// Envelope is the record of a command that has none of its own, or that failed.
type Envelope struct {
	Cmd    string `json:"cmd"`
	Stdout string `json:"stdout,omitempty"`
	Err    string `json:"err,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// Failure returns the record of an error. With --format, as newer generations have it, there is no
// envelope.
func Failure(cmd *cobra.Command, text, why string) any {
	if f := cmd.Flags().Lookup("output"); f == nil || !f.Changed {
		if f := cmd.Flags().Lookup("format"); f != nil && f.Changed {
			return struct {
				Error  string `json:"error"`
				Reason string `json:"reason,omitempty"`
			}{text, why}
		}
	}
	return Envelope{Cmd: CommandName(cmd), Err: text, Reason: why}
}

// CommandName returns the command without the program's name.
func CommandName(cmd *cobra.Command) string {
	_, name, _ := strings.Cut(cmd.CommandPath(), " ")
	return name
}

// Canceled reports whether err is the end of a context, on either side of the socket.
func Canceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// Sentence returns the text of an error without what gRPC wraps around it.
func Sentence(err error) string {
	text := err.Error()
	var remote interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &remote) {
		return text
	}
	s := remote.GRPCStatus()
	if s.Code() == codes.Unavailable && reason.Of(err) == "" {
		return "the daemon ended during the call" + reason.Dash + "try again; its log is daemon.log in " +
			"~/.cache/sidestep/logs"
	}
	inner, ok := remote.(error)
	if !ok {
		return text
	}
	return strings.TrimSpace(strings.Replace(text, inner.Error(), s.Message(), 1))
}
