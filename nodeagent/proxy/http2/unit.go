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

// unit is what is taken together: a frame, or a HEADERS or PUSH_PROMISE frame and the CONTINUATION
// frames that follow it. Of DATA it is the frame's head alone.
type unit struct {
	header
	all      []byte // as it arrived
	payload  []byte // of the first frame
	block    []byte // the header block
	priority []byte // what HEADERS says of it
	promised uint32
}

func (u *unit) end() bool { return u.flags&http2.FlagHeadersEndStream != 0 }

func (u *unit) ack() bool { return u.flags&http2.FlagSettingsAck != 0 }

// code is the error code of RST_STREAM.
func (u *unit) code() http2.ErrCode { return http2.ErrCode(binary.BigEndian.Uint32(u.payload)) }

// last is the last stream that GOAWAY lets live.
func (u *unit) last() uint32 { return binary.BigEndian.Uint32(u.payload) & maxID }

// increment is what WINDOW_UPDATE adds.
func (u *unit) increment() int64 { return int64(binary.BigEndian.Uint32(u.payload) & maxID) }

// parse takes one unit from the front of p; a unit without bytes means that it needs more. scratch
// is used for a block of several frames.
func parse(p []byte, scratch *[]byte) (unit, error) {
	if len(p) < headerLength {
		return unit{}, nil
	}
	u := unit{header: parseHeader(p)}
	if u.kind == http2.FrameData {
		u.all = p[:headerLength]
		return u, nil
	}
	n := headerLength + u.length
	if len(p) < n {
		return unit{}, nil
	}
	u.all, u.payload = p[:n], p[headerLength:n]
	switch u.kind {
	case http2.FrameHeaders, http2.FramePushPromise:
		return u.parseBlock(p, scratch)
	case http2.FrameContinuation:
		return u, doubtBlock
	}
	return u, u.check()
}

// check looks at what is fixed about the frames that are understood.
func (u *unit) check() error {
	fixed, connection := -1, false
	switch u.kind {
	case http2.FrameRSTStream:
		fixed = 4
	case http2.FramePriority:
		fixed = 5
	case http2.FrameWindowUpdate:
		if u.length != 4 {
			return doubtLength
		}
		return nil
	case http2.FramePing:
		fixed, connection = 8, true
	case http2.FrameSettings:
		connection = true
		if u.length%6 != 0 || u.ack() && u.length > 0 {
			return doubtLength
		}
	case http2.FrameGoAway:
		connection = true
		if u.length < 8 {
			return doubtLength
		}
	default:
		return nil
	}
	switch {
	case fixed >= 0 && u.length != fixed:
		return doubtLength
	case connection != (u.id == 0):
		return doubtStream
	}
	return nil
}

// parseBlock takes a header block to its end, over all its frames, if p has them.
func (u unit) parseBlock(p []byte, scratch *[]byte) (unit, error) {
	if u.id == 0 {
		return u, doubtStream
	}
	if err := u.fragment(); err != nil {
		return u, err
	}
	if u.flags&http2.FlagHeadersEndHeaders != 0 { // the same bit in PUSH_PROMISE and CONTINUATION
		return u, nil
	}
	n := len(u.all)
	joined := append((*scratch)[:0], u.block...)
	for {
		if len(p) < n+headerLength {
			return unit{}, nil
		}
		h := parseHeader(p[n:])
		if h.kind != http2.FrameContinuation || h.id != u.id {
			return u, doubtBlock
		}
		if len(p) < n+headerLength+h.length {
			return unit{}, nil
		}
		joined = append(joined, p[n+headerLength:n+headerLength+h.length]...)
		*scratch = joined
		n += headerLength + h.length
		if h.flags&http2.FlagContinuationEndHeaders != 0 {
			u.all, u.block = p[:n], joined
			return u, nil
		}
	}
}

// fragment finds the first frame's part of the block.
func (u *unit) fragment() error {
	p, pad := u.payload, 0
	if u.flags&http2.FlagHeadersPadded != 0 {
		if len(p) == 0 {
			return doubtPadding
		}
		pad, p = int(p[0]), p[1:]
	}
	if u.kind == http2.FramePushPromise {
		if len(p) < 4 {
			return doubtLength
		}
		u.promised, p = binary.BigEndian.Uint32(p)&maxID, p[4:]
		if u.promised == 0 {
			return doubtStream
		}
	} else if u.flags&http2.FlagHeadersPriority != 0 {
		if len(p) < 5 {
			return doubtLength
		}
		u.priority, p = p[:5], p[5:]
	}
	if pad > len(p) {
		return doubtPadding
	}
	u.block = p[:len(p)-pad]
	return nil
}
