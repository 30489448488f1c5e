// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"encoding/binary"
	"fmt"
	"io"
	"math"
)

// MaxDatagram is the most that a datagram may hold, in bytes.
const MaxDatagram = math.MaxUint16

// datagramHead is the length that precedes each datagram in a tunnel.
const datagramHead = 2

// WriteDatagram sends one datagram. scratch is used and returned, so that the next call needs no
// new memory.
func WriteDatagram(w io.Writer, datagram, scratch []byte) ([]byte, error) {
	if len(datagram) > MaxDatagram {
		return scratch, fmt.Errorf("a datagram of %d bytes is longer than any may be", len(datagram))
	}
	scratch = binary.BigEndian.AppendUint16(scratch[:0], uint16(len(datagram)))
	scratch = append(scratch, datagram...)
	_, err := w.Write(scratch)
	return scratch, err
}

// ReadDatagram receives one datagram into buffer, which it replaces if it is too short. io.EOF
// means that there are no more; one that is cut off is io.ErrUnexpectedEOF.
func ReadDatagram(r io.Reader, buffer []byte) ([]byte, error) {
	var head [datagramHead]byte
	if _, err := io.ReadFull(r, head[:]); err != nil {
		return buffer[:0], err
	}
	n := int(binary.BigEndian.Uint16(head[:]))
	if cap(buffer) < n {
		buffer = make([]byte, n)
	}
	buffer = buffer[:n]
	if _, err := io.ReadFull(r, buffer); err == io.EOF {
		return buffer[:0], io.ErrUnexpectedEOF
	} else if err != nil {
		return buffer[:0], err
	}
	return buffer, nil
}
