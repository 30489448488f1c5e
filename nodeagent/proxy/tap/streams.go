// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"bytes"
	"io"
	"sync"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

const (
	frameSize     = 16 << 10
	defaultWindow = 65535
	// answerWindow is what the laptop may send of an answer before it is granted more.
	answerWindow = 1 << 20
	maxID        = 1<<31 - 1
)

// streams is HTTP/2, of which this side is the client: one stream after the other, each when the
// one before was answered.
type streams struct {
	*line
	answers chan bool
	grown   chan struct{} // a window may have grown, or settings have come
	enc     *hpack.Encoder
	block   bytes.Buffer

	writing sync.Mutex
	framer  *http2.Framer // writes into out
	out     bytes.Buffer
	greeted bool

	mu        sync.Mutex
	id        uint32 // of the present stream
	open      bool   // it is not answered
	window    int64  // of the connection
	window0   int64  // of new streams
	own       int64  // of the stream
	refused   bool   // the laptop takes no more streams
	tableSize uint32
}

func newStreams(l *line) *streams {
	s := &streams{
		line: l, answers: make(chan bool, 1), grown: make(chan struct{}, 1), window: defaultWindow,
		window0: defaultWindow, tableSize: 4096,
	}
	s.enc = hpack.NewEncoder(&s.block)
	s.framer = http2.NewFramer(&s.out, nil)
	return s
}

// frames writes frames; one goroutine at a time does.
func (s *streams) frames(add func(f *http2.Framer) error) error {
	s.writing.Lock()
	defer s.writing.Unlock()
	if !s.greeted {
		s.greeted = true
		s.out.WriteString(http2.ClientPreface)
		_ = s.framer.WriteSettings(http2.Setting{ID: http2.SettingEnablePush},
			http2.Setting{ID: http2.SettingInitialWindowSize, Val: answerWindow})
		_ = s.framer.WriteWindowUpdate(0, answerWindow-defaultWindow)
	}
	if err := add(s.framer); err != nil {
		s.out.Reset()
		return err
	}
	err := s.write(s.out.Bytes())
	s.out.Reset()
	return err
}

func (s *streams) send(c *Copy) (again bool) {
	id, ok := s.begin()
	if !ok || s.headers(id, c.Fields, false) != nil {
		return false
	}
	if !s.body(c, id) {
		return false
	}
	again = s.answered(s.answers)
	c.complete()
	return again
}

// begin begins a stream.
func (s *streams) begin() (id uint32, ok bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.id++; s.id > 1 {
		s.id++
	}
	s.open, s.own = true, s.window0
	if most := min(s.tableSize, 4096); most != s.enc.MaxDynamicTableSize() {
		s.enc.SetMaxDynamicTableSize(most)
	}
	return s.id, !s.refused && s.id < maxID
}

// body sends what there is of the copy's body as it comes, and ends the stream.
func (s *streams) body(c *Copy, id uint32) bool {
	for {
		p, tail, ended, ok := c.next()
		switch {
		case !ok:
			return false
		case len(p) > 0:
			if !s.data(c, id, p) {
				return false
			}
		case ended && tail != nil:
			return s.headers(id, tail, true) == nil
		case ended:
			return s.frames(func(f *http2.Framer) error { return f.WriteData(id, true, nil) }) == nil
		case !s.wait(c.more):
			return false
		}
	}
}

func (s *streams) headers(id uint32, fields []hpack.HeaderField, end bool) error {
	s.block.Reset()
	for _, f := range fields {
		_ = s.enc.WriteField(f)
	}
	block := s.block.Bytes()
	return s.frames(func(f *http2.Framer) error {
		n := min(len(block), frameSize)
		err := f.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: block[:n],
			EndStream: end, EndHeaders: n == len(block)})
		for block = block[n:]; len(block) > 0 && err == nil; block = block[n:] {
			n = min(len(block), frameSize)
			err = f.WriteContinuation(id, n == len(block), block[:n])
		}
		return err
	})
}

