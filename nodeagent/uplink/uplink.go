// SPDX-License-Identifier: Apache-2.0

// Package uplink is the node agent's connection to the manager: one gRPC connection, which is
// dialled again after short pauses, with the Attach stream for assignments and reports, and a
// stream for each tunnel.
package uplink

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"
	"time"

	"google.golang.org/grpc"
	grpcbackoff "google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/connectivity"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Pauses between attempts to reach the manager. They are short because people wait for it.
const (
	retryFirst    = 100 * time.Millisecond
	retryMax      = time.Second
	maxAssignment = 64 << 20 // bytes; a thousand intercepts on one node need far less
	dialTimeout   = 3 * time.Second
)

// If only counters have changed, reports are sent every reportEvery, and less often if making one
// takes more than countShare of that time.
//
// Any other change is reported at once, because a person waits for it. The pause before it is
// reportShare times what the last report took, within bounds. So a node with few pods reports each
// change, and one with a thousand rules many changes together.
const (
	reportEvery = time.Second
	reportMost  = 5 * time.Second
	countShare  = 200
	pauseLeast  = 5 * time.Millisecond
	pauseMost   = 100 * time.Millisecond
	reportShare = 20
)

// Pods is what the assignments are for.
type Pods interface {
	Apply(*agentpb.Assignment)
	Report() *agentpb.Report
	Changed() <-chan struct{}
	// Probe is called when the manager is back, because tunnels that worked before may not work
	// now.
	Probe()
}

// Config says where the manager is, and who calls.
type Config struct {
	Manager string // host:port
	// Security is the dial options with the credentials of the transport and the calls.
	Security []grpc.DialOption
	// Hello returns the hello, with what is true at the time of each call.
	Hello func() *agentpb.Hello
	// Environment answers the manager's requests. If it is nil, they are not answered.
	Environment Environment
	// ToPod serves connections of laptops to pods, and returns at once. If it is nil, there are
	// none.
	ToPod ToPod
	Log   *slog.Logger
}

// ErrSuperseded means that a younger agent of this node is attached to the manager.
var ErrSuperseded = errors.New("the manager has a newer node agent of this node")

// Uplink is a connection to the manager. It is also proxy.Tunnels.
type Uplink struct {
	cfg      Config
	conn     *grpc.ClientConn
	client   agentpb.AgentsClient
	attached atomic.Bool
}

// New returns an Uplink. Run dials.
func New(cfg Config) (*Uplink, error) {
	options := append(tunnel.DialOptions(), cfg.Security...)
	options = append(options, grpc.WithConnectParams(grpc.ConnectParams{
		Backoff: grpcbackoff.Config{BaseDelay: retryFirst, Multiplier: 1.6, Jitter: 0.2,
			MaxDelay: retryMax},
		MinConnectTimeout: dialTimeout,
	}), grpc.WithIdleTimeout(0))
	conn, err := grpc.NewClient(cfg.Manager, options...)
	if err != nil {
		return nil, fmt.Errorf("prepare the connection to the manager at %s: %w", cfg.Manager, err)
	}
	return &Uplink{cfg: cfg, conn: conn, client: agentpb.NewAgentsClient(conn)}, nil
}

// Attached reports whether the manager has sent an assignment on the present connection.
func (u *Uplink) Attached() bool { return u.attached.Load() }

// Close closes the connection and all tunnels.
func (u *Uplink) Close() error { return u.conn.Close() }

// Run keeps pods as the manager wants them until ctx ends, and then returns nil, or until it
// returns ErrSuperseded. Tunnels stay open after that, until Close.
func (u *Uplink) Run(ctx context.Context, pods Pods) error {
	retry := newRetry()
	said := ""
	for ctx.Err() == nil {
		err := u.attach(ctx, pods)
		if u.attached.Swap(false) {
			retry.Reset()
			said = ""
		}
		if ctx.Err() != nil {
			return nil
		}
		if superseded(err) {
			return ErrSuperseded
		}
		if err.Error() != said { // it may be away for a long time
			said = err.Error()
			u.cfg.Log.Warn("manager is away, carrying on with the last assignment", "manager",
				u.cfg.Manager, "error", err)
		}
		backoff.Sleep(ctx, retry.Next(), nil)
	}
	return nil
}

func newRetry() *backoff.Backoff { return &backoff.Backoff{First: retryFirst, Most: retryMax} }

func superseded(err error) bool { return status.Code(err) == codes.AlreadyExists }

