// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Conn is a connection that came through a gate. The methods that are not net.Conn's may be called on
// nil, which is a connection without a gate.
type Conn struct {
	net.Conn

	gate    *Gate
	account account
	host    string
	began   time.Time
	number  uint64
	timer   *time.Timer

	proven atomic.Bool
	timed  atomic.Bool   // there is a deadline for writes
	lifted chan struct{} // closed when it is proven
	closed chan struct{}
	close  sync.Once

	// under gate.mu
	greeted  bool
	session  string
	may      int64 // bytes, at the time filled
	filled   time.Time
	read     int64 // bytes since its calls were last ended
	last     uint64
	calls    int
	sessions int // calls of Session among them
	refused  int
	cancels  map[uint64]context.CancelFunc // of calls that are not sessions
}

// addr leads from a call back to its connection.
type addr struct {
	net.Addr
	conn *Conn
}

// RemoteAddr returns the address of the peer, by which From finds the connection.
func (c *Conn) RemoteAddr() net.Addr { return &addr{c.Conn.RemoteAddr(), c} }

// Host returns the peer's IP address; nothing without a gate.
func (c *Conn) Host() string {
	if c == nil {
		return ""
	}
	return c.host
}

// Greet notes that a session lives on the connection, and reports whether it may: a connection that
// is not proven is of one session.
func (c *Conn) Greet(session string) bool {
	if c == nil {
		return true
	}
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	if _, unproven := c.gate.conns[c]; !unproven {
		return true
	}
	if c.session != "" && c.session != session {
		c.gate.metrics.refused(boundSessions)
		return false
	}
	c.session = session
	c.gate.greet(c)
	return true
}

// Prove ends the limits of those that have proven nothing: the peer with this name has business here.
func (c *Conn) Prove(peer string) {
	if c == nil || c.proven.Load() {
		return
	}
	c.gate.known.add(c.host)
	if c.gate.limits.Socket > 0 {
		widen(c.Conn)
	}
	c.gate.mu.Lock()
	var victim *Conn
	if !c.proven.Load() {
		victim = c.gate.joins(c, peer)
	}
	c.pass()
	c.gate.mu.Unlock()
	if victim != nil {
		c.gate.metrics.met(limitConnections)
		_ = victim.Close()
	}
}

// Pass ends the limits of the connection in favour of those of another gate.
func (c *Conn) Pass() {
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	c.pass()
}

// pass is called with mu held.
func (c *Conn) pass() {
	if !c.proven.Swap(true) {
		c.gate.leave(c)
		close(c.lifted)
	}
}

// overdue ends a connection on which nobody has said what it is for.
func (c *Conn) overdue() {
	c.gate.mu.Lock()
	greeted := c.greeted
	c.gate.mu.Unlock()
	if !greeted {
		c.gate.metrics.refused(boundGreeting)
		_ = c.Close()
	}
}

// Close closes the connection.
func (c *Conn) Close() error {
	c.close.Do(func() {
		close(c.closed)
		c.gate.mu.Lock()
		c.gate.leave(c)
		c.gate.forget(c)
		c.gate.mu.Unlock()
		c.account.close()
	})
	return c.Conn.Close()
}

// SyscallConn is for socket options.
func (c *Conn) SyscallConn() (syscall.RawConn, error) {
	inner, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nil, errors.ErrUnsupported
	}
	return inner.SyscallConn()
}

// Read reads no more than the connection may send. While it waits, TCP holds the peer back.
func (c *Conn) Read(b []byte) (int, error) {
	if c.gate.limits.Burst == 0 || c.proven.Load() {
		return c.Conn.Read(b)
	}
	for {
		may, wait := c.allowance()
		if may > 0 {
			n, err := c.Conn.Read(b[:min(int64(len(b)), may)])
			c.took(int64(n))
			return n, err
		}
		c.gate.metrics.held()
		timer := time.NewTimer(wait)
		select {
		case <-timer.C:
			continue
		case <-c.lifted:
			timer.Stop()
			return c.Conn.Read(b)
		case <-c.closed:
			timer.Stop()
			return 0, net.ErrClosed
		}
	}
}

// breath is how long a connection is not read that has sent its share.
const breath = time.Second

// allowance returns how many bytes may be read now and, if none, after how long to ask again.
func (c *Conn) allowance() (may int64, wait time.Duration) {
	limits := c.gate.limits
	c.gate.mu.Lock()
	defer c.gate.mu.Unlock()
	now := c.gate.now()
	if grown := int64(now.Sub(c.filled).Seconds() * float64(limits.Rate)); grown > 0 {
		c.may, c.filled = min(c.may+grown, limits.Burst), now
	}
	return c.may, breath
}

// took counts bytes that have been read.
func (c *Conn) took(n int64) {
	g := c.gate
	g.mu.Lock()
	defer g.mu.Unlock()
	if _, unproven := g.conns[c]; !unproven {
		return
	}
	c.may -= n
	c.read += n
	if g.held += n; g.limits.Held > 0 && g.held > g.limits.Held {
		g.endCalls(func(c *Conn) int64 { return c.read }, boundBytes)
	}
}

// Write ends the connection if the peer takes in nothing for too long and is not proven.
func (c *Conn) Write(b []byte) (int, error) {
	switch slow := c.gate.limits.Slow; {
	case slow > 0 && !c.proven.Load():
		c.timed.Store(true)
		if err := c.Conn.SetWriteDeadline(time.Now().Add(slow)); err != nil {
			return 0, err
		}
	case c.timed.Load():
		c.timed.Store(false)
		if err := c.Conn.SetWriteDeadline(time.Time{}); err != nil {
			return 0, err
		}
	}
	return c.Conn.Write(b)
}
