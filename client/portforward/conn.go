package portforward

import (
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

// ErrLost is what Write returns when the connection to the API server, or to the pod, broke off. Read cannot tell that from its end.
var ErrLost = errors.New("lost the port-forward connection")

// closeTimeout bounds a polite goodbye.
const closeTimeout = time.Second

// Conn is a connection to a port of a pod. It has the API server's connection for itself. A deadline that passes ends the connection for
// good: what lies below cannot be read again after a timeout.
type Conn struct {
	session httpstream.Connection
	raw     io.Closer // below the session; nil if it is not known
	data    httpstream.Stream
	remote  addr

	remoteSaid chan struct{} // closed when the error stream has ended
	remoteErr  error         // what it said; read after remoteSaid

	closeOnce sync.Once
	closed    chan struct{}
	mu        sync.Mutex
	timers    [2]*time.Timer // read, write
	abort     error          // why it was closed, if not by Close
}

func newConn(session httpstream.Connection, raw io.Closer, remote string, port int) (*Conn, error) {
	c := &Conn{session: session, raw: raw, remote: addr(remote), remoteSaid: make(chan struct{}), closed: make(chan struct{})}
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
	go c.listen(errs)
	return c, nil
}

// listen reads the error stream, on which the kubelet says why it cannot connect.
func (c *Conn) listen(errs io.Reader) {
	defer close(c.remoteSaid)
	message, err := io.ReadAll(io.LimitReader(errs, 4096))
	if text := strings.TrimSpace(string(message)); text != "" {
		c.remoteErr = errors.New(text)
	} else if err != nil {
		c.remoteErr = fmt.Errorf("%w: %w", ErrLost, err)
	}
}

func (c *Conn) Read(p []byte) (int, error) {
	n, err := c.data.Read(p)
	if n > 0 || err == nil {
		return n, nil
	}
	return 0, c.explain(err)
}

// explain finds out why there is nothing more to read.
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
	grace := time.NewTimer(closeTimeout / 4)
	defer grace.Stop()
	select {
	case <-c.remoteSaid:
		if c.remoteErr != nil {
			return c.remoteErr
		}
	case <-grace.C:
	case <-c.closed:
		return net.ErrClosed
	}
	return err
}

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

// CloseWrite says that nothing more is going to be written.
func (c *Conn) CloseWrite() error { return c.data.Close() }

// Close ends both directions and the connection to the API server. It does not wait: a dead network would keep it.
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

// LocalAddr is not known: the API server's connection has one, this one has not.
func (c *Conn) LocalAddr() net.Addr { return addr("laptop") }

// RemoteAddr is namespace/pod:port.
func (c *Conn) RemoteAddr() net.Addr { return c.remote }

type addr string

func (addr) Network() string  { return "port-forward" }
func (a addr) String() string { return string(a) }
