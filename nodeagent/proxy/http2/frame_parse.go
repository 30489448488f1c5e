// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

// A doubt is the reason why what a peer sends cannot be understood with certainty.
type doubt string

func (d doubt) Error() string { return string(d) }

const (
	doubtLength   = doubt("frame has a length that its type does not allow")
	doubtStream   = doubt("frame is on a stream where its type does not belong")
	doubtPadding  = doubt("frame is shorter than its padding")
	doubtBlock    = doubt("header block is interrupted, or continued without having begun")
	doubtTooLong  = doubt("header block or frame is too long to be looked at")
	doubtHpack    = doubt("header block cannot be decoded")
	doubtSettings = doubt("settings are announced without end and never acknowledged")
	doubtPush     = doubt("PUSH_PROMISE from a client")
)

// frame is what is taken together: a frame, or a HEADERS or PUSH_PROMISE frame and the CONTINUATION
// frames that follow it. Of DATA it is the frame's head alone.
type frame struct {
	frameHeader
	all      []byte // as it arrived
	payload  []byte // of the first frame
	block    []byte // the header block
	priority []byte // what HEADERS says of it
	promised uint32
}

func (fr *frame) end() bool { return fr.flags&http2.FlagHeadersEndStream != 0 }

func (fr *frame) ack() bool { return fr.flags&http2.FlagSettingsAck != 0 }

// code is the error code of RST_STREAM.
func (fr *frame) code() http2.ErrCode { return http2.ErrCode(binary.BigEndian.Uint32(fr.payload)) }

// last is the last stream that GOAWAY lets live.
func (fr *frame) last() uint32 { return binary.BigEndian.Uint32(fr.payload) & maxID }

// increment is what WINDOW_UPDATE adds.
func (fr *frame) increment() int64 { return int64(binary.BigEndian.Uint32(fr.payload) & maxID) }

// parse takes one frame from the front of p; a frame without bytes means that it needs more. scratch
// is used for a block of several frames.
func parse(p []byte, scratch *[]byte) (frame, error) {
	if len(p) < headerLength {
		return frame{}, nil
	}
	fr := frame{frameHeader: parseHeader(p)}
	if fr.kind == http2.FrameData {
		fr.all = p[:headerLength]
		return fr, nil
	}
	n := headerLength + fr.length
	if len(p) < n {
		return frame{}, nil
	}
	fr.all, fr.payload = p[:n], p[headerLength:n]
	switch fr.kind {
	case http2.FrameHeaders, http2.FramePushPromise:
		return fr.parseBlock(p, scratch)
	case http2.FrameContinuation:
		return fr, doubtBlock
	}
	return fr, fr.check()
}

// check looks at what is fixed about the frames that are understood.
func (fr *frame) check() error {
	fixed, connection := -1, false
	switch fr.kind {
	case http2.FrameRSTStream:
		fixed = 4
	case http2.FramePriority:
		fixed = 5
	case http2.FrameWindowUpdate:
		if fr.length != 4 {
			return doubtLength
		}
		return nil
	case http2.FramePing:
		fixed, connection = 8, true
	case http2.FrameSettings:
		connection = true
		if fr.length%6 != 0 || fr.ack() && fr.length > 0 {
			return doubtLength
		}
	case http2.FrameGoAway:
		connection = true
		if fr.length < 8 {
			return doubtLength
		}
	default:
		return nil
	}
	switch {
	case fixed >= 0 && fr.length != fixed:
		return doubtLength
	case connection != (fr.id == 0):
		return doubtStream
	}
	return nil
}

// parseBlock takes a header block to its end, over all its frames, if p has them.
func (fr frame) parseBlock(p []byte, scratch *[]byte) (frame, error) {
	if fr.id == 0 {
		return fr, doubtStream
	}
	if err := fr.fragment(); err != nil {
		return fr, err
	}
	if fr.flags&http2.FlagHeadersEndHeaders != 0 { // the same bit in PUSH_PROMISE and CONTINUATION
		return fr, nil
	}
	n := len(fr.all)
	joined := append((*scratch)[:0], fr.block...)
	for {
		if len(p) < n+headerLength {
			return frame{}, nil
		}
		h := parseHeader(p[n:])
		if h.kind != http2.FrameContinuation || h.id != fr.id {
			return fr, doubtBlock
		}
		if len(p) < n+headerLength+h.length {
			return frame{}, nil
		}
		joined = append(joined, p[n+headerLength:n+headerLength+h.length]...)
		*scratch = joined
		n += headerLength + h.length
		if h.flags&http2.FlagContinuationEndHeaders != 0 {
			fr.all, fr.block = p[:n], joined
			return fr, nil
		}
	}
}

// fragment finds the first frame's part of the block.
func (fr *frame) fragment() error {
	p, pad := fr.payload, 0
	if fr.flags&http2.FlagHeadersPadded != 0 {
		if len(p) == 0 {
			return doubtPadding
		}
		pad, p = int(p[0]), p[1:]
	}
	if fr.kind == http2.FramePushPromise {
		if len(p) < 4 {
			return doubtLength
		}
		fr.promised, p = binary.BigEndian.Uint32(p)&maxID, p[4:]
		if fr.promised == 0 {
			return doubtStream
		}
	} else if fr.flags&http2.FlagHeadersPriority != 0 {
		if len(p) < 5 {
			return doubtLength
		}
		fr.priority, p = p[:5], p[5:]
	}
	if pad > len(p) {
		return doubtPadding
	}
	fr.block = p[:len(p)-pad]
	return nil
}
