// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"net"
	"sync"
	"time"

	"google.golang.org/grpc/credentials"
)

// Tracker knows when open connections were made. It is safe for concurrent use.
type Tracker struct {
	now func() time.Time

	mu    sync.Mutex
	conns map[*tracked]time.Time
}

// NewTracker returns a Tracker of no connections.
func NewTracker(now func() time.Time) *Tracker {
	return &Tracker{now: now, conns: map[*tracked]time.Time{}}
}

// Since reports whether every open connection was made at that time or later.
func (t *Tracker) Since(when time.Time) bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, made := range t.conns {
		if made.Before(when) {
			return false
		}
	}
	return true
}

// Credentials wraps a server's credentials, so that their connections are tracked.
func (t *Tracker) Credentials(c credentials.TransportCredentials) credentials.TransportCredentials {
	return trackedCredentials{c, t}
}

type trackedCredentials struct {
	credentials.TransportCredentials
	tracker *Tracker
}

func (c trackedCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	began := c.tracker.now() // the certificate is chosen after this
	conn, info, err := c.TransportCredentials.ServerHandshake(raw)
	if err != nil {
		return nil, nil, err
	}
	tc := &tracked{Conn: conn, tracker: c.tracker}
	c.tracker.mu.Lock()
	c.tracker.conns[tc] = began
	c.tracker.mu.Unlock()
	return tc, info, nil
}

func (c trackedCredentials) Clone() credentials.TransportCredentials {
	return trackedCredentials{c.TransportCredentials.Clone(), c.tracker}
}

type tracked struct {
	net.Conn
	tracker *Tracker
}

// forget is called for a connection that is closed or broken. grpc-go closes some broken
// connections below TLS, without calling Close here.
func (c *tracked) forget() {
	c.tracker.mu.Lock()
	defer c.tracker.mu.Unlock()
	delete(c.tracker.conns, c)
}

func (c *tracked) Read(b []byte) (int, error) {
	n, err := c.Conn.Read(b)
	if err != nil {
		c.forget()
	}
	return n, err
}

func (c *tracked) Write(b []byte) (int, error) {
	n, err := c.Conn.Write(b)
	if err != nil {
		c.forget()
	}
	return n, err
}

func (c *tracked) Close() error {
	c.forget()
	return c.Conn.Close()
}
