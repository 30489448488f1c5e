// SPDX-License-Identifier: Apache-2.0

package laptops

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io"
	"log/slog"
	"time"

	"github.com/google/uuid"
	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/manager/carry/gate"
	"sidestep.dev/sidestep/manager/carry/parking"
)

const keySize = 32

// Config is what the service needs.
type Config struct {
	Registry *Registry
	Log      *slog.Logger
	Grace    time.Duration   // which the laptop is told
	Closing  <-chan struct{} // closed when the manager shuts down
	Nodes    func() []*clientpb.NodeAgent
	// Proofs decide which sessions are admitted; nil: all are.
	Proofs *Proofs
	// Traffic returns what was counted for the intercepts of the session with this key hash.
	Traffic func(keyHash string) []*clientpb.InterceptTraffic
	// Environment answers a request of the session with this key hash.
	Environment func(ctx context.Context, keyHash string,
		req *clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error)
	// ToPod carries a connection to a port of a pod for the session with this key hash.
	ToPod   func(keyHash string, stream tunnel.Stream) error
	Ping    time.Duration // between pings; 0: 2 s
	Timeout time.Duration // of silence, after which the laptop is given up; 0: 8 s
	// of sessions, those of other services over the same registry included; 0: MaxSessions
	Limit int
}

// Service is the gRPC service that laptops talk to.
type Service struct {
	clientpb.UnimplementedClientsServer
	cfg Config
}

// NewService returns the service.
func NewService(cfg Config) *Service {
	if cfg.Ping == 0 {
		cfg.Ping = 2 * time.Second
	}
	if cfg.Timeout == 0 {
		cfg.Timeout = 8 * time.Second
	}
	if cfg.Limit == 0 {
		cfg.Limit = MaxSessions
	}
	return &Service{cfg: cfg}
}

// keyHash returns the hash of the session key that the call shows.
func keyHash(ctx context.Context) (string, error) {
	md, _ := metadata.FromIncomingContext(ctx)
	values := md.Get(names.SessionKeyMetadata)
	if len(values) != 1 {
		return "", status.Errorf(codes.Unauthenticated,
			"the call shows %d session keys in metadata %s, and needs one", len(values), names.SessionKeyMetadata)
	}
	key, err := hex.DecodeString(values[0])
	if err != nil || len(key) != keySize {
		return "", status.Errorf(codes.Unauthenticated,
			"the session key is not %d bytes in hexadecimal", keySize)
	}
	sum := sha256.Sum256(key)
	return hex.EncodeToString(sum[:]), nil
}

type sessionStream = grpc.BidiStreamingServer[clientpb.ClientMessage, clientpb.ManagerMessage]

// Session keeps the laptop's session as long as the laptop answers.
func (s *Service) Session(stream sessionStream) error {
	hash, err := keyHash(stream.Context())
	if err != nil {
		return err
	}
	received := make(chan *clientpb.ClientMessage)
	ended := make(chan error, 1)
	go func() {
		for {
			m, err := stream.Recv()
			if err != nil {
				ended <- err
				return
			}
			select {
			case received <- m:
			case <-stream.Context().Done():
				ended <- stream.Context().Err()
				return
			}
		}
	}()
	hello, err := s.hello(received, ended)
	if err != nil {
		return err
	}
	log := s.cfg.Log.With("session", hello.Session, "holder", hello.Holder)
	var proven *proof
	if s.cfg.Proofs != nil {
		if proven, err = s.cfg.Proofs.admit(stream.Context(), hash, log); err != nil {
			return err
		}
		defer proven.end()
	}
	conn := gate.From(stream.Context())
	if !conn.Greet(hash) {
		return errOneSession
	}
	sess, err := s.cfg.Registry.begin(hash, s.cfg.Limit)
	if err != nil {
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	defer s.cfg.Registry.end(sess)
	if done, ok := s.cfg.Registry.use(hash, conn); ok {
		defer done()
	}
	log.Info("laptop connected", "version", hello.Version)
	err = stream.Send(&clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_Hello{Hello: &clientpb.ManagerHello{
		Version: version.Version, Protocol: version.Protocol,
		GraceSeconds: uint32(s.cfg.Grace / time.Second), Wiretaps: true,
	}}})
	if err == nil {
		err = s.serve(stream, sess, proven, received, ended)
	}
	log.Info("laptop disconnected", "reason", err)
	return err
}

func (s *Service) hello(received <-chan *clientpb.ClientMessage,
	ended <-chan error) (*clientpb.ClientHello, error) {
	timeout := time.NewTimer(s.cfg.Timeout)
	defer timeout.Stop()
	select {
	case m := <-received:
		hello := m.GetHello()
		switch {
		case hello == nil:
			return nil, status.Error(codes.InvalidArgument, "the first message of a session is hello")
		case hello.Protocol != version.Protocol:
			s.cfg.Log.Warn("laptop refused", "holder", hello.Holder, "version", hello.Version,
				"protocol", hello.Protocol)
			return nil, skew(hello)
		case uuid.Validate(hello.Session) != nil:
			return nil, status.Errorf(codes.InvalidArgument, "session %q is not a UUID", hello.Session)
		}
		return hello, nil
	case err := <-ended:
		return nil, err
	case <-timeout.C:
		return nil, status.Error(codes.DeadlineExceeded, "no hello came")
	case <-s.cfg.Closing:
		return nil, errClosing
	}
}

