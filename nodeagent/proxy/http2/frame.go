// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"

	"golang.org/x/net/http2"
)

const (
	headerLength = 9
	// frameSize is the longest frame that every peer takes (RFC 9113 §4.2).
	frameSize = 16 << 10
	// defaultWindow is each window's size before anybody says otherwise (RFC 9113 §6.9.2).
	defaultWindow = 65535
	// defaultTable is the size of a table of header fields before anybody says otherwise (RFC 9113
	// §6.5.2).
	defaultTable = 4096
	maxID        = 1<<31 - 1
)

// frameHeader is the head of a frame.
type frameHeader struct {
	length int // of the payload
	kind   http2.FrameType
	flags  http2.Flags
	id     uint32
}

// parseHeader reads p, which has headerLength bytes at least.
func parseHeader(p []byte) frameHeader {
	_ = p[8]
	return frameHeader{
		length: int(p[0])<<16 | int(p[1])<<8 | int(p[2]),
		kind:   http2.FrameType(p[3]),
		flags:  http2.Flags(p[4]),
		id:     binary.BigEndian.Uint32(p[5:]) & maxID,
	}
}

func appendHeader(b []byte, length int, kind http2.FrameType, flags http2.Flags, id uint32) []byte {
	b = append(b, byte(length>>16), byte(length>>8), byte(length), byte(kind), byte(flags))
	return binary.BigEndian.AppendUint32(b, id)
}

func appendData(b []byte, id uint32, p []byte, end bool) []byte {
	var flags http2.Flags
	if end {
		flags = http2.FlagDataEndStream
	}
	return append(appendHeader(b, len(p), http2.FrameData, flags, id), p...)
}

func appendWindowUpdate(b []byte, id uint32, n int64) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, 4, http2.FrameWindowUpdate, 0, id), uint32(n))
}

func appendReset(b []byte, id uint32, code http2.ErrCode) []byte {
	return binary.BigEndian.AppendUint32(appendHeader(b, 4, http2.FrameRSTStream, 0, id), uint32(code))
}

func appendGoAway(b []byte, last uint32, code http2.ErrCode, debug []byte) []byte {
	b = appendHeader(b, 8+len(debug), http2.FrameGoAway, 0, 0)
	b = binary.BigEndian.AppendUint32(b, last)
	return append(binary.BigEndian.AppendUint32(b, uint32(code)), debug...)
}

// appendPong appends the answer to PING.
func appendPong(b, payload []byte) []byte {
	return append(appendHeader(b, len(payload), http2.FramePing, http2.FlagPingAck, 0), payload...)
}

func appendSettings(b []byte, list ...http2.Setting) []byte {
	b = appendHeader(b, 6*len(list), http2.FrameSettings, 0, 0)
	for _, c := range list {
		b = binary.BigEndian.AppendUint16(b, uint16(c.ID))
		b = binary.BigEndian.AppendUint32(b, c.Val)
	}
	return b
}

// appendBlock appends a header block in a HEADERS frame and as many CONTINUATION frames as it
// takes. priority is empty, or what the HEADERS frame says of the stream's priority; promised,
// unless it is 0, makes it a PUSH_PROMISE.
func appendBlock(b []byte, id, promised uint32, priority, block []byte, end bool) []byte {
	var flags http2.Flags
	kind, extra := http2.FrameHeaders, len(priority)
	switch {
	case promised != 0:
		kind, extra = http2.FramePushPromise, 4
	case extra > 0:
		flags |= http2.FlagHeadersPriority
	}
	if end {
		flags |= http2.FlagHeadersEndStream
	}
	n := min(len(block), frameSize-extra)
	if n == len(block) {
		flags |= http2.FlagHeadersEndHeaders
	}
	b = appendHeader(b, extra+n, kind, flags, id)
	if promised != 0 {
		b = binary.BigEndian.AppendUint32(b, promised)
	} else {
		b = append(b, priority...)
	}
	b = append(b, block[:n]...)
	for block = block[n:]; len(block) > 0; block = block[n:] {
		n = min(len(block), frameSize)
		flags = 0
		if n == len(block) {
			flags = http2.FlagContinuationEndHeaders
		}
		b = append(appendHeader(b, n, http2.FrameContinuation, flags, id), block[:n]...)
	}
	return b
}

// settings calls yield for each setting of a SETTINGS frame, in their order.
func settings(payload []byte, yield func(id http2.SettingID, value uint32)) {
	for ; len(payload) >= 6; payload = payload[6:] {
		yield(http2.SettingID(binary.BigEndian.Uint16(payload)), binary.BigEndian.Uint32(payload[2:]))
	}
}
