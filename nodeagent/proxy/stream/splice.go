// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"os"

	"golang.org/x/sys/unix"
)

// pipeSize is what a pipe may hold, in bytes: as much as users without privileges may have. Fewer,
// larger moves wake peers less often.
const pipeSize = 1 << 20

// pipe carries bytes from socket to socket inside the kernel.
type pipe struct {
	r, w int
	held int // bytes in it
}

// pipes are idle ones, at most 64: each costs two file descriptors.
var pipes = make(chan *pipe, 64)

func getPipe() (*pipe, error) {
	select {
	case p := <-pipes:
		return p, nil
	default:
	}
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC|unix.O_NONBLOCK); err != nil {
		return nil, os.NewSyscallError("pipe2", err)
	}
	// Without it the pipe holds 64 KiB, which is slower and still right.
	_, _ = unix.FcntlInt(uintptr(fds[1]), unix.F_SETPIPE_SZ, pipeSize)
	return &pipe{r: fds[0], w: fds[1]}, nil
}

func putPipe(p *pipe) {
	if p.held == 0 {
		select {
		case pipes <- p:
			return
		default:
		}
	}
	unix.Close(p.r)
	unix.Close(p.w)
}

// splicer passes bytes between two TCP connections without reading them. It holds a pipe only while
// there are bytes in it.
type splicer struct {
	dst, src *TCP
	pipe     *pipe
	want     int64 // bytes still wanted, or -1 for all that come
	err      error
	in, out  func(fd uintptr) bool
}

func newSplicer(dst, src *TCP) *splicer {
	s := &splicer{dst: dst, src: src}
	s.in, s.out = s.tryIn, s.tryOut
	return s
}

// some moves what there is, at least one byte and at most want (-1: no limit), waiting for it if
// need be.
func (s *splicer) some(want int64) (moved int64, srcErr, dstErr error) {
	s.want, s.err = want, nil
	defer func() {
		if s.pipe != nil {
			putPipe(s.pipe)
			s.pipe = nil
		}
	}()
	if err := s.src.raw.Read(s.in); err != nil {
		return 0, err, nil
	}
	if s.err != nil {
		return 0, s.err, nil
	}
	moved = int64(s.pipe.held)
	if err := s.dst.raw.Write(s.out); err != nil {
		return moved - int64(s.pipe.held), nil, err
	}
	return moved - int64(s.pipe.held), nil, s.err
}

func (s *splicer) tryIn(fd uintptr) bool {
	if s.pipe == nil {
		if s.pipe, s.err = getPipe(); s.err != nil {
			return true
		}
	}
	most := int64(pipeSize)
	if s.want >= 0 {
		most = min(most, s.want)
	}
	for {
		n, err := unix.Splice(int(fd), nil, s.pipe.w, nil, int(most), unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
			continue
		case err == unix.EAGAIN:
			putPipe(s.pipe)
			s.pipe = nil
			return false
		case err != nil:
			s.err = os.NewSyscallError("splice", err)
		case n == 0:
			s.err = io.EOF
		default:
			s.pipe.held = int(n)
		}
		return true
	}
}

func (s *splicer) tryOut(fd uintptr) bool {
	for s.pipe.held > 0 {
		n, err := unix.Splice(s.pipe.r, nil, int(fd), nil, s.pipe.held,
			unix.SPLICE_F_MOVE|unix.SPLICE_F_NONBLOCK)
		switch {
		case err == unix.EINTR:
		case err == unix.EAGAIN:
			return false
		case err != nil:
			s.err = os.NewSyscallError("splice", err)
			return true
		default:
			s.pipe.held -= int(n)
		}
	}
	return true
}
