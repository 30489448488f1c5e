// SPDX-License-Identifier: Apache-2.0

package podconn

import (
	"cmp"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/streaming/pkg/httpstream"
)

// maxMessage bounds how many bytes of another party's message are kept.
const maxMessage = 4096

// ErrLost is returned by Write when the connection to the API server or to the pod has broken. Read
// cannot always tell that from the end of the data.
var ErrLost = errors.New("lost the port-forward connection")

const (
	// closeTimeout bounds a graceful close.
	closeTimeout = time.Second
	// lastWordsTimeout bounds the wait for the other side's error after the end of the data.
	lastWordsTimeout = closeTimeout / 4
)

// Conn is a connection to a pod, with its own connection to the API server. A deadline that expires
// ends the connection for good: the layers below cannot be read again after a timeout.
type Conn struct {
	session io.Closer
	raw     io.Closer          // below the session; nil if it is not known
	data    io.ReadWriteCloser // Close ends the direction to the pod
	reason  func() error       // returns the other side's error once Read has failed
	remote  addr

	closeOnce sync.Once
	closed    chan struct{}
	mu        sync.Mutex
	timers    [2]*time.Timer // read, write
	abort     error          // why it was closed, if not by Close
}

// overSPDY returns a Conn of two new streams of an SPDY session. raw is the connection below, nil
// if it is not known.
func overSPDY(session httpstream.Connection, raw io.Closer, remote string, port int) (*Conn, error) {
	said := &lastWords{over: make(chan struct{})}
	c := &Conn{session: session, raw: raw, remote: addr(remote), reason: said.wait, closed: make(chan struct{})}
	errs, err := session.CreateStream(headers(corev1.StreamTypeError, port))
	if err == nil {
		err = errs.Close() // nothing is written to it
	}
	if err == nil {
		c.data, err = session.CreateStream(headers(corev1.StreamTypeData, port))
	}
	if err != nil {
		_ = c.Close()
		return nil, fmt.Errorf("open streams: %w", err)
	}
	go said.listen(errs)
	return c, nil
}

// lastWords is what arrives on an error stream.
type lastWords struct {
	over chan struct{} // closed when the stream has ended
	err  error         // read after over
}

// listen reads the error stream, on which the kubelet reports why it cannot connect.
func (l *lastWords) listen(errs io.Reader) {
	defer close(l.over)
	message, err := io.ReadAll(io.LimitReader(errs, maxMessage))
	if text := strings.TrimSpace(string(message)); text != "" {
		l.err = errors.New(text)
	} else if err != nil {
		l.err = fmt.Errorf("%w: %w", ErrLost, err)
	}
}

func (l *lastWords) wait() error {
	select {
	case <-l.over:
		return l.err
	case <-time.After(lastWordsTimeout):
		return nil
	}
}

// Read implements net.Conn. At the end of the data it returns the API server's error, if there is
// one.
func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.data.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, c.explain(err)
}

// explain finds out why the data has ended.
func (c *Conn) explain(err error) error {
	c.mu.Lock()
	abort := c.abort
	c.mu.Unlock()
	if abort != nil {
		return abort
	}
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	return cmp.Or(c.reason(), err)
}

// Write implements net.Conn.
func (c *Conn) Write(p []byte) (int, error) {
	n, err := c.data.Write(p)
	if err == nil {
		return n, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.abort != nil {
		return n, c.abort
	}
	return n, fmt.Errorf("%w: %w", ErrLost, err)
}

// CloseWrite ends the direction to the pod. It ends a connection of DialUpgrade altogether.
func (c *Conn) CloseWrite() error { return c.data.Close() }

// Close ends both directions and the connection to the API server. It does not wait, because a dead
// network would block it.
func (c *Conn) Close() error {
	c.closeOnce.Do(func() {
		close(c.closed)
		c.mu.Lock()
		for _, timer := range c.timers {
			if timer != nil {
				timer.Stop()
			}
		}
		c.mu.Unlock()
		go c.end()
	})
	return nil
}

func (c *Conn) end() {
	if c.raw != nil {
		force := time.AfterFunc(closeTimeout, func() { _ = c.raw.Close() })
		defer force.Stop()
	}
	_ = c.session.Close()
	if c.raw != nil {
		_ = c.raw.Close()
	}
}

// SetDeadline sets both deadlines.
func (c *Conn) SetDeadline(t time.Time) error {
	return errors.Join(c.SetReadDeadline(t), c.SetWriteDeadline(t))
}

// SetReadDeadline ends the connection at t, unless the deadline is moved before.
func (c *Conn) SetReadDeadline(t time.Time) error { return c.setDeadline(0, t) }

// SetWriteDeadline ends the connection at t, unless the deadline is moved before.
func (c *Conn) SetWriteDeadline(t time.Time) error { return c.setDeadline(1, t) }

func (c *Conn) setDeadline(which int, t time.Time) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	select {
	case <-c.closed:
		return net.ErrClosed
	default:
	}
	if c.timers[which] != nil {
		c.timers[which].Stop()
		c.timers[which] = nil
	}
	if !t.IsZero() {
		c.timers[which] = time.AfterFunc(time.Until(t), func() {
			c.mu.Lock()
			c.abort = os.ErrDeadlineExceeded
			c.mu.Unlock()
			_ = c.Close()
		})
	}
	return nil
}

// LocalAddr returns a placeholder: only the API server's connection has an address.
func (c *Conn) LocalAddr() net.Addr { return addr("laptop") }

// RemoteAddr returns namespace/pod:port.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

type addr string

func (addr) Network() string  { return "port-forward" }
func (a addr) String() string { return string(a) }
