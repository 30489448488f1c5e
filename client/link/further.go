// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/connectivity"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/backoff"
)

// Further is how many connections a link has besides the first. On a long path the window of one
// TCP connection bounds the throughput of everything on it, and a lost packet delays everything on
// it.
const Further = 3

// Line is a further connection to the manager, which recognizes the session by its key.
type Line struct {
	Context context.Context // ends with it
	Clients clientpb.ClientsClient
}

// steady is how long a connection must have lasted for the next one to get further connections at
// once. Something on the path may limit the connections of a client, and close the first one for
// the last.
const steady = time.Minute

// A connection on which nothing has arrived for silentTicks is dead: the manager's keepalive pings
// at least every five seconds. Ticks are counted instead of time, because there are none while the
// laptop sleeps.
const (
	tick        = time.Second
	silentTicks = 8
)

// widen keeps further connections until ctx ends. If some cannot be had, the others carry
// everything.
func (l *Link) widen(ctx context.Context, way *Way, lines chan<- Line) {
	if way == nil || way.Again == nil {
		return
	}
	if l.wary && backoff.Sleep(ctx, steady, nil) {
		return
	}
	var all sync.WaitGroup
	defer all.Wait()
	var said sync.Once
	for range Further {
		all.Go(func() { l.keepLine(ctx, way, lines, &said) })
	}
}

// keepLine connects again and again, with growing pauses. After each failure it reads the manager's
// authority again, which may have been replaced since the first connection.
func (l *Link) keepLine(ctx context.Context, way *Way, lines chan<- Line, said *sync.Once) {
	trust := way.TLS
	for pace := (backoff.Backoff{First: l.Timing.Again, Most: l.Timing.Rare}); ; {
		began := time.Now()
		err := l.line(ctx, way, trust, lines)
		if ctx.Err() != nil {
			return
		}
		level := slog.LevelDebug
		said.Do(func() { level = slog.LevelInfo })
		l.Log.Log(ctx, level, "a further connection to the traffic manager cannot be had, or has ended; the others do its work", "error", err)
		if time.Since(began) > steady {
			pace.Reset()
		}
		if backoff.Sleep(ctx, pace.Next(), nil) {
			return
		}
		if way.Trust == nil {
			continue
		}
		if now, err := way.Trust(ctx); err == nil { // else whom it trusted before
			trust = now
		}
	}
}

// line makes one further connection and keeps it until it ends, which is always with an error.
func (l *Link) line(ctx context.Context, way *Way, trust *tls.Config, lines chan<- Line) error {
	dialing, cancel := context.WithTimeoutCause(ctx, l.Timing.Connect, errors.New("no answer in time"))
	defer cancel()
	raw, err := way.Again(dialing)
	if err != nil {
		return err
	}
	flow := &metered{Conn: raw}
	conn, err := l.client(flow, trust)
	if err != nil {
		_ = flow.Close()
		return err
	}
	defer func() {
		_ = conn.Close()
		_ = flow.Close()
	}()
	if err := greeted(dialing, conn); err != nil {
		return err
	}
	ctx, end := context.WithCancelCause(ctx)
	var watch sync.WaitGroup
	defer watch.Wait()
	defer end(nil)
	watch.Go(func() {
		conn.WaitForStateChange(ctx, connectivity.Ready)
		end(errEnded)
	})
	watch.Go(func() { end(flow.silent(ctx)) })
	select {
	case lines <- Line{ctx, clientpb.NewClientsClient(conn)}:
		<-ctx.Done()
	case <-ctx.Done():
	}
	return context.Cause(ctx)
}

// greeted waits until the other side has proved that it is the manager and speaks HTTP/2.
func greeted(ctx context.Context, conn *grpc.ClientConn) error {
	conn.Connect()
	for {
		switch state := conn.GetState(); state {
		case connectivity.Ready:
			return nil
		case connectivity.TransientFailure, connectivity.Shutdown:
			return errEnded
		default:
			if !conn.WaitForStateChange(ctx, state) {
				return fmt.Errorf("connect to the traffic manager: %w", context.Cause(ctx))
			}
		}
	}
}

var errEnded = errors.New("the connection has ended")

// silent waits until nothing arrives any more.
func (m *metered) silent(ctx context.Context) error {
	ticker := time.NewTicker(tick)
	defer ticker.Stop()
	for quiet := 0; quiet < silentTicks; {
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return ctx.Err()
		}
		if quiet++; m.taken() > 0 {
			quiet = 0
		}
	}
	return errSilent
}
