// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"crypto/sha256"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// eachTransport runs a test over memory and over TLS on loopback.
func eachTransport(t *testing.T, test func(t *testing.T, m *manager)) {
	for name, over := range map[string]transport{"over memory": overMemory, "over TLS": overTLS} {
		t.Run(name, func(t *testing.T) { test(t, newManager(t, over)) })
	}
}

// noise is size bytes that no two seeds have in common.
func noise(seed uint64, size int64) io.Reader {
	var key [32]byte
	key[0], key[1] = byte(seed), byte(seed>>8)
	return io.LimitReader(rand.NewChaCha8(key), size)
}

type halfCloser interface {
	io.ReadWriter
	CloseWrite() error
}

// exchange sends noise both ways at once, half-closes, and checks what arrives.
func exchange(t *testing.T, a, b halfCloser, size int64) {
	t.Helper()
	var all sync.WaitGroup
	for seed, way := range [][2]halfCloser{{a, b}, {b, a}} {
		all.Go(func() {
			n, err := io.Copy(way[0], noise(uint64(seed), size))
			assert.NoError(t, err)
			assert.Equal(t, size, n)
			assert.NoError(t, way[0].CloseWrite())
		})
		all.Go(func() {
			got, want := sha256.New(), sha256.New()
			_, _ = io.Copy(want, noise(uint64(seed), size))
			n, err := io.Copy(got, way[1])
			assert.NoError(t, err)
			assert.Equal(t, size, n)
			assert.Equal(t, want.Sum(nil), got.Sum(nil), "the bytes differ")
		})
	}
	all.Wait()
}

func TestBytesArriveUnchangedBothWaysAtOnce(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *manager) {
		t.Run("between the ends of a tunnel", func(t *testing.T) {
			near, far := m.pair(t)
			exchange(t, near, far, 8<<20)
			require.NoError(t, near.Close())
			require.NoError(t, far.Close())
		})
		t.Run("between TCP connections", func(t *testing.T) {
			client, app, agent, laptop := m.through(t)
			exchange(t, client, app, 8<<20)
			for _, end := range []chan copied{agent, laptop} {
				c := soon(t, end)
				assert.NoError(t, c.err)
				assert.EqualValues(t, 8<<20, c.to)
				assert.EqualValues(t, 8<<20, c.from)
			}
		})
	})
}

func TestAHalfCloseLeavesTheOtherDirectionOpen(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *manager) {
		client, app, agent, laptop := m.through(t)
		_, err := client.Write([]byte("request"))
		require.NoError(t, err)
		require.NoError(t, client.CloseWrite())
		request, err := io.ReadAll(app)
		require.NoError(t, err)
		assert.Equal(t, "request", string(request))
		_, err = app.Write([]byte("response"))
		require.NoError(t, err)
		require.NoError(t, app.CloseWrite())
		response, err := io.ReadAll(client)
		require.NoError(t, err)
		assert.Equal(t, "response", string(response))
		assert.NoError(t, soon(t, agent).err)
		assert.NoError(t, soon(t, laptop).err)
	})
}

func TestAnAppMayHalfCloseFirst(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *manager) {
		client, app, agent, laptop := m.through(t)
		require.NoError(t, app.CloseWrite())
		_, err := client.Read(make([]byte, 1))
		require.Equal(t, io.EOF, err)
		_, err = client.Write([]byte("more"))
		require.NoError(t, err)
		require.NoError(t, client.Close())
		more, err := io.ReadAll(app)
		require.NoError(t, err)
		assert.Equal(t, "more", string(more))
		assert.NoError(t, soon(t, agent).err)
		assert.NoError(t, soon(t, laptop).err)
	})
}

func TestWhatIsWrittenBeforeTheAnswerArrivesFirst(t *testing.T) {
	m := newManager(t, overTLS)
	near := m.open(t)
	_, err := near.Write([]byte("first bytes"))
	require.NoError(t, err)
	s, cancel := stream(t, m.laptop, "/test/Accept")
	open, far, err := tunnel.Accept(s, tunnel.OnClose(cancel))
	require.NoError(t, err)
	assert.Equal(t, "uid", open.GetInterceptUid())
	assert.Equal(t, "10.0.0.1:5000", far.RemoteAddr().String())
	require.NoError(t, far.Answer(tunnelpb.Opened_OK, "welcome"))
	got := make([]byte, 11)
	_, err = io.ReadFull(far, got)
	require.NoError(t, err)
	assert.Equal(t, "first bytes", string(got))
	answer, err := near.Opened(t.Context())
	require.NoError(t, err)
	assert.Equal(t, "welcome", answer.GetMessage())
	require.NoError(t, near.Close())
	require.NoError(t, far.Close())
}

// A laptop refuses while the request's bytes, sent along with OPEN, lie unread.
func TestARefusalArrivesThoughDataWasSentAhead(t *testing.T) {
	m := newManager(t, overTLS)
	for range 50 {
		near := m.open(t)
		_, err := near.Write(make([]byte, 20<<10))
		require.NoError(t, err)
		s, cancel := stream(t, m.laptop, "/test/Accept")
		_, far, err := tunnel.Accept(s, tunnel.OnClose(cancel))
		require.NoError(t, err)
		require.NoError(t, far.Answer(tunnelpb.Opened_REFUSED, "nothing listens"))
		require.NoError(t, far.Close())
		answer, err := near.Opened(t.Context())
		require.NoError(t, err)
		require.Equal(t, tunnelpb.Opened_REFUSED, answer.GetResult())
		near.Reset("refused")
	}
}

