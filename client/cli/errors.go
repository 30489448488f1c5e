// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/internal/reason"
)

// Exit codes besides 0 and those of programs that are run after --.
const (
	exitError = 1
	exitUsage = 2
)

// usageError is a command line that cannot be meant.
type usageError struct{ err error }

func (u usageError) Error() string { return u.err.Error() }
func (u usageError) Unwrap() error { return u.err }

// usagef makes a usageError.
func usagef(format string, args ...any) error {
	return usageError{fmt.Errorf(format, args...)}
}

// programError is the exit code of a program that was run; there is nothing to print about it.
type programError int

func (p programError) Error() string { return fmt.Sprintf("exit status %d", int(p)) }

// signalError is the cause of a context that a signal ended.
type signalError syscall.Signal

func (s signalError) Error() string { return syscall.Signal(s).String() }

// unavailable is the answer to what users of Telepresence may ask for and this version cannot do.
func unavailable(what, instead string) error {
	return fmt.Errorf("%s not available in this version — %s", what, instead)
}

// fail prints the error that ended cmd and returns the exit code.
func (e *env) fail(ctx context.Context, g *global, cmd *cobra.Command, err error) int {
	var program programError
	if errors.As(err, &program) {
		return int(program)
	}
	code := exitError
	text := e.advise(sentence(err), err)
	var sig signalError
	var usage usageError
	switch {
	case errors.As(context.Cause(ctx), &sig) && canceled(err):
		code, text = 128+int(sig), "interrupted"
	case errors.As(err, &usage):
		code = exitUsage
		if !strings.Contains(text, dash) {
			text += fmt.Sprintf("%ssee `%s --help`", dash, cmd.CommandPath())
		}
	}
	fmt.Fprintf(e.stderr, "%s: %s %s\n", cmd.CommandPath(), e.paint(e.stderr).Bad("error:"), text)
	if g.format != formatText {
		_ = e.write(g.format, failure(cmd, text, reason.Of(err)))
	}
	return code
}

// envelope is what programs read about a command that has no record of its own, or that failed.
type envelope struct {
	Cmd    string `json:"cmd"`
	Stdout string `json:"stdout,omitempty"`
	Err    string `json:"err,omitempty"`
	Reason string `json:"reason,omitempty"`
}

// failure is the record of an error. Whoever asks with --format, as newer generations do, gets it
// without the envelope.
func failure(cmd *cobra.Command, text, why string) any {
	if f := cmd.Flags().Lookup("output"); f == nil || !f.Changed {
		if f := cmd.Flags().Lookup("format"); f != nil && f.Changed {
			return struct {
				Error  string `json:"error"`
				Reason string `json:"reason,omitempty"`
			}{text, why}
		}
	}
	return envelope{Cmd: commandName(cmd), Err: text, Reason: why}
}

// commandName is the command without the program's name.
func commandName(cmd *cobra.Command) string {
	_, name, _ := strings.Cut(cmd.CommandPath(), " ")
	return name
}

// canceled tells whether err is the end of a context, on either side of the socket.
func canceled(err error) bool {
	return errors.Is(err, context.Canceled) || status.Code(err) == codes.Canceled
}

// sentence is the error without what gRPC wraps around it.
func sentence(err error) string {
	text := err.Error()
	var remote interface{ GRPCStatus() *status.Status }
	if !errors.As(err, &remote) {
		return text
	}
	s := remote.GRPCStatus()
	if s.Code() == codes.Unavailable && reason.Of(err) == "" {
		return "the daemon went away while it was asked — try again; its log is daemon.log in ~/.cache/sidestep/logs"
	}
	inner, ok := remote.(error)
	if !ok {
		return text
	}
	return strings.TrimSpace(strings.Replace(text, inner.Error(), s.Message(), 1))
}

// The formats of --output.
const (
	formatText = "default"
	formatJSON = "json"
	formatYAML = "yaml"
	// formatStream is JSON with each record on a line of its own. A command that follows something
	// writes a record whenever that changes.
	formatStream = "json-stream"
)

// write writes a record to standard output.
func (e *env) write(format string, record any) error {
	if format == formatYAML {
		text, err := yaml.Marshal(record)
		if err != nil {
			return err
		}
		_, err = e.stdout.Write(text)
		return err
	}
	encoder := json.NewEncoder(e.stdout)
	encoder.SetEscapeHTML(false)
	if format != formatStream {
		encoder.SetIndent("", "  ")
	}
	return encoder.Encode(record)
}