// Vacant reports whether the manager would accept this agent, and does not have a younger one.
// Without an answer it returns false.
func (u *Uplink) Vacant(ctx context.Context) bool {
	ctx, cancel := context.WithTimeout(ctx, dialTimeout)
	defer cancel()
	stream, err := u.client.Attach(ctx, grpc.MaxCallRecvMsgSize(maxAssignment))
	if err == nil {
		err = stream.Send(u.hello())
	}
	if err == nil {
		_, err = stream.Recv()
	}
	return err == nil
}

func (u *Uplink) hello() *agentpb.AgentMessage {
	return &agentpb.AgentMessage{Message: &agentpb.AgentMessage_Hello{Hello: u.cfg.Hello()}}
}

// attach runs one Attach stream until it ends.
func (u *Uplink) attach(ctx context.Context, pods Pods) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := u.client.Attach(ctx, grpc.WaitForReady(true), grpc.MaxCallRecvMsgSize(maxAssignment))
	if err != nil {
		return err
	}
	if err := stream.Send(u.hello()); err != nil {
		return errors.Join(err, ending(stream))
	}
	newest := make(chan *agentpb.Assignment, 1)
	received := make(chan struct{})
	go func() {
		defer close(received)
		for {
			a, err := stream.Recv()
			if err != nil {
				cancel(err)
				return
			}
			select { // only the newest assignment counts
			case <-newest:
			default:
			}
			newest <- a
		}
	}()
	err = u.converse(ctx, stream, newest, pods)
	cancel(err)
	<-received
	return err
}

// ending returns why a stream has ended, which Send does not tell.
func ending(stream grpc.BidiStreamingClient[agentpb.AgentMessage, agentpb.Assignment]) error {
	_, err := stream.Recv()
	return err
}

func (u *Uplink) converse(ctx context.Context, stream agentpb.Agents_AttachClient,
	newest <-chan *agentpb.Assignment, pods Pods) error {
	var sent *agentpb.Report
	due := time.NewTimer(0)
	due.Stop()
	every := time.NewTicker(reportEvery)
	defer every.Stop()
	var pace pace
	var answering sync.WaitGroup
	defer answering.Wait()
	ctx, stop := context.WithCancelCause(ctx)
	defer stop(nil)
	parking := u.cfg.ToPod == nil // or there is nothing to park
	for {
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case a := <-newest:
			pods.Apply(a)
			if !parking && leadsToPods(a) {
				parking = true
				for range parkedToPod {
					answering.Go(func() { u.waitForLaptops(ctx) })
				}
			}
			if !u.attached.Swap(true) {
				u.cfg.Log.Info("attached to the manager", "manager", u.cfg.Manager, "revision", a.GetRevision())
				pods.Probe()
				if u.cfg.Environment != nil {
					answering.Go(func() { u.answerEnvironments(ctx) })
				}
			}
			continue
		case <-pods.Changed():
			due.Reset(pace.pause())
			continue
		case <-due.C:
		case <-every.C:
			if pace.dear() {
				continue
			}
		}
		if !u.attached.Load() {
			continue // there is no assignment yet to report on
		}
		began := time.Now()
		report := pods.Report()
		if proto.Equal(report, sent) {
			pace.made(began)
			continue
		}
		if err := stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Report{Report: report}}); err != nil {
			<-ctx.Done() // the receiver returns the reason
			return context.Cause(ctx)
		}
		sent = report
		pace.made(began)
	}
}

// pace decides how soon one report follows another.
type pace struct {
	last time.Time     // when the last report was sent
	took time.Duration // how long it took to make and send
}

func (p *pace) made(began time.Time) {
	p.last = time.Now()
	p.took = p.last.Sub(began)
}

// pause returns how long a change waits before it is reported.
func (p *pace) pause() time.Duration {
	return max(0, min(max(pauseLeast, reportShare*p.took), pauseMost)-time.Since(p.last))
}

// dear reports whether it is too early for a report in which only counters may have changed.
func (p *pace) dear() bool { return time.Since(p.last) < min(countShare*p.took, reportMost) }

// Open opens a tunnel. It fails at once if the manager is away.
func (u *Uplink) Open(ctx context.Context, open *tunnelpb.Open) (*tunnel.Conn, error) {
	if state := u.conn.GetState(); state != connectivity.Ready {
		return nil, fmt.Errorf("the manager is away (connection is %s)", state)
	}
	// The tunnel outlives the call that opens it.
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	abandon := context.AfterFunc(ctx, cancel)
	defer abandon()
	stream, err := u.client.Tunnel(streamCtx)
	if err == nil {
		var c *tunnel.Conn
		if c, err = tunnel.Open(stream, open, tunnel.OnClose(cancel)); err == nil && abandon() {
			return c, nil
		} else if err == nil {
			c.Reset("abandoned while opening")
			err = context.Cause(ctx)
		}
	}
	cancel()
	return nil, fmt.Errorf("open a tunnel: %w", err)
}
