// SPDX-License-Identifier: Apache-2.0

package http1

const (
	maxChunkDigits = 15
	maxChunkExt    = 4 << 10
)

type chunkState uint8

const (
	chunkStart chunkState = iota // first digit of a size
	chunkSize
	chunkExt
	chunkSizeLF
	chunkData
	chunkDataCR
	chunkDataLF
	trailerStart
	trailerName
	trailerValue
	trailerLF
	trailerEndLF
	chunkedDone
)

// Chunked follows a chunked body (RFC 9112 §7.1) to its end, trailer section included. The zero
// value is at the start of one.
type Chunked struct {
	state  chunkState
	digits uint8
	extra  int   // bytes of this extension, or of the trailer section
	left   int64 // of this chunk's data
}

// Scan reads on in p and returns how many of its bytes belong to the body, and whether the body is
// complete with them. After an error, which is a Doubt, nothing about the bytes from n on is
// certain.
func (c *Chunked) Scan(p []byte) (n int, done bool, err error) {
	for n < len(p) && c.state != chunkedDone {
		if c.state == chunkData {
			k := min(int64(len(p)-n), c.left)
			n += int(k)
			if c.left -= k; c.left == 0 {
				c.state = chunkDataCR
			}
			continue
		}
		if err := c.step(p[n]); err != nil {
			return n, false, err
		}
		n++
	}
	return n, c.state == chunkedDone, nil
}

// Data returns how many bytes of chunk data come next. The caller may pass that many on unseen and
// then Skip them.
func (c *Chunked) Data() int64 {
	if c.state == chunkData {
		return c.left
	}
	return 0
}

// Skip says that n bytes of chunk data, at most Data, were passed on unseen.
func (c *Chunked) Skip(n int64) {
	if c.left -= n; c.left == 0 {
		c.state = chunkDataCR
	}
}

func (c *Chunked) step(b byte) error {
	switch c.state {
	case chunkStart, chunkSize:
		return c.size(b)
	case chunkExt:
		switch c.extra++; {
		case b == '\r':
			c.state = chunkSizeLF
		case b < ' ' && b != '\t', b == 0x7f, c.extra > maxChunkExt:
			return DoubtChunkExt
		}
	case chunkSizeLF:
		if b != '\n' {
			return DoubtChunkSize
		}
		c.digits, c.extra = 0, 0
		c.state = chunkData
		if c.left == 0 {
			c.state = trailerStart
		}
	case chunkDataCR:
		if b != '\r' {
			return DoubtChunkEnd
		}
		c.state = chunkDataLF
	case chunkDataLF:
		if b != '\n' {
			return DoubtChunkEnd
		}
		c.state = chunkStart
	default:
		return c.trailer(b)
	}
	return nil
}

func (c *Chunked) size(b byte) error {
	var digit byte
	switch {
	case '0' <= b && b <= '9':
		digit = b - '0'
	case 'a' <= b && b <= 'f':
		digit = b - 'a' + 10
	case 'A' <= b && b <= 'F':
		digit = b - 'A' + 10
	case c.state == chunkSize && b == '\r':
		c.state = chunkSizeLF
		return nil
	case c.state == chunkSize && b == ';':
		c.state = chunkExt
		return nil
	default:
		return DoubtChunkSize
	}
	if c.digits++; c.digits > maxChunkDigits {
		return DoubtChunkSize
	}
	c.state = chunkSize
	c.left = c.left<<4 | int64(digit)
	return nil
}

func (c *Chunked) trailer(b byte) error {
	if c.extra++; c.extra > MaxHead {
		return DoubtTrailerLength
	}
	switch c.state {
	case trailerStart:
		switch {
		case b == '\r':
			c.state = trailerEndLF
		case isToken[b]:
			c.state = trailerName
		default:
			return DoubtTrailer
		}
	case trailerName:
		switch {
		case b == ':':
			c.state = trailerValue
		case !isToken[b]:
			return DoubtTrailer
		}
	case trailerValue:
		switch {
		case b == '\r':
			c.state = trailerLF
		case b < ' ' && b != '\t', b == 0x7f:
			return DoubtTrailer
		}
	case trailerLF:
		if b != '\n' {
			return DoubtTrailer
		}
		c.state = trailerStart
	case trailerEndLF:
		if b != '\n' {
			return DoubtTrailer
		}
		c.state = chunkedDone
	}
	return nil
}
