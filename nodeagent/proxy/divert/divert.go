// SPDX-License-Identifier: Apache-2.0

// Package divert is what the HTTP/1 and the HTTP/2 proxy know of the intercepts to which they
// divert requests.
package divert

import (
	"context"
	"errors"
	"fmt"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// ErrDrained, as the cause why a context was cancelled, asks for connections to be ended in order,
// as far as that is possible soon. Any other cause has them reset.
var ErrDrained = errors.New("the time for connections to end by themselves is over")

// Intercept is the intercept that one request matches.
type Intercept interface {
	// Key is the same for all requests of one intercept. They may share a tunnel.
	Key() string
	// String names the intercept as its holder knows it.
	String() string
	// Open opens a tunnel to the laptop.
	Open(ctx context.Context) (Tunnel, error)
	// Track tells the intercept of an open tunnel, and returns what is to be called when the tunnel
	// is gone. When the intercept ends, it calls retire.
	Track(retire func()) (untrack func())
	// Sent is called when the request went to the laptop.
	Sent()
	// Answered is called when the laptop has begun to answer the request.
	Answered()
	// FellBack is called when the laptop could not take the request and the app gets it.
	FellBack(why error)
	// Lost is called when nobody can answer the request any more: the client gets an error.
	Lost(why error)
}

// Tunnel is a *tunnel.Conn.
type Tunnel interface {
	stream.Conn
	Opened(ctx context.Context) (*tunnelpb.Opened, error)
	Reset(reason string)
}

// NotOpened returns why a laptop did not open a tunnel; nil: it did.
func NotOpened(opened *tunnelpb.Opened) error {
	reason := Unreachable
	switch opened.GetResult() {
	case tunnelpb.Opened_OK:
		return nil
	case tunnelpb.Opened_REFUSED:
		reason = LocalRefused
	}
	return &Error{reason, fmt.Errorf("laptop answered %s: %s", opened.GetResult(), opened.GetMessage())}
}
