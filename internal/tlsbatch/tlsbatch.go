// SPDX-License-Identifier: Apache-2.0

// Package tlsbatch is TLS that sends what is written at once as one piece. crypto/tls cuts it into
// records of 16 KiB and writes each by itself; each would pass through the kernel, and wake whoever
// reads, by itself.
package tlsbatch

import (
	"context"
	"crypto/tls"
	"net"
	"sync"
	"sync/atomic"

	"google.golang.org/grpc/credentials"
)

// oneRecord is how many bytes TLS sends as one piece anyway.
const oneRecord = 16 << 10

// largest is how large a buffer may grow to be kept for the next batch.
const largest = 256 << 10

// Client makes a TLS connection over raw, having shaken hands. It closes raw if that fails.
func Client(ctx context.Context, raw net.Conn, config *tls.Config) (net.Conn, error) {
	b := &batch{Conn: raw}
	sealed := tls.Client(b, config)
	if err := sealed.HandshakeContext(ctx); err != nil {
		_ = raw.Close()
		return nil, err
	}
	return &conn{sealed, b}, nil
}

// Credentials are those of credentials.NewTLS.
func Credentials(config *tls.Config) credentials.TransportCredentials {
	return batching{credentials.NewTLS(config)}
}

type batching struct {
	credentials.TransportCredentials
}

func (c batching) ClientHandshake(ctx context.Context, authority string, raw net.Conn) (net.Conn,
	credentials.AuthInfo, error) {
	b := &batch{Conn: raw}
	sealed, info, err := c.TransportCredentials.ClientHandshake(ctx, authority, b)
	if err != nil {
		return nil, nil, err
	}
	return &conn{sealed, b}, info, nil
}

func (c batching) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	b := &batch{Conn: raw}
	sealed, info, err := c.TransportCredentials.ServerHandshake(b)
	if err != nil {
		return nil, nil, err
	}
	return &conn{sealed, b}, info, nil
}

func (c batching) Clone() credentials.TransportCredentials {
	return batching{c.TransportCredentials.Clone()}
}

// conn is a TLS connection over a batch.
type conn struct {
	net.Conn
	batch *batch
}

// Write may be called by one goroutine at a time, as is gRPC's way and that of net/http.
func (c *conn) Write(p []byte) (int, error) {
	if len(p) <= oneRecord {
		return c.Conn.Write(p)
	}
	c.batch.hold()
	n, err := c.Conn.Write(p)
	if flushErr := c.batch.flush(); err == nil && flushErr != nil {
		return 0, flushErr
	}
	return n, err
}

// Close does not wait for a Write that is held up, as that of crypto/tls would not.
func (c *conn) Close() error {
	if c.batch.flushing.Load() {
		err := c.batch.Conn.Close()
		_ = c.Conn.Close()
		return err
	}
	return c.Conn.Close()
}

// batch is a connection that can be told to keep what is written until there is all of it. TLS
// writes to it one at a time, but may do so for a reason of its own between hold and flush: order
// is kept.
type batch struct {
	net.Conn

	mu      sync.Mutex
	holding bool
	kept    *[]byte // nil: nothing is kept

	flushing atomic.Bool
}

var buffers = sync.Pool{New: func() any { return new([]byte) }}

func (b *batch) hold() {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = true
}

// flush sends what was kept.
func (b *batch) flush() error {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.holding = false
	if b.kept == nil {
		return nil
	}
	kept := b.kept
	b.kept = nil
	b.flushing.Store(true)
	_, err := b.Conn.Write(*kept)
	b.flushing.Store(false)
	if cap(*kept) <= largest {
		*kept = (*kept)[:0]
		buffers.Put(kept)
	}
	return err
}

func (b *batch) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.holding {
		return b.Conn.Write(p)
	}
	if b.kept == nil {
		b.kept = buffers.Get().(*[]byte)
	}
	*b.kept = append(*b.kept, p...)
	return len(p), nil
}
