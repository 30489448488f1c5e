// SPDX-License-Identifier: Apache-2.0

// Package uplink is the node agent's connection to the manager: one gRPC connection, kept up with
// short pauses, with the Attach stream for assignments and reports, and a stream for each tunnel.
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

// Pauses between tries to reach the manager: people wait for it to be back.
const (
	retryFirst    = 100 * time.Millisecond
	retryMax      = time.Second
	maxAssignment = 64 << 20 // bytes; a thousand intercepts on one node are far below
	dialTimeout   = 3 * time.Second
)

// Reports are sent every reportEvery if only counters have changed, and less often where making one
// takes more than countShare of that. Others follow at once, for a person waits for each change that
// they tell of, but after a pause of reportShare times what the last one took, within bounds: a node
// with few pods tells of each, and one with a thousand rules of many at a time.
const (
	reportEvery = time.Second
	reportMost  = 5 * time.Second
	countShare  = 200
	pauseLeast  = 5 * time.Millisecond
	pauseMost   = 100 * time.Millisecond
	reportShare = 20
)

// Pods is what the assignments are about.
type Pods interface {
	Apply(*agentpb.Assignment)
	Report() *agentpb.Report
	Changed() <-chan struct{}
	// Probe is called when the manager is back, since tunnels that worked before may not.
	Probe()
}

// Config says which manager this is, and who calls.
type Config struct {
	Manager string // host:port
	// Security are dial options with the transport's and the calls' credentials.
	Security []grpc.DialOption
	// Hello says who calls, at the time of each call.
	Hello func() *agentpb.Hello
	// Environment answers the manager's requests; nil: they are not answered.
	Environment Environment
	// ToPod serves connections of laptops to pods, and returns at once; nil: there are none.
	ToPod ToPod
	Log   *slog.Logger
}

// ErrSuperseded says that a younger agent of this node is attached to the manager.
var ErrSuperseded = errors.New("the manager has a newer node agent of this node")

// Uplink is a connection to the manager. It is also proxy.Tunnels.
type Uplink struct {
	cfg      Config
	conn     *grpc.ClientConn
	client   agentpb.AgentsClient
	attached atomic.Bool
}

// New makes an Uplink. Nothing is dialled before Run.
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

// Attached says whether the manager has sent an assignment on the present connection.
func (u *Uplink) Attached() bool { return u.attached.Load() }

// Close closes the connection and all tunnels.
func (u *Uplink) Close() error { return u.conn.Close() }

// Run keeps pods as the manager wants them until ctx ends, or gives ErrSuperseded. Tunnels go on
// after that, until Close.
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

// Vacant says whether the manager would take this agent, rather than a younger one. No answer is
// none.
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

// attach is the life of one Attach stream.
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
			select { // only the newest counts
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

// ending is why a stream has ended, which Send does not tell.
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
	parking := u.cfg.ToPod == nil // or nothing to do with it
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
			continue // there is no assignment yet to report about
		}
		began := time.Now()
		report := pods.Report()
		if proto.Equal(report, sent) {
			pace.made(began)
			continue
		}
		if err := stream.Send(&agentpb.AgentMessage{Message: &agentpb.AgentMessage_Report{Report: report}}); err != nil {
			<-ctx.Done() // the reason comes from the receiver
			return context.Cause(ctx)
		}
		sent = report
		pace.made(began)
	}
}

// pace is how quickly reports follow one another.
type pace struct {
	last time.Time     // the end of the last one
	took time.Duration // what it took to make and send it
}

func (p *pace) made(began time.Time) {
	p.last = time.Now()
	p.took = p.last.Sub(began)
}

// pause returns how long a change is to wait.
func (p *pace) pause() time.Duration {
	return max(0, min(max(pauseLeast, reportShare*p.took), pauseMost)-time.Since(p.last))
}

// dear reports whether it is too early for a report of which only counters may have changed.
func (p *pace) dear() bool { return time.Since(p.last) < min(countShare*p.took, reportMost) }

// Open opens a tunnel. It fails at once when the manager is away.
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
