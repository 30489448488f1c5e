// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"io"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tunnel"
)

// State is the state of a link.
type State struct {
	Connected      bool
	Err            error // why it is not connected; nil before the first attempt has ended
	Attempts       int   // failed ones since it was last connected
	ManagerVersion string
	Grace          time.Duration // how long intercepts outlive the laptop's absence
	Since          time.Time     // by the wall clock: when it was connected
	// by the wall clock: when the manager was last heard before Since or, without a connection, at
	// all; zero: never
	Heard    time.Time
	Wiretaps bool // the manager supports them

	clients clientpb.ClientsClient // nil when not connected
}

// Nodes asks the manager about the node agents and their counters. It returns nil if there is no
// connection, or the manager is too old.
func (s State) Nodes(ctx context.Context) (*clientpb.NodesReply, error) {
	if s.clients == nil {
		return nil, nil
	}
	reply, err := s.clients.Nodes(ctx, &clientpb.NodesRequest{})
	if status.Code(err) == codes.Unimplemented {
		return nil, nil
	}
	if err != nil {
		return nil, explain(err)
	}
	return reply, nil
}

// maxEnvironment bounds the answer to Environment, in bytes.
const maxEnvironment = 8 << 20

// Environment asks the manager for the environment of the intercepted container.
func (s State) Environment(ctx context.Context,
	req *clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
	if s.clients == nil {
		return nil, reason.New(codes.Unavailable, reason.NoEnvironment, "not connected to the traffic manager")
	}
	reply, err := s.clients.Environment(ctx, req, grpc.MaxCallRecvMsgSize(maxEnvironment))
	switch {
	case err == nil:
		return reply, nil
	case status.Code(err) == codes.Unimplemented:
		return nil, reason.New(codes.FailedPrecondition, reason.NoEnvironment,
			"the traffic manager (%s) is older than this sidestep and does not provide environments",
			s.ManagerVersion).
			Advise("run `sidestep helm upgrade`")
	}
	return nil, reason.New(status.Code(err), reason.NoEnvironment, "%s", status.Convert(err).Message())
}

// ToPod opens a connection to a port of an intercepted pod.
func (s State) ToPod(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
	if s.clients == nil {
		return nil, errors.New("not connected to the traffic manager")
	}
	ctx, cancel := context.WithCancel(ctx)
	stream, err := s.clients.ToPod(ctx)
	if err != nil {
		cancel()
		return nil, explain(err)
	}
	conn, err := tunnel.Open(stream, open, tunnel.OnClose(cancel))
	if errors.Is(err, io.EOF) { // the manager has refused already, and RecvOpen returns the reason
		if _, refusal := tunnel.RecvOpen(stream); refusal != nil {
			err = explain(refusal)
		}
	}
	return conn, err
}
