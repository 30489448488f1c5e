// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"crypto/sha256"
	"errors"
	"io"
	"net"
	"os"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/tunnel"
)

// stall writes until nothing moves any more, and returns how much went, and the channel that gets
// the blocked Write's error.
func stall(t *testing.T, w io.Writer) (int64, <-chan error) {
	t.Helper()
	var total atomic.Int64
	ended := make(chan error, 1)
	go func() {
		buf := make([]byte, 32<<10)
		for {
			n, err := w.Write(buf)
			total.Add(int64(n))
			if err != nil {
				ended <- err
				return
			}
		}
	}()
	last, since := int64(-1), time.Now()
	for time.Since(since) < 300*time.Millisecond {
		if now := total.Load(); now != last {
			last, since = now, time.Now()
		}
		time.Sleep(5 * time.Millisecond)
	}
	return last, ended
}

func TestAReaderThatStopsMakesTheWriterStop(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *manager) {
		near, far := m.pair(t)
		sent, ended := stall(t, near)
		// One window on each of the two ways to the laptop, and what the relay and the ends have in
		// hand.
		assert.LessOrEqual(t, sent, int64(2*tunnel.StreamWindow+1<<20))
		go func() { _, _ = io.CopyN(io.Discard, far, 2*sent) }()
		select {
		case err := <-ended:
			require.NoError(t, err, "writing must go on when reading does")
		case <-time.After(200 * time.Millisecond):
		}
		near.Reset("end of test")
		far.Reset("end of test")
	})
}

func TestAStalledTCPReaderBoundsWhatIsHeld(t *testing.T) {
	m, chunks, rest := newCounted(t)
	client, app, agent, laptop := m.through(t)
	_, ended := stall(t, client)
	_, held := chunks.outstanding()
	assert.LessOrEqual(t, held, 8*tunnel.ChunkSize)
	_, held = rest.outstanding()
	assert.LessOrEqual(t, held, 3*tunnel.StreamWindow)
	require.NoError(t, app.SetLinger(0))
	require.NoError(t, app.Close())
	assert.Error(t, soon(t, ended))
	assert.Error(t, soon(t, agent).err)
	assert.Error(t, soon(t, laptop).err)
}

func TestOneStalledTunnelDoesNotHoldUpOthers(t *testing.T) {
	m := newManager(t, overTLS)
	stalled, end := m.pair(t)
	stall(t, stalled)
	near, far := m.pair(t)
	exchange(t, near, far, 4<<20)
	for _, c := range []*tunnel.Conn{stalled, end, near, far} {
		c.Reset("end of test")
	}
}

func TestAWriteThatIsHeldBackEnds(t *testing.T) {
	tests := map[string]struct {
		end  func(near, far *tunnel.Conn)
		want error
	}{
		"when its connection is reset": {func(near, _ *tunnel.Conn) { near.Reset("test") },
			syscall.ECONNRESET},
		"when its connection is closed": {func(near, _ *tunnel.Conn) { _ = near.Close() },
			syscall.ECONNRESET},
		"when the peer resets": {func(_, far *tunnel.Conn) { far.Reset("test") },
			syscall.ECONNRESET},
		"when the peer closes": {func(_, far *tunnel.Conn) { _ = far.Close() },
			syscall.ECONNRESET},
		"when the deadline passes": {func(near,
			_ *tunnel.Conn) {
			_ = near.SetWriteDeadline(time.Now().Add(10 * time.Millisecond))
		},
			os.ErrDeadlineExceeded},
		"when the deadline has passed": {func(near,
			_ *tunnel.Conn) {
			_ = near.SetDeadline(time.Now())
		}, os.ErrDeadlineExceeded},
		"when the connection's client dies": {nil, syscall.ECONNRESET},
		"when the manager dies":             {nil, syscall.ECONNRESET},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			m := newManager(t, overTLS)
			near, far := m.pair(t)
			_, ended := stall(t, near)
			within(t, time.Second, func() {
				switch name {
				case "when the connection's client dies":
					_ = m.laptop.Close()
				case "when the manager dies":
					go m.server.Stop()
				default:
					test.end(near, far)
				}
			})
			assert.ErrorIs(t, soon(t, ended), test.want)
			within(t, time.Second, func() {
				_ = near.Close()
				_ = far.Close()
			})
			// The peer hears of it, whatever was in the way.
			drained := make(chan error, 1)
			go func() {
				_, err := io.Copy(io.Discard, far)
				drained <- err
			}()
			assert.Error(t, soon(t, drained))
		})
	}
}

func TestWhatWasWrittenBeforeCloseArrivesHoweverSlowlyItIsRead(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	far.SetClosePatience(100 * time.Millisecond)
	require.NoError(t, near.CloseWrite())
	_, err := far.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	want := sha256.New()
	written := make(chan error, 1)
	const size = 12 << 20 // more than all the windows
	go func() {
		_, err := io.Copy(io.MultiWriter(far, want), noise(3, size))
		written <- errors.Join(err, far.Close())
	}()
	got := sha256.New()
	_, err = io.CopyN(got, near, size/3)
	require.NoError(t, err)
	require.NoError(t, soon(t, written)) // closed, while half of it is on its way
	time.Sleep(500 * time.Millisecond)   // much longer than the patience of a closed connection
	n, err := io.Copy(got, near)
	require.NoError(t, err)
	assert.EqualValues(t, size-size/3, n)
	assert.Equal(t, want.Sum(nil), got.Sum(nil))
	require.NoError(t, near.Close())
}

func TestAPeerThatNeverClosesIsReset(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	near.SetClosePatience(50 * time.Millisecond)
	require.NoError(t, near.Close())
	_, err := far.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	assert.Eventually(t, func() bool {
		_, err := far.Write([]byte("x"))
		return errors.Is(err, syscall.ECONNRESET)
	}, 5*time.Second, 100*time.Millisecond)
	far.Reset("end of test")
}

func TestUseAfterTheEndIsAnErrorThatSaysSo(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	require.NoError(t, near.CloseWrite())
	require.NoError(t, near.CloseWrite(), "closing twice is fine")
	_, err := near.Write([]byte("x"))
	require.ErrorContains(t, err, "CloseWrite")
	require.NoError(t, near.Close())
	require.NoError(t, near.Close(), "closing twice is fine")
	_, err = near.Read(make([]byte, 1))
	require.ErrorIs(t, err, net.ErrClosed)
	require.NoError(t, far.Close())
}
