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
}

// NewTCP makes a Duplex of c, which it owns from then on.
func NewTCP(c Socket) (*TCP, error) {
	raw, err := c.SyscallConn()
	if err != nil {
		return nil, err
	}
	t := &TCP{conn: c, raw: raw}
	t.read = t.tryRead
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
		n, err := syscall.Read(int(fd), room)
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

func (t *TCP) Write(p []byte) (int, error)       { return t.conn.Write(p) }
func (t *TCP) Close() error                      { return t.conn.Close() }
func (t *TCP) SetReadDeadline(d time.Time) error { return t.conn.SetReadDeadline(d) }

// WriteLast writes p, behind which CloseWrite has to follow at once: what the kernel has to send goes together with the end, in one segment.
func (t *TCP) WriteLast(p []byte) (n int, err error) {
	werr := t.raw.Control(func(fd uintptr) {
		n, err = unix.SendmsgN(int(fd), p, nil, nil, unix.MSG_MORE|unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	if err = cmp.Or(werr, err); err == nil && n == len(p) {
		return n, nil
	}
	n = max(n, 0)
	more, err := t.conn.Write(p[n:]) // finds the error again, or waits until there is room
	return n + more, err
}

// Ended says whether the other side has ended its stream, and everything before that has been read.
func (t *TCP) Ended() bool {
	ended := false
	err := t.raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		ended = err == nil && n == 0
	})
	return err == nil && ended
}

// CloseWrite implements Duplex.
func (t *TCP) CloseWrite() error {
	var shut error
	err := t.raw.Control(func(fd uintptr) { shut = unix.Shutdown(int(fd), unix.SHUT_WR) })
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

// OnReset calls fn within a second or two of the other side's reset, even if nobody reads. stop ends the watch.
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

// closed says whether the kernel has done with the connection. Unlike reading, this takes nothing from whoever reads.
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
