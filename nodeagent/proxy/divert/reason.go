// SPDX-License-Identifier: Apache-2.0

package divert

import (
	"context"
	"errors"
	"io"
	"syscall"

	"sidestep.dev/sidestep/internal/tunnel"
)

// Reason is why the laptop did not answer a request that matches its intercept.
type Reason int

// Their numbers are those of agentpb.Unanswered.Reason.
const (
	Other        Reason = iota
	Unreachable         // there is no tunnel to the laptop
	LocalRefused        // nothing listens on the local port
	Silent              // the local process did not answer in time
	LocalTLS            // the local process speaks only TLS
	LocalNoHTTP2        // the local process does not speak HTTP/2
	LocalClosed         // the local process closed the connection without an answer
	HeadTooLarge        // the head is too large to be looked at
	Framing             // the request can be read in more than one way
	Busy                // the node agent holds too many bytes
	AppNotHTTP          // what the app says on the connection cannot be read as HTTP
	Reasons
)

// Error is an error with its Reason.
type Error struct {
	Reason Reason
	Err    error
}

// Error implements error.
func (e *Error) Error() string { return e.Err.Error() }

// Unwrap returns the error without its reason.
func (e *Error) Unwrap() error { return e.Err }

// New makes an error with a reason.
func New(r Reason, text string) error { return &Error{r, errors.New(text)} }

// ReasonOf returns the reason of an error.
func ReasonOf(err error) Reason {
	if e, ok := errors.AsType[*Error](err); ok {
		return e.Reason
	}
	return Other
}

// Ended returns why a tunnel ended before the laptop answered; err is nil or io.EOF if it ended in
// order.
func Ended(err error) error {
	var reset *tunnel.ResetError
	known, ok := errors.AsType[*Error](err)
	switch {
	case ok:
		return known
	case errors.As(err, &reset) && reset.Gone:
		return &Error{Unreachable, errors.New("the connection to the laptop broke before the laptop answered")}
	case err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, syscall.ECONNRESET):
		return err // of its protocol
	}
	return New(LocalClosed, "the local process closed the connection before it answered")
}

// NoAnswer returns why OPEN was not answered with success: err, with its reason. ctx bounds the wait.
func NoAnswer(ctx context.Context, err error) error {
	known, ok := errors.AsType[*Error](err)
	switch {
	case err == nil:
		return nil
	case ok:
		return known
	case errors.Is(ctx.Err(), context.DeadlineExceeded):
		return New(Silent, "the laptop did not answer in time")
	}
	return Opening(err)
}

// Opening makes err the error of a tunnel that could not be opened.
func Opening(err error) error { return &Error{Unreachable, err} }
