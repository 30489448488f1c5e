// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"errors"
	"net"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// drainPatience is how long what arrived before one side broke may take to be passed to the other.
const drainPatience = time.Second

// Copy joins a TCP connection and a tunnel in both directions: half-close, reset and back-pressure
// pass from one to the other. It returns, with both closed, when both directions have ended; the
// counts are in bytes, and the error is that of the side that broke first.
func Copy(tcp *net.TCPConn, t *Conn) (toTunnel, fromTunnel int64, err error) {
	j := &joint{tcp: tcp, t: t, upOver: make(chan struct{}), downOver: make(chan struct{}),
		over: make(chan struct{})}
	var both, watch sync.WaitGroup
	both.Go(func() { toTunnel = j.up() })
	both.Go(func() { fromTunnel = j.down() })
	watch.Go(j.watch)
	both.Wait()
	close(j.over)
	watch.Wait()
	if j.err != nil {
		abort(tcp)
	}
	_ = tcp.Close()
	_ = t.Close()
	return toTunnel, fromTunnel, j.err
}

// joint is a TCP connection and a tunnel that are joined.
type joint struct {
	tcp      *net.TCPConn
	t        *Conn
	upOver   chan struct{} // up has ended
	downOver chan struct{} // down has
	over     chan struct{} // both have
	// a write's error which a read takes for the end, since the kernel tells of a reset once
	cut  atomic.Pointer[error]
	once sync.Once
	err  error // set before either side is reset
}

// breaks remembers the first error.
func (j *joint) breaks(err error) { j.once.Do(func() { j.err = err }) }

// up passes what the TCP connection gives to the tunnel.
func (j *joint) up() int64 {
	defer close(j.upOver)
	n, readErr, writeErr := j.t.readFrom(j.tcp)
	if cut := j.cut.Load(); cut != nil && readErr == nil && writeErr == nil {
		readErr = *cut
	}
	if readErr == nil && writeErr == nil {
		writeErr = j.t.CloseWrite()
	}
	switch {
	case readErr != nil:
		j.breaks(readErr)
		j.t.Reset(readErr.Error())
	case writeErr != nil:
		// The tunnel is gone. Down passes on what had arrived before, and knows why, unless it has
		// ended or is held up.
		select {
		case <-j.downOver:
		case <-time.After(drainPatience):
		}
		j.breaks(writeErr)
		j.t.Reset(writeErr.Error())
	}
	return n
}

// down passes what the tunnel gives to the TCP connection.
func (j *joint) down() int64 {
	defer close(j.downOver)
	n, readErr, writeErr := j.t.writeTo(j.tcp)
	if readErr == nil && writeErr == nil {
		writeErr = j.tcp.CloseWrite()
	}
	switch {
	case readErr != nil:
		j.breaks(readErr)
		abort(j.tcp)
	case writeErr != nil:
		// The TCP connection is gone. Up passes on what had arrived before, such as a server's
		// answer to a request that it would not read.
		if !errors.Is(writeErr, syscall.EPIPE) { // which says that the peer had ended in order, before
			j.cut.Store(&writeErr)
		}
		select {
		case <-j.upOver:
		case <-time.After(drainPatience):
		}
		j.breaks(writeErr)
		j.t.Reset(writeErr.Error())
		abort(j.tcp)
	}
	return n
}

// watch resets the TCP connection when the tunnel is gone and the peer does not take what has
// arrived, which no write would tell.
func (j *joint) watch() {
	select {
	case <-j.t.broken:
		select {
		case <-j.t.shut: // this end did it
		case <-j.downOver:
		case <-time.After(drainPatience):
		case <-j.over:
			return
		}
	case <-j.t.shut:
	case <-j.over:
		return
	}
	if err := j.t.failure(); err != nil {
		j.breaks(err)
	}
	abort(j.tcp)
}

// abort makes the kernel send RST instead of FIN.
func abort(tcp *net.TCPConn) {
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
}
