// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"bytes"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"
)

// tcpPair returns the two ends of a TCP connection, the first as a Duplex.
func tcpPair(t *testing.T) (*TCP, *net.TCPConn) {
	l, err := new(net.ListenConfig).Listen(t.Context(), "tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	s, err := l.Accept()
	require.NoError(t, err)
	d, err := NewTCP(s.(*net.TCPConn))
	require.NoError(t, err)
	c.SetDeadline(time.Now().Add(10 * time.Second))
	t.Cleanup(func() {
		d.Close()
		c.Close()
	})
	return d, c.(*net.TCPConn)
}

// plain hides that a Duplex is TCP, so that it is not spliced.
type plain struct{ *TCP }

func noise(n int) []byte {
	p := make([]byte, n)
	rand.Read(p)
	return p
}

func TestABufferHasMemoryOnlyWhileItHasBytes(t *testing.T) {
	d, c := tcpPair(t)
	var b Buffer
	time.AfterFunc(20*time.Millisecond, func() { c.Write([]byte("hello")) })
	require.NoError(t, d.Fill(&b))
	assert.Equal(t, "hello", string(b.Bytes()))
	b.Drop(2)
	assert.Equal(t, "llo", string(b.Bytes()))
	b.Drop(3)
	assert.Nil(t, b.mem)
	d.SetReadDeadline(time.Now())
	assert.True(t, Interrupted(d.Fill(&b)))
	assert.Nil(t, b.mem)
	d.SetReadDeadline(time.Time{})
	c.CloseWrite()
	assert.Equal(t, io.EOF, d.Fill(&b))
	assert.Nil(t, b.mem)
}

func TestABufferGrowsToItsBound(t *testing.T) {
	for _, of := range []func(*TCP) Duplex{
		func(d *TCP) Duplex { return d },
		func(d *TCP) Duplex { return Of(d.conn.(*net.TCPConn), d.Reset) },
	} {
		tcp, c := tcpPair(t)
		d := of(tcp)
		data := noise(2 * Large)
		go c.Write(data)
		var b Buffer
		var err error
		for err == nil {
			err = d.Fill(&b)
		}
		assert.Equal(t, ErrFull, err)
		assert.True(t, bytes.Equal(data[:Large], b.Bytes()))
		b.Drop(1000)
		require.NoError(t, d.Fill(&b))
		assert.True(t, bytes.Equal(data[1000:1000+b.Len()], b.Bytes()))
		b.Free()
		assert.Zero(t, b.Len())
	}
}

func TestCopyNPassesExactlyN(t *testing.T) {
	for name, hide := range map[string]func(*TCP) Duplex{
		"spliced": func(d *TCP) Duplex { return d },
		"copied":  func(d *TCP) Duplex { return plain{d} },
	} {
		t.Run(name, func(t *testing.T) {
			src, from := tcpPair(t)
			dst, to := tcpPair(t)
			data := noise(3_000_000)
			go from.Write(data)
			got := make([]byte, 2_000_000)
			read := make(chan error, 1)
			go func() {
				time.Sleep(50 * time.Millisecond) // the pipe and the socket are full by then
				_, err := io.ReadFull(to, got)
				read <- err
			}()
			var b Buffer
			srcErr, dstErr := CopyN(dst, hide(src), &b, 2_000_000)
			require.NoError(t, srcErr)
			require.NoError(t, dstErr)
			require.NoError(t, <-read)
			assert.True(t, bytes.Equal(data[:2_000_000], got))
			rest := append([]byte(nil), b.Bytes()...)
			b.Free()
			for len(rest) < 1_000_000 {
				require.NoError(t, src.Fill(&b))
				rest = append(rest, b.Bytes()...)
				b.Free()
			}
			assert.True(t, bytes.Equal(data[2_000_000:], rest), "what is behind stays")
		})
	}
}

func TestErrorsTellWhoseTheyAre(t *testing.T) {
	for name, hide := range map[string]func(*TCP) Duplex{
		"spliced": func(d *TCP) Duplex { return d },
		"copied":  func(d *TCP) Duplex { return plain{d} },
	} {
		t.Run(name, func(t *testing.T) {
			src, from := tcpPair(t)
			dst, _ := tcpPair(t)
			from.Write([]byte("some"))
			from.CloseWrite()
			srcErr, dstErr := CopyN(dst, hide(src), new(Buffer), 1<<20)
			assert.Equal(t, io.EOF, srcErr)
			assert.NoError(t, dstErr)

			src, resetting := tcpPair(t)
			time.AfterFunc(20*time.Millisecond, func() {
				resetting.SetLinger(0)
				resetting.Close()
			})
			srcErr, dstErr = CopyN(dst, hide(src), new(Buffer), 1<<20)
			assert.ErrorIs(t, srcErr, syscall.ECONNRESET)
			assert.True(t, IsReset(srcErr))
			assert.NoError(t, dstErr)

			src, sending := tcpPair(t)
			dst, to := tcpPair(t)
			go sending.Write(noise(20 << 20))
			time.AfterFunc(20*time.Millisecond, func() {
				to.SetLinger(0)
				to.Close()
			})
			srcErr, dstErr = CopyN(dst, hide(src), new(Buffer), 20<<20)
			assert.NoError(t, srcErr)
			assert.True(t, errors.Is(dstErr, syscall.ECONNRESET) || errors.Is(dstErr, syscall.EPIPE),
				"%v", dstErr)
		})
	}
}

func TestJoin(t *testing.T) {
	t.Run("passes everything and both half-closes", func(t *testing.T) {
		a, ca := tcpPair(t)
		b, cb := tcpPair(t)
		up, down := noise(5<<20), noise(3<<20)
		ca.Write(up[:100])
		var first Buffer
		require.NoError(t, a.Fill(&first))
		done := make(chan struct{})
		go func() {
			Join(a, b, &first)
			close(done)
		}()
		go func() {
			ca.Write(up[100:])
			ca.CloseWrite()
		}()
		written := make(chan struct{})
		go func() {
			cb.Write(down)
			close(written)
		}()
		got, err := io.ReadAll(cb)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(up, got))
		go func() {
			<-written
			cb.CloseWrite() // only now
		}()
		got, err = io.ReadAll(ca)
		require.NoError(t, err)
		assert.True(t, bytes.Equal(down, got))
		<-done
	})
	t.Run("passes a reset", func(t *testing.T) {
		a, ca := tcpPair(t)
		b, cb := tcpPair(t)
		go Join(a, b, new(Buffer))
		cb.SetLinger(0)
		cb.Close()
		_, err := ca.Read(make([]byte, 1))
		assert.ErrorIs(t, err, syscall.ECONNRESET)
	})
}