// data sends a piece of a body as the laptop's windows allow.
func (s *streams) data(c *Copy, id uint32, p []byte) bool {
	for len(p) > 0 {
		n := s.reserve(int64(len(p)))
		if n < 0 {
			c.wrote(len(p))
			return true // it is answered already, and will not have the rest
		}
		if n == 0 {
			if !s.wait(s.grown) || c.over() {
				return false
			}
			continue
		}
		if s.frames(func(f *http2.Framer) error { return f.WriteData(id, false, p[:n]) }) != nil {
			return false
		}
		c.wrote(int(n))
		p = p[n:]
	}
	return true
}

// reserve takes some of the windows; a negative number says that the stream has been reset.
func (s *streams) reserve(want int64) int64 {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.open {
		return -1
	}
	n := max(0, min(want, s.window, s.own, frameSize))
	s.window -= n
	s.own -= n
	return n
}

// read takes what the laptop sends, until it ends or cannot be understood.
func (s *streams) read() {
	f := http2.NewFramer(io.Discard, s.tunnel)
	f.SetMaxReadFrameSize(frameSize)
	f.SetReuseFrames()
	for {
		frame, err := f.ReadFrame()
		if err != nil || s.take(frame) != nil {
			discard(s.tunnel)
			return
		}
	}
}

func (s *streams) take(frame http2.Frame) error {
	h := frame.Header()
	switch frame := frame.(type) {
	case *http2.SettingsFrame:
		if frame.IsAck() {
			return nil
		}
		if err := frame.ForeachSetting(s.setting); err != nil {
			return err
		}
		s.signal()
		return s.frames(func(f *http2.Framer) error { return f.WriteSettingsAck() })
	case *http2.PingFrame:
		if !frame.IsAck() {
			data := frame.Data
			return s.frames(func(f *http2.Framer) error { return f.WritePing(true, data) })
		}
	case *http2.WindowUpdateFrame:
		s.mu.Lock()
		if h.StreamID == 0 {
			s.window += int64(frame.Increment)
		} else if h.StreamID == s.id {
			s.own += int64(frame.Increment)
		}
		s.mu.Unlock()
		s.signal()
	case *http2.DataFrame:
		if h.Length > 0 {
			err := s.frames(func(f *http2.Framer) error {
				if !frame.StreamEnded() {
					_ = f.WriteWindowUpdate(h.StreamID, h.Length)
				}
				return f.WriteWindowUpdate(0, h.Length)
			})
			if err != nil {
				return err
			}
		}
		if frame.StreamEnded() {
			s.end(h.StreamID)
		}
	case *http2.HeadersFrame:
		if frame.StreamEnded() {
			s.end(h.StreamID)
		}
	case *http2.RSTStreamFrame:
		s.end(h.StreamID)
	case *http2.GoAwayFrame:
		s.mu.Lock()
		s.refused = true
		refuses := frame.LastStreamID < s.id
		id := s.id
		s.mu.Unlock()
		if refuses {
			s.end(id)
		}
	}
	return nil
}

func (s *streams) setting(v http2.Setting) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch v.ID {
	case http2.SettingInitialWindowSize:
		s.own += int64(v.Val) - s.window0
		s.window0 = int64(v.Val)
	case http2.SettingHeaderTableSize:
		s.tableSize = v.Val
	case http2.SettingMaxConcurrentStreams:
		s.refused = s.refused || v.Val == 0
	}
	return nil
}

func (s *streams) signal() {
	select {
	case s.grown <- struct{}{}:
	default:
	}
}

// end is for the stream that the laptop has answered, or will not.
func (s *streams) end(id uint32) {
	s.mu.Lock()
	present := s.open && id == s.id
	again := !s.refused
	if present {
		s.open = false
	}
	s.mu.Unlock()
	if present {
		s.answers <- again
		s.signal()
	}
}
