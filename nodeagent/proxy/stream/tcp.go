// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"cmp"
	"io"
	"os"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Socket is an open TCP connection: a *net.TCPConn, or an *os.File of a non-blocking socket.
type Socket interface {
	syscall.Conn
	io.WriteCloser
	SetReadDeadline(t time.Time) error
}

// TCP is a Duplex over a TCP connection.
type TCP struct {
	conn Socket
	raw  syscall.RawConn

	// Arguments and result of the reads below: a closure made once costs no allocation per read.
	read func(fd uintptr) bool
	into *Buffer
	err  error

	// The same for writes.
	writing  sync.Mutex
	write    func(fd uintptr) bool
	from     []byte
	flags    int
	writeErr error
}

// NewTCP makes a Duplex of c, which it owns from then on.
func NewTCP(c Socket) (*TCP, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &TCP{conn: c, raw: raw}
	t.read, t.write = t.tryRead, t.tryWrite
	return t, nil
}

// Fill implements Duplex. It takes memory only once there are bytes.
func (t *TCP) Fill(b *Buffer) error {
	t.into, t.err = b, nil
	err := t.raw.Read(t.read)
	t.into = nil
	if err != nil {
		return err
	}
	return t.err
}

func (t *TCP) tryRead(fd uintptr) bool {
	room := t.into.room()
	if len(room) == 0 {
		t.err = ErrFull
		return true
	}
	for {
		n, err := recv(fd, room, 0)
		if err == syscall.EINTR {
			continue
		}
		if n > 0 {
			t.into.w += n
			return true
		}
		if t.into.Len() == 0 {
			t.into.release()
		}
		switch err {
		case nil:
			t.err = io.EOF
		case syscall.EAGAIN:
			return false
		default:
			t.err = os.NewSyscallError("read", err)
		}
		return true
	}
}

// Write implements Duplex.
func (t *TCP) Write(p []byte) (int, error) { return t.send(p, 0) }

func (t *TCP) send(p []byte, flags int) (int, error) {
	t.writing.Lock()
	defer t.writing.Unlock()
	t.from, t.flags, t.writeErr = p, flags, nil
	err := t.raw.Write(t.write)
	n := len(p) - len(t.from)
	t.from = nil
	return n, cmp.Or(err, t.writeErr)
}

func (t *TCP) tryWrite(fd uintptr) bool {
	for len(t.from) > 0 {
		n, err := send(fd, t.from, t.flags)
		t.from = t.from[n:]
		switch err {
		case nil, syscall.EINTR:
		case syscall.EAGAIN:
			return false
		default:
			t.writeErr = os.NewSyscallError("send", err)
			return true
		}
	}
	return true
}

// Close implements Duplex.
func (t *TCP) Close() error { return t.conn.Close() }

// SetReadDeadline implements Duplex.
func (t *TCP) SetReadDeadline(d time.Time) error { return t.conn.SetReadDeadline(d) }

// WriteLast writes p, behind which CloseWrite has to follow at once: what the kernel has to send
// goes together with the end, in one segment.
func (t *TCP) WriteLast(p []byte) (int, error) { return t.send(p, unix.MSG_MORE) }

// Ended says whether the other side has ended its stream, and everything before that has been read.
func (t *TCP) Ended() bool {
	ended := false
	err := t.raw.Control(func(fd uintptr) {
		var one [1]byte
		n, err := recv(fd, one[:], unix.MSG_PEEK)
		ended = err == nil && n == 0
	})
	return err == nil && ended
}

// CloseWrite implements Duplex.
func (t *TCP) CloseWrite() error {
	var shut error
	err := t.raw.Control(func(fd uintptr) { shut = shutdown(fd) })
	return cmp.Or(err, os.NewSyscallError("shutdown", shut))
}

// Waiting says whether there is something to read already.
func (t *TCP) Waiting() bool {
	n := 0
	err := t.raw.Control(func(fd uintptr) { n, _ = unix.IoctlGetInt(int(fd), unix.TIOCINQ) })
	return err == nil && n > 0
}

// resetEvery is how often a connection is asked whether the other side has reset it.
const resetEvery = time.Second

// OnReset calls fn within a second or two of the other side's reset, even if nobody reads. stop
// ends the watch.
func (t *TCP) OnReset(fn func()) (stop func()) {
	var mu sync.Mutex
	stopped := false
	var timer *time.Timer
	mu.Lock()
	defer mu.Unlock()
	timer = time.AfterFunc(resetEvery, func() {
		mu.Lock()
		defer mu.Unlock()
		switch {
		case stopped:
		case t.closed():
			fn()
		default:
			timer.Reset(resetEvery)
		}
	})
	return func() {
		mu.Lock()
		defer mu.Unlock()
		stopped = true
		timer.Stop()
	}
}

// closed says whether the kernel has done with the connection. Unlike reading, this takes nothing
// from whoever reads.
func (t *TCP) closed() bool {
	closed := true
	err := t.raw.Control(func(fd uintptr) {
		info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
		closed = err == nil && info.State == unix.BPF_TCP_CLOSE
	})
	return err != nil || closed
}

// Reset implements Duplex by a close that does not linger, which sends RST.
func (t *TCP) Reset() {
	_ = t.raw.Control(func(fd uintptr) {
		_ = unix.SetsockoptLinger(int(fd), unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1})
	})
	t.conn.Close()
}
