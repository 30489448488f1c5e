// SPDX-License-Identifier: Apache-2.0

// Package agents is the gRPC service for node agents: it authenticates them, sends each its node's
// assignment, receives their reports and passes their tunnels to the relay.
package agents

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/manager/carry/environments"
	"sidestep.dev/sidestep/manager/carry/parking"
	"sidestep.dev/sidestep/manager/decide/plan"
)

// pause is the shortest time between two assignments to one agent. Changes meanwhile go into one
// message.
const pause = 5 * time.Millisecond

// Relay carries tunnels to laptops.
type Relay interface {
	Serve(node string, agent tunnel.Stream) error
}

// Environments asks node agents for environments.
type Environments interface {
	Serve(node string, agent environments.Stream) error
}

// Config is what the service needs.
type Config struct {
	Authenticator *Authenticator
	Plan          *plan.Plan
	Relay         Relay
	Environments  Environments
	Lot           *parking.Lot // of the streams on which laptops' connections reach pods, by node
	Log           *slog.Logger
	Closing       <-chan struct{} // closed when the manager shuts down
}

// Service is the gRPC service.
type Service struct {
	agentpb.UnimplementedAgentsServer
	cfg Config
}

// NewService returns the service.
func NewService(cfg Config) *Service { return &Service{cfg: cfg} }

var (
	errClosing = status.Error(codes.Unavailable, "the manager is shutting down")
	errYounger = status.Error(codes.AlreadyExists, "a newer node agent of this node is attached")
)

type attachStream = grpc.BidiStreamingServer[agentpb.AgentMessage, agentpb.Assignment]

// Attach serves one node agent for as long as it is connected.
func (s *Service) Attach(stream attachStream) error {
	node, err := s.cfg.Authenticator.Node(stream.Context())
	if err != nil {
		s.cfg.Log.Warn("node agent refused", "reason", err)
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	hello := first.GetHello()
	switch {
	case hello == nil:
		return status.Error(codes.InvalidArgument, "the first message of a node agent is hello")
	case hello.Node != node:
		s.cfg.Log.Warn("node agent refused", "node", hello.Node, "token", node)
		return status.Errorf(codes.PermissionDenied,
			"the node agent says that it is on node %s, and its token is bound to %s", hello.Node, node)
	case hello.Protocol != version.Protocol:
		why := fmt.Sprintf("the traffic manager (%s) speaks protocol %d and the node agent (%s) protocol %d: install the same version of both",
			version.Version, version.Protocol, hello.Version, hello.Protocol)
		if s.cfg.Plan.Refuse(node, why) { // it tries again every second
			s.cfg.Log.Warn("node agent refused", "node", node, "reason", why)
		}
		return status.Error(codes.FailedPrecondition, why)
	}
	select {
	case <-s.cfg.Closing:
		return errClosing
	default:
	}
	// Until everything has been resolved, the assignment would lack pods, and the node agent would
	// drain them.
	select {
	case <-s.cfg.Plan.Opened():
	case <-stream.Context().Done():
		return stream.Context().Err()
	case <-s.cfg.Closing:
		return errClosing
	}
	log := s.cfg.Log.With("node", node)
	share := s.cfg.Plan.Attach(node,
		plan.Birth{Boot: hello.Boot, Epoch: hello.Epoch, Wiretaps: hello.Wiretaps, UDP: hello.Udp})
	if share == nil {
		log.Debug("node agent refused", "reason", errYounger, "version", hello.Version)
		return errYounger
	}
	log.Info("node agent connected", "version", hello.Version, "kernel", hello.Kernel)
	defer s.cfg.Plan.Detach(share)
	share.Introduce(hello.Version, hello.Kernel)
	received := make(chan error, 1)
	go func() { received <- takeReports(stream, share) }()
	err = s.send(stream, share, received)
	log.Info("node agent disconnected", "reason", err)
	return err
}

func takeReports(stream attachStream, share *plan.Stream) error {
	for {
		m, err := stream.Recv()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err != nil {
			return err
		}
		if r := m.GetReport(); r != nil {
			share.Report(r)
		}
	}
}

// send sends assignments. One that is not received in time is replaced: only the newest one is
// sent.
func (s *Service) send(stream attachStream, share *plan.Stream, received <-chan error) error {
	wake := share.Wake()
	var rested <-chan time.Time
	for {
		select {
		case <-wake:
			if err := stream.Send(share.Next()); err != nil {
				return err
			}
			wake, rested = nil, time.After(pause)
		case <-rested:
			wake, rested = share.Wake(), nil
		case err := <-received:
			return err
		case <-share.Replaced():
			if share.Superseded() {
				return errYounger
			}
			return status.Error(codes.Aborted, "another node agent of this node has connected")
		case <-s.cfg.Closing:
			return errClosing
		}
	}
}

// Environments carries requests for environments, and the node agent's answers.
func (s *Service) Environments(stream environments.Stream) error {
	node, err := s.cfg.Authenticator.Node(stream.Context())
	if err != nil {
		return err
	}
	return s.cfg.Environments.Serve(node, stream)
}

// AcceptToPod parks a stream for a laptop's connection to a port of a pod.
func (s *Service) AcceptToPod(stream grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	node, err := s.cfg.Authenticator.Node(stream.Context())
	if err != nil {
		return err
	}
	parked, err := s.cfg.Lot.Park(node, stream)
	if err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return parked.Wait(s.cfg.Closing)
}

// Tunnel carries one connection.
func (s *Service) Tunnel(stream grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	node, err := s.cfg.Authenticator.Node(stream.Context())
	if err != nil {
		return err
	}
	return s.cfg.Relay.Serve(node, stream)
}