// skew returns the error about protocols with a reason that clients know.
func skew(hello *clientpb.ClientHello) error {
	s := status.Newf(codes.FailedPrecondition,
		"the traffic manager (%s) speaks protocol %d and the client (%s) protocol %d: install the same version of both",
		version.Version, version.Protocol, hello.Version, hello.Protocol)
	if detailed, err := s.WithDetails(&errdetails.ErrorInfo{Reason: reason.VersionSkew,
		Domain: reason.Domain}); err == nil {
		s = detailed
	}
	return s.Err()
}

var errClosing = status.Error(codes.Unavailable, "the manager is shutting down")

// serve pings and answers until the session ends, and returns why it did.
func (s *Service) serve(stream sessionStream, sess *session, proven *proof,
	received <-chan *clientpb.ClientMessage, ended <-chan error) error {
	ping := time.NewTicker(s.cfg.Ping)
	defer ping.Stop()
	silence := time.NewTimer(s.cfg.Timeout)
	defer silence.Stop()
	var look <-chan time.Time
	if proven != nil {
		ticker := time.NewTicker(proven.all.check)
		defer ticker.Stop()
		look = ticker.C
	}
	var id uint64
	for {
		var answer *clientpb.ManagerMessage
		select {
		case m := <-received:
			silence.Reset(s.cfg.Timeout)
			if p := m.GetPing(); p != nil {
				answer = &clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_Pong{Pong: p}}
			}
		case <-ping.C:
			id++
			answer = &clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_Ping{Ping: &clientpb.Ping{Id: id}}}
		case <-sess.want:
			if n := sess.wanted(); n > 0 {
				answer = &clientpb.ManagerMessage{Message: &clientpb.ManagerMessage_WantAccepts{WantAccepts: uint32(n)}}
			}
		case <-look:
			if err := proven.look(); err != nil {
				return err
			}
			if proven.proven {
				s.cfg.Registry.Prove(sess.keyHash)
			}
		case err := <-ended:
			if errors.Is(err, io.EOF) {
				return nil
			}
			return err
		case <-sess.gone:
			return status.Error(codes.Aborted, "the laptop has connected again, with a new session stream")
		case <-silence.C:
			if sess.heard.Swap(false) {
				silence.Reset(s.cfg.Timeout)
				continue
			}
			return status.Errorf(codes.DeadlineExceeded, "nothing was heard from the laptop for %s",
				s.cfg.Timeout)
		case <-s.cfg.Closing:
			return errClosing
		}
		if answer != nil {
			if err := stream.Send(answer); err != nil {
				return err
			}
		}
	}
}

// Nodes returns the node agents, and what they have counted for the session's intercepts.
func (s *Service) Nodes(ctx context.Context, _ *clientpb.NodesRequest) (*clientpb.NodesReply, error) {
	hash, err := keyHash(ctx)
	if err != nil {
		return nil, err
	}
	if !s.cfg.Registry.Connected(hash) {
		return nil, errNoSession
	}
	if !s.cfg.Registry.mayAskForNodes(hash, time.Now()) {
		return nil, status.Errorf(codes.ResourceExhausted,
			"a laptop that has proven nothing may ask for the node agents %d times at once, and then every %s",
			unprovenAnswers, unprovenPause)
	}
	return &clientpb.NodesReply{Agents: s.cfg.Nodes(), Traffic: s.cfg.Traffic(hash)}, nil
}

// Environment returns the environment of a container that the session intercepts.
func (s *Service) Environment(ctx context.Context,
	req *clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
	hash, err := keyHash(ctx)
	if err != nil {
		return nil, err
	}
	done, ok := s.cfg.Registry.use(hash, gate.From(ctx))
	if !ok {
		return nil, errNoSession
	}
	defer done()
	return s.cfg.Environment(ctx, hash, req)
}

// ToPod carries a connection to a port of a pod that the session intercepts.
func (s *Service) ToPod(stream grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	hash, err := keyHash(stream.Context())
	if err != nil {
		return err
	}
	done, ok := s.cfg.Registry.use(hash, gate.From(stream.Context()))
	if !ok {
		return errNoSession
	}
	defer done()
	return s.cfg.ToPod(hash, stream)
}

var errOneSession = status.Error(codes.ResourceExhausted,
	"a connection of a laptop that has proven nothing is of one session")

var errNoSession = status.Error(codes.FailedPrecondition,
	"there is no session with this key: open Session first")

// Accept parks a stream until a connection takes it, and returns when that connection has ended.
func (s *Service) Accept(stream grpc.BidiStreamingServer[tunnelpb.Frame, tunnelpb.Frame]) error {
	hash, err := keyHash(stream.Context())
	if err != nil {
		return err
	}
	done, ok := s.cfg.Registry.use(hash, gate.From(stream.Context()))
	if !ok {
		return errNoSession
	}
	defer done()
	parked, err := s.cfg.Registry.park(hash, stream)
	switch {
	case errors.Is(err, parking.ErrAbsent):
		return errNoSession
	case err != nil:
		return status.Error(codes.ResourceExhausted, err.Error())
	}
	return parked.Wait(s.cfg.Closing)
}