func TestPipesAreNotHeldWhileIdle(t *testing.T) {
	src, from := tcpPair(t)
	dst, to := tcpPair(t)
	go Copy(dst, src, new(Buffer))
	data := noise(4 << 20)
	go from.Write(data)
	got := make([]byte, len(data))
	_, err := io.ReadFull(to, got)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(data, got))
	assert.Eventually(t, func() bool { return len(pipes) > 0 }, time.Second, time.Millisecond)
	from.Write([]byte("x"))
	_, err = to.Read(got)
	require.NoError(t, err)
}

func TestLastBytesLeaveTogetherWithTheEnd(t *testing.T) {
	d, c := tcpPair(t)
	assert.False(t, d.Ended(), "nothing has been said")
	c.Write([]byte("question"))
	c.CloseWrite()
	var b Buffer
	require.NoError(t, d.Fill(&b))
	assert.Equal(t, "question", string(b.Bytes()))
	require.Eventually(t, d.Ended, 10*time.Second, time.Millisecond)
	b.Free()
	assert.Equal(t, io.EOF, d.Fill(&b), "looking takes nothing")

	raw, err := c.SyscallConn()
	require.NoError(t, err)
	segments := func() (n uint32) {
		raw.Control(func(fd uintptr) {
			info, err := unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO)
			require.NoError(t, err)
			n = info.Segs_in
		})
		return n
	}
	before := segments()
	n, err := d.WriteLast([]byte("answer"))
	require.NoError(t, err)
	assert.Equal(t, 6, n)
	require.NoError(t, d.CloseWrite())
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.Equal(t, "answer", string(got))
	assert.Equal(t, before+1, segments())
}

func TestLastBytesWaitForRoom(t *testing.T) {
	d, c := tcpPair(t)
	data := noise(20 << 20)
	go func() {
		d.WriteLast(data)
		d.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(data, got))

	require.NoError(t, d.Close())
	_, err = d.WriteLast(data)
	assert.Error(t, err)
}
