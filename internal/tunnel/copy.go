package tunnel

import (
	"net"
	"sync"
	"time"
)

// drainPatience is how long what arrived before the tunnel broke may take to be written to a TCP connection.
const drainPatience = time.Second

// Copy joins a TCP connection and a tunnel in both directions: half-close, reset and back-pressure pass from one to the other. It returns, with
// both closed, when both directions have ended; the counts are in bytes, and the error is that of the side that broke first.
func Copy(tcp *net.TCPConn, t *Conn) (toTunnel, fromTunnel int64, err error) {
	j := &joint{tcp: tcp, t: t, downOver: make(chan struct{}), over: make(chan struct{})}
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
	downOver chan struct{} // down has ended
	over     chan struct{} // both have
	once     sync.Once
	err      error // set before either side is reset
}

// breaks remembers the first error.
func (j *joint) breaks(err error) { j.once.Do(func() { j.err = err }) }

// up passes what the TCP connection gives to the tunnel.
func (j *joint) up() int64 {
	n, readErr, writeErr := j.t.readFrom(j.tcp)
	if readErr == nil && writeErr == nil {
		writeErr = j.t.CloseWrite()
	}
	switch {
	case readErr != nil:
		j.breaks(readErr)
		j.t.Reset(readErr.Error())
	case writeErr != nil:
		// The tunnel is gone. Down passes on what had arrived before, and knows why, unless it has ended or is held up.
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
		j.breaks(writeErr)
		j.t.Reset(writeErr.Error())
		abort(j.tcp)
	}
	return n
}

// watch resets the TCP connection when the tunnel is gone and the peer does not take what has arrived, which no write would tell.
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
