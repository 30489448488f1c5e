// SPDX-License-Identifier: Apache-2.0

// Package http1 finds where HTTP/1 messages begin and end (RFC 9112), in bytes that it never
// changes or copies.
//
// It is made to sit in front of a server whose parser it does not know, so it is not lenient: it
// accepts the messages that every server reads alike, and calls all others a Doubt. A Doubt is no
// fault of the message; it means that from there on only the server may say what the bytes are.
package http1

// A Doubt is the reason why a message cannot be framed with certainty.
type Doubt string

// Error implements error.
func (d Doubt) Error() string { return string(d) }

// The doubts that the package has.
const (
	DoubtHeadTooLong   = Doubt("head is longer than 64 KiB")
	DoubtLineEnd       = Doubt("line does not end in CRLF")
	DoubtControl       = Doubt("control character in head")
	DoubtRequestLine   = Doubt("malformed request line")
	DoubtStatusLine    = Doubt("malformed status line")
	DoubtVersion       = Doubt("version is neither HTTP/1.0 nor HTTP/1.1")
	DoubtMethod        = Doubt("method differs from a known one only in case")
	DoubtField         = Doubt("malformed field line")
	DoubtFold          = Doubt("field line is folded")
	DoubtLength        = Doubt("malformed or repeated Content-Length")
	DoubtCoding        = Doubt("Transfer-Encoding is not exactly chunked")
	DoubtBoth          = Doubt("both Content-Length and Transfer-Encoding")
	DoubtOldCoding     = Doubt("Transfer-Encoding in an HTTP/1.0 message")
	DoubtConnectBody   = Doubt("CONNECT with a body")
	DoubtBodiless      = Doubt("body announced where there can be none")
	DoubtChunkSize     = Doubt("malformed chunk size")
	DoubtChunkExt      = Doubt("malformed or overlong chunk extension")
	DoubtChunkEnd      = Doubt("chunk does not end in CRLF")
	DoubtTrailer       = Doubt("malformed trailer field")
	DoubtTrailerLength = Doubt("trailer section is longer than 64 KiB")
)

// MaxHead is the longest head that is framed, in bytes. What the longest allowed one is, is the
// app's business.
const MaxHead = 64 << 10

// BodyKind says how the end of a body is found.
type BodyKind uint8

const (
	Sized      BodyKind = iota // Length bytes, which may be 0
	InChunks                   // chunked transfer coding
	UntilClose                 // response only: ends with the connection
	Tunnelled                  // response only: 101, or 2xx to CONNECT; no longer HTTP in both directions
)

// Body is the framing of one message's body.
type Body struct {
	Kind   BodyKind
	Length int64
}