func TestAResetEndsBothDirectionsOfTheOtherEnd(t *testing.T) {
	eachTransport(t, func(t *testing.T, m *manager) {
		for _, name := range []string{"the node agent's", "the laptop's"} {
			t.Run(name+" reset", func(t *testing.T) {
				from, to := m.pair(t)
				if name == "the laptop's" {
					from, to = to, from
				}
				from.Reset("the test says so")
				_, err := to.Read(make([]byte, 1))
				assert.ErrorIs(t, err, syscall.ECONNRESET)
				reset, ok := errors.AsType[*tunnel.ResetError](err)
				require.True(t, ok, "%v", err)
				assert.Contains(t, reset.Reason, "the test says so")
				assert.Eventually(t, func() bool {
					_, err := to.Write([]byte("x"))
					return errors.Is(err, syscall.ECONNRESET)
				}, 5*time.Second, time.Millisecond)
				_, err = from.Read(make([]byte, 1))
				assert.ErrorIs(t, err, syscall.ECONNRESET)
				_, err = from.Write([]byte("x"))
				assert.ErrorIs(t, err, syscall.ECONNRESET)
			})
		}
	})
}

func TestAResetAfterAHalfCloseArrives(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	require.NoError(t, near.CloseWrite())
	_, err := far.Read(make([]byte, 1))
	require.Equal(t, io.EOF, err)
	near.Reset("changed its mind")
	assert.Eventually(t, func() bool {
		_, err := far.Write([]byte("x"))
		return errors.Is(err, syscall.ECONNRESET)
	}, 5*time.Second, time.Millisecond)
}

func TestWhatArrivedBeforeAResetCanBeRead(t *testing.T) {
	m := newManager(t, overTLS)
	for range 50 {
		near, far := m.pair(t)
		_, err := near.Write([]byte("last words"))
		require.NoError(t, err)
		near.Reset("gone")
		got, err := io.ReadAll(far)
		require.ErrorIs(t, err, syscall.ECONNRESET)
		require.Equal(t, "last words", string(got))
	}
}

func TestClosingWithUnreadDataResets(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	_, err := near.Write([]byte("nobody reads this"))
	require.NoError(t, err)
	require.NoError(t, far.Close())
	_, err = io.ReadAll(near)
	if err == nil { // FIN came first
		assert.Eventually(t, func() bool {
			_, err := near.Write([]byte("x"))
			return errors.Is(err, syscall.ECONNRESET)
		}, 5*time.Second, time.Millisecond)
	} else {
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	}
	_ = near.Close()
}

func TestAWaitingReadEndsAtOnce(t *testing.T) {
	tests := map[string]struct {
		end  func(near, far *tunnel.Conn)
		want error
	}{
		"when its connection is closed": {func(near, _ *tunnel.Conn) { _ = near.Close() }, net.ErrClosed},
		"when its connection is reset": {func(near, _ *tunnel.Conn) { near.Reset("test") },
			syscall.ECONNRESET},
		"when the peer resets": {func(_, far *tunnel.Conn) { far.Reset("test") },
			syscall.ECONNRESET},
		"when the peer half-closes": {func(_, far *tunnel.Conn) { _ = far.CloseWrite() }, io.EOF},
		"when its deadline is moved": {func(near,
			_ *tunnel.Conn) {
			_ = near.SetReadDeadline(time.Now())
		}, os.ErrDeadlineExceeded},
		"when both deadlines are moved": {func(near,
			_ *tunnel.Conn) {
			_ = near.SetDeadline(time.Now())
		}, os.ErrDeadlineExceeded},
		"when a deadline ahead has passed": {func(near,
			_ *tunnel.Conn) {
			_ = near.SetReadDeadline(time.Now().Add(20 * time.Millisecond))
		},
			os.ErrDeadlineExceeded},
	}
	m := newManager(t, overTLS)
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			near, far := m.pair(t)
			ended := make(chan error, 1)
			go func() {
				_, err := near.Read(make([]byte, 1))
				ended <- err
			}()
			time.Sleep(10 * time.Millisecond) // let it wait; the test holds without
			test.end(near, far)
			assert.ErrorIs(t, soon(t, ended), test.want)
			near.Reset("end of test")
			far.Reset("end of test")
		})
	}
}

func TestADeadlineThatWasLiftedLeavesTheConnectionUsable(t *testing.T) {
	m := newManager(t, overTLS)
	near, far := m.pair(t)
	require.NoError(t, near.SetDeadline(time.Now().Add(-time.Second)))
	_, err := near.Read(make([]byte, 1))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	_, err = near.Write([]byte("x"))
	require.ErrorIs(t, err, os.ErrDeadlineExceeded)
	require.NoError(t, near.SetDeadline(time.Time{}))
	exchange(t, near, far, 1<<20)
	require.NoError(t, near.Close())
	require.NoError(t, far.Close())
}
