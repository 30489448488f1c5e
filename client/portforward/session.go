// SPDX-License-Identifier: Apache-2.0

package portforward

import (
	"bufio"
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"time"

	"github.com/moby/spdystream/spdy"
	corev1 "k8s.io/api/core/v1"
)

// The streams of a session. A client's have odd numbers.
const (
	errorStream spdy.StreamId = 1
	dataStream  spdy.StreamId = 3
)

const (
	frameHead = 8 // bytes before a frame's payload
	// of a frame that is written: with its head it fits into one message of a WebSocket
	maxPayload  = 32<<10 - 1024
	maxMessage  = 4096 // bytes of the other side's message that are kept
	controlFlag = 0x80 // in the first byte of control frames
)

// session is the client's end of SPDY/3.1 with the two streams of one forwarded connection. Where a
// general implementation has goroutines that hand frames on, the reader of the data takes them off
// the wire itself; and a frame leaves in one piece, for each piece is a message to the API server,
// which passes it on by itself, as do the two behind it. Nobody but Read reads, so what the other
// side says on the error stream is known when Read has returned an error.
type session struct {
	raw     net.Conn
	in      *bufio.Reader
	control *spdy.Framer // reads from in, and writes into out

	writing sync.Mutex
	out     bytes.Buffer

	reading sync.Mutex
	rest    int  // bytes of a frame of the data stream that were not read yet
	fin     bool // nothing comes behind them
	replied int
	message []byte // on the error stream
	said    bool   // the message is complete
}

// openSession opens both streams at once, and waits for them until a deadline. What becomes of them
// at once is for Read to tell.
func openSession(raw net.Conn, port int, deadline time.Time) (*session, error) {
	s := &session{raw: raw, in: bufio.NewReaderSize(raw, 16<<10)}
	var err error
	if s.control, err = spdy.NewFramer(&s.out, s.in); err != nil {
		return nil, err
	}
	if err := raw.SetReadDeadline(deadline); err != nil {
		return nil, err
	}
	for _, frame := range []spdy.Frame{
		&spdy.SynStreamFrame{StreamId: errorStream, Headers: headers(corev1.StreamTypeError, port)},
		&spdy.DataFrame{StreamId: errorStream, Flags: spdy.DataFlagFin}, // nothing is written to it
		&spdy.SynStreamFrame{StreamId: dataStream, Headers: headers(corev1.StreamTypeData, port)},
	} {
		if err := s.send(frame); err != nil {
			return nil, err
		}
	}
	for s.replied < 2 && !s.fin && !s.said {
		if err := s.next(); err != nil {
			return nil, err
		}
	}
	if s.replied == 0 {
		return nil, errors.New("they were refused")
	}
	return s, raw.SetReadDeadline(time.Time{})
}

// send writes a frame as one piece.
func (s *session) send(frame spdy.Frame) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	s.out.Reset()
	if err := s.control.WriteFrame(frame); err != nil {
		return err
	}
	_, err := s.raw.Write(s.out.Bytes())
	return err
}

func (s *session) Write(p []byte) (written int, err error) {
	s.writing.Lock()
	defer s.writing.Unlock()
	for len(p) > 0 {
		n := min(len(p), maxPayload)
		var head [frameHead]byte
		binary.BigEndian.PutUint32(head[:4], uint32(dataStream))
		binary.BigEndian.PutUint32(head[4:], uint32(n)) // no flags
		s.out.Reset()
		s.out.Write(head[:])
		s.out.Write(p[:n])
		if _, err := s.raw.Write(s.out.Bytes()); err != nil {
			return written, err
		}
		written += n
		p = p[n:]
	}
	return written, nil
}

// Close ends the direction to the other side.
func (s *session) Close() error {
	return s.send(&spdy.DataFrame{StreamId: dataStream, Flags: spdy.DataFlagFin})
}

// Read gives io.EOF when the other side has ended the stream, having waited a moment for what it
// has to say about that.
func (s *session) Read(p []byte) (int, error) {
	s.reading.Lock()
	defer s.reading.Unlock()
	for s.rest == 0 && !s.fin {
		if err := s.next(); err != nil {
			return 0, fmt.Errorf("%w: %w", ErrLost, err)
		}
	}
	if s.rest == 0 {
		s.listen()
		return 0, io.EOF
	}
	n, err := s.in.Read(p[:min(len(p), s.rest)])
	s.rest -= n
	if err != nil {
		err = fmt.Errorf("%w: %w", ErrLost, err)
	}
	return n, err
}

// listen waits for the end of the error stream.
func (s *session) listen() {
	if s.said {
		return
	}
	_ = s.raw.SetReadDeadline(time.Now().Add(lastWordsTimeout))
	for !s.said && s.next() == nil {
	}
	s.said = true
}

// reason is what the other side has said was wrong.
func (s *session) reason() error {
	s.reading.Lock()
	defer s.reading.Unlock()
	if text := strings.TrimSpace(string(s.message)); text != "" {
		return errors.New(text)
	}
	return nil
}

// next takes one frame off the wire, but for the payload of a frame of the data stream.
func (s *session) next() error {
	head, err := s.in.Peek(frameHead)
	if err != nil {
		return err
	}
	if head[0]&controlFlag != 0 {
		return s.takeControl()
	}
	id := spdy.StreamId(binary.BigEndian.Uint32(head[:4]))
	size := int(binary.BigEndian.Uint32(head[4:]) & spdy.MaxDataLength)
	fin := spdy.DataFlags(head[4])&spdy.DataFlagFin != 0
	if _, err := s.in.Discard(frameHead); err != nil {
		return err
	}
	switch {
	case id == dataStream && !s.fin:
		s.rest, s.fin = size, fin
		return nil
	case id == errorStream && !s.said:
		keep := make([]byte, min(size, maxMessage-len(s.message)))
		if _, err := io.ReadFull(s.in, keep); err != nil {
			return err
		}
		s.message = append(s.message, keep...)
		s.said = fin
		size -= len(keep)
	}
	_, err = s.in.Discard(size)
	return err
}

// takeControl takes one control frame. Flow control is not among them: what implements this
// protocol for Kubernetes has none.
func (s *session) takeControl() error {
	frame, err := s.control.ReadFrame()
	if err != nil {
		return err
	}
	switch frame := frame.(type) {
	case *spdy.SynReplyFrame:
		s.replied++
		if frame.CFHeader.Flags&spdy.ControlFlagFin != 0 {
			s.ended(frame.StreamId)
		}
	case *spdy.RstStreamFrame:
		s.ended(frame.StreamId)
	case *spdy.PingFrame:
		if frame.Id%2 == 0 { // the other side's
			return s.send(frame)
		}
	case *spdy.SynStreamFrame:
		return s.send(&spdy.RstStreamFrame{StreamId: frame.StreamId, Status: spdy.RefusedStream})
	case *spdy.GoAwayFrame:
		return io.EOF
	}
	return nil
}

// ended notes that nothing more comes on a stream.
func (s *session) ended(id spdy.StreamId) {
	switch id {
	case dataStream:
		s.fin = true
	case errorStream:
		s.said = true
	}
}
