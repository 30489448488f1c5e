// SPDX-License-Identifier: Apache-2.0

package rawip

import (
	"encoding/binary"
	"testing"

	"github.com/stretchr/testify/assert"
	"golang.org/x/sys/unix"
)

// A receiver adds up everything, the checksum included, and gets 0 after the complement (RFC 1071 §1).
func TestChecksumOfAWholeSegmentIsZero(t *testing.T) {
	from, to := []byte{10, 0, 0, 1}, []byte{10, 0, 0, 2}
	for n := range 70 {
		segment := make([]byte, tcpHeader+n)
		for i := range segment {
			segment[i] = byte(i*37 + n)
		}
		binary.BigEndian.PutUint16(segment[tcpChecksum:], 0)
		sum := Checksum(unix.IPPROTO_TCP, segment, from, to)
		binary.BigEndian.PutUint16(segment[tcpChecksum:], sum)
		assert.Zero(t, Checksum(unix.IPPROTO_TCP, segment, from, to), "%d bytes", n)
	}
	// The example of RFC 1071 §3: the words sum up to ddf2.
	assert.Equal(t, ^uint16(0xddf2), Checksum(0, nil, []byte{0, 1, 0xf2, 3, 0xf4, 0xf5, 0xf6, 0xf7}))
}

// FuzzHeaders shows that whatever the kernel has copied, no header is written beyond its end.
func FuzzHeaders(f *testing.F) {
	four := make([]byte, 60)
	four[0] = 0x45
	six := make([]byte, 90)
	six[0], six[6], six[40], six[41] = 0x60, unix.IPPROTO_HOPOPTS, unix.IPPROTO_TCP, 0
	f.Add(four, 40)
	f.Add(six, 68)
	f.Add(six, 40)
	f.Add([]byte(nil), 0)
	f.Fuzz(func(t *testing.T, packet []byte, headers int) {
		if headers < 0 {
			return // it is an unsigned number of the kernel's
		}
		family, at, err := tcpOf(packet, headers)
		if err != nil {
			return
		}
		least := ip4MinHeader
		if family == unix.AF_INET6 {
			least = ip6Header
		}
		if at < least || at+tcpHeader > headers || headers > len(packet) {
			t.Fatalf("TCP at %d of %d bytes of headers", at, headers)
		}
	})
}
