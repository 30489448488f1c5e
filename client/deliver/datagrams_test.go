// SPDX-License-Identifier: Apache-2.0

package deliver_test

import (
	"crypto/rand"
	"io"
	"net"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// echo is a local process that sends every datagram back, but for those that say "hush".
func echo(t *testing.T, addr string) *net.UDPConn {
	c, err := net.ListenPacket("udp", addr)
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	go func() {
		buffer := make([]byte, 1<<16)
		for {
			n, from, err := c.ReadFrom(buffer)
			if err != nil {
				return
			}
			if string(buffer[:n]) != "hush" {
				_, _ = c.WriteTo(buffer[:n], from)
			}
		}
	}()
	return c.(*net.UDPConn)
}

func receive(t *testing.T, c *tunnel.Conn) []byte {
	t.Helper()
	require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
	d, err := tunnel.ReadDatagram(c, nil)
	require.NoError(t, err)
	return d
}

func TestDatagrams(t *testing.T) {
	t.Run("go to the local port and back, whatever their size", func(t *testing.T) {
		m, _, _ := pool(t, to(echo(t, "127.0.0.1:0").LocalAddr().String()))
		m.first = []byte("first")
		c, opened := m.open(t)
		require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
		assert.Equal(t, "first", string(receive(t, c)))
		for _, size := range []int{0, 1, 1500, 9000, 65507} {
			sent := make([]byte, size)
			_, _ = rand.Read(sent)
			_, err := tunnel.WriteDatagram(c, sent, nil)
			require.NoError(t, err)
			assert.True(t, slices.Equal(sent, receive(t, c)), "%d bytes", size)
		}
		require.NoError(t, c.CloseWrite())
		_, err := io.Copy(io.Discard, c)
		assert.NoError(t, err, "the flow ends in order")
	})
	t.Run("of many clients do not mix", func(t *testing.T) {
		m, _, _ := pool(t, to(echo(t, "127.0.0.1:0").LocalAddr().String()))
		var flows []*tunnel.Conn
		for i := range 100 {
			m.first = []byte{byte(i)}
			c, opened := m.open(t)
			require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
			flows = append(flows, c)
		}
		for i, c := range flows {
			assert.Equal(t, []byte{byte(i)}, receive(t, c))
		}
	})
	t.Run("may go unanswered", func(t *testing.T) {
		m, _, _ := pool(t, to(echo(t, "127.0.0.1:0").LocalAddr().String()))
		m.first = []byte("hush")
		c, opened := m.open(t)
		require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
		_, err := tunnel.WriteDatagram(c, []byte("and now?"), nil)
		require.NoError(t, err)
		assert.Equal(t, "and now?", string(receive(t, c)))
	})
	t.Run("find a process on the other loopback address", func(t *testing.T) {
		_, port, err := net.SplitHostPort(echo(t, "[::1]:0").LocalAddr().String())
		require.NoError(t, err)
		m, _, _ := pool(t, to("127.0.0.1:"+port))
		m.first = []byte("first")
		c, opened := m.open(t)
		require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
		assert.Equal(t, "first", string(receive(t, c)))
	})
	t.Run("are refused where nothing listens", func(t *testing.T) {
		process := echo(t, "127.0.0.1:0")
		require.NoError(t, process.Close())
		m, _, _ := pool(t, to(process.LocalAddr().String()))
		m.first = []byte("first")
		_, opened := m.open(t)
		assert.Equal(t, tunnelpb.Opened_REFUSED, opened.GetResult())
		assert.Equal(t, "nothing listens on "+process.LocalAddr().String(), opened.GetMessage())
	})
	t.Run("are refused when the process has gone", func(t *testing.T) {
		process := echo(t, "127.0.0.1:0")
		m, _, _ := pool(t, to(process.LocalAddr().String()))
		m.first = []byte("first")
		c, opened := m.open(t)
		require.Equal(t, tunnelpb.Opened_OK, opened.GetResult())
		assert.Equal(t, "first", string(receive(t, c)))
		require.NoError(t, process.Close())
		_, err := tunnel.WriteDatagram(c, []byte("second"), nil)
		require.NoError(t, err)
		require.NoError(t, c.SetReadDeadline(time.Now().Add(patience)))
		_, err = tunnel.ReadDatagram(c, nil)
		var reset *tunnel.ResetError
		require.ErrorAs(t, err, &reset)
		assert.Contains(t, reset.Reason, "nothing listens")
		_, opened = m.open(t)
		assert.Equal(t, tunnelpb.Opened_REFUSED, opened.GetResult(), "the session goes on")
	})
}
