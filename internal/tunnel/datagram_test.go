// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/tunnel"
)

func TestDatagramsKeepTheirBounds(t *testing.T) {
	var wire bytes.Buffer
	sent := [][]byte{[]byte("one"), {}, bytes.Repeat([]byte("x"), tunnel.MaxDatagram), []byte("two")}
	var scratch []byte
	for _, d := range sent {
		var err error
		scratch, err = tunnel.WriteDatagram(&wire, d, scratch)
		require.NoError(t, err)
	}
	_, err := tunnel.WriteDatagram(&wire, make([]byte, tunnel.MaxDatagram+1), nil)
	assert.ErrorContains(t, err, "longer than any may be")
	var buffer []byte
	for i, d := range sent {
		buffer, err = tunnel.ReadDatagram(&wire, buffer)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(d, buffer), "datagram %d", i)
	}
	_, err = tunnel.ReadDatagram(&wire, buffer)
	assert.Equal(t, io.EOF, err)
}

func TestDatagramThatIsCutOffIsNone(t *testing.T) {
	for _, cut := range []string{"\x00", "\x00\x05", "\x00\x05four"} {
		_, err := tunnel.ReadDatagram(bytes.NewBufferString(cut), nil)
		assert.Equal(t, io.ErrUnexpectedEOF, err, "%q", cut)
	}
}
