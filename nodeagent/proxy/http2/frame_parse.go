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
	doubtFirst    = doubt("first frame is not SETTINGS")
	doubtFrame    = doubt("frame is longer than the receiver allows")
	doubtMany     = doubt("header block has too many frames")
	doubtMemory   = doubt("too many bytes are held for all connections")
	doubtResets   = doubt("client resets too many streams before they are answered")
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

// maxContinuations bounds the CONTINUATION frames of one header block. What a buffer holds fits into
// six frames of the smallest size that every peer takes.
const maxContinuations = 32

// beginsSettings reports whether p, what a peer sends first, may become a SETTINGS frame. It looks
// at as many bytes as there are, so that a peer which speaks something else is not waited for.
func beginsSettings(p []byte) bool {
	h := [headerLength]byte{3: byte(http2.FrameSettings)}
	for i := range min(len(p), len(h)) {
		if i != 1 && i != 2 && p[i] != h[i] || i == 1 && p[i] > frameSize>>8 {
			return false
		}
	}
	return true
}

// parse takes one frame from the front of p; a frame without bytes means that it needs more. A frame
// of more than most bytes is not waited for. scratch is used for a block of several frames.
func parse(p []byte, most int, scratch *[]byte) (frame, error) {
	if len(p) < headerLength {
		return frame{}, nil
	}
	fr := frame{frameHeader: parseHeader(p)}
	if fr.length > most {
		return fr, doubtFrame
	}
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
		return fr.parseBlock(p, most, scratch)
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
func (fr frame) parseBlock(p []byte, most int, scratch *[]byte) (frame, error) {
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
	for i := 0; ; i++ { // nothing is copied before all is there
		if len(p) < n+headerLength {
			return frame{}, nil
		}
		h := parseHeader(p[n:])
		if h.kind != http2.FrameContinuation || h.id != fr.id {
			return fr, doubtBlock
		}
		if h.length > most {
			return fr, doubtFrame
		}
		if i == maxContinuations {
			return fr, doubtMany
		}
		if len(p) < n+headerLength+h.length {
			return frame{}, nil
		}
		n += headerLength + h.length
		if h.flags&http2.FlagContinuationEndHeaders != 0 {
			break
		}
	}
	fr.block = join((*scratch)[:0], fr.block, p[len(fr.all):n])
	fr.all, *scratch = p[:n], fr.block
	return fr, nil
}

// join appends a header block to b: its first piece, and those of the CONTINUATION frames.
func join(b, first, frames []byte) []byte {
	b = append(b, first...)
	for len(frames) > 0 {
		end := headerLength + parseHeader(frames).length
		b, frames = append(b, frames[headerLength:end]...), frames[end:]
	}
	return b
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
