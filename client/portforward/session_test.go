// SPDX-License-Identifier: Apache-2.0

package portforward

import (
	"bytes"
	"crypto/rand"
	"io"
	"net"
	"net/http"
	"testing"
	"time"

	"github.com/moby/spdystream"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// patience is how long a test waits for what happens at once.
const patience = 20 * time.Second

// wire counts what is written to it at a time.
type wire struct {
	net.Conn
	pieces [][]byte
}

func (w *wire) Write(p []byte) (int, error) {
	w.pieces = append(w.pieces, bytes.Clone(p))
	return w.Conn.Write(p)
}

// pair is two ends of a TCP connection.
func pair(t *testing.T) (client *wire, server net.Conn) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer l.Close()
	c, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	t.Cleanup(func() { _ = c.Close() })
	server, err = l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() { _ = server.Close() })
	return &wire{Conn: c}, server
}

// serve has the implementation of SPDY that the kubelet and container runtimes use at the other
// end.
func serve(t *testing.T, conn net.Conn, handle spdystream.StreamHandler) *spdystream.Connection {
	server, err := spdystream.NewConnection(conn, true)
	require.NoError(t, err)
	go server.Serve(handle)
	return server
}

func reply(s *spdystream.Stream) { _ = s.SendReply(http.Header{}, false) }

// sendBack echoes the data stream.
func sendBack(s *spdystream.Stream) {
	reply(s)
	if s.Headers().Get("streamType") == "data" {
		go func() {
			_, _ = io.Copy(s, s)
			_ = s.Close()
		}()
	}
}

func open(raw net.Conn) (*session, error) { return openSession(raw, 8443, time.Now().Add(patience)) }

func TestFramesLeaveInOnePieceAndComeBackWhole(t *testing.T) {
	client, server := pair(t)
	serve(t, server, sendBack)
	s, err := open(client)
	require.NoError(t, err)
	opening := len(client.pieces)
	for _, size := range []int{1, 1000, maxPayload, maxPayload + 1, 1 << 20} {
		sent, got := make([]byte, size), make([]byte, size)
		_, _ = rand.Read(sent)
		client.pieces = nil
		wrote := make(chan error, 1)
		go func() { _, err := s.Write(sent); wrote <- err }()
		_, err := io.ReadFull(s, got)
		require.NoError(t, err)
		require.NoError(t, <-wrote)
		assert.True(t, bytes.Equal(sent, got))
		assert.Len(t, client.pieces, (size+maxPayload-1)/maxPayload)
	}
	assert.Equal(t, 3, opening, "two streams, and the end of one direction")
	require.NoError(t, s.Close())
	_, err = s.Read(make([]byte, 1))
	assert.Equal(t, io.EOF, err)
}

func TestPingsAreAnswered(t *testing.T) {
	client, conn := pair(t)
	server := serve(t, conn, sendBack)
	s, err := open(client)
	require.NoError(t, err)
	go func() { _, _ = s.Read(make([]byte, 1)) }()
	answered := make(chan error, 1)
	go func() { _, err := server.Ping(); answered <- err }()
	select {
	case err := <-answered:
		assert.NoError(t, err)
	case <-time.After(patience):
		assert.Fail(t, "no answer")
	}
}

func TestRefusedStreamsAreAnError(t *testing.T) {
	client, conn := pair(t)
	serve(t, conn, func(s *spdystream.Stream) { _ = s.Refuse() })
	_, err := open(client)
	assert.ErrorContains(t, err, "refused")
}

func TestSilenceIsAnErrorAtTheDeadline(t *testing.T) {
	client, _ := pair(t)
	_, err := openSession(client, 8443, time.Now().Add(20*time.Millisecond))
	var timeout net.Error
	require.ErrorAs(t, err, &timeout)
	assert.True(t, timeout.Timeout())
}

func TestStreamsThatTheOtherSideOpensAreRefused(t *testing.T) {
	client, conn := pair(t)
	server := serve(t, conn, sendBack)
	s, err := open(client)
	require.NoError(t, err)
	go func() { _, _ = s.Read(make([]byte, 1)) }()
	theirs, err := server.CreateStream(http.Header{}, nil, false)
	require.NoError(t, err)
	assert.ErrorContains(t, theirs.WaitTimeout(patience), "reset")
}

func TestWhatIsSaidOnTheErrorStreamIsKnownAtTheEnd(t *testing.T) {
	for name, late := range map[string]bool{"before the data ends": false, "after it": true} {
		t.Run(name, func(t *testing.T) {
			client, conn := pair(t)
			streams := make(chan *spdystream.Stream, 2)
			serve(t, conn, func(s *spdystream.Stream) { reply(s); streams <- s })
			s, err := open(client)
			require.NoError(t, err)
			errs, data := <-streams, <-streams
			if errs.Headers().Get("streamType") == "data" {
				errs, data = data, errs
			}
			if late {
				require.NoError(t, data.Close())
			}
			_, err = io.WriteString(errs, "no such port")
			require.NoError(t, err)
			require.NoError(t, errs.Close())
			if !late {
				require.NoError(t, data.Reset())
			}
			_, err = s.Read(make([]byte, 1))
			assert.Equal(t, io.EOF, err)
			assert.ErrorContains(t, s.reason(), "no such port")
		})
	}
}

func TestConnectionThatBreaksInAFrameIsLost(t *testing.T) {
	client, conn := pair(t)
	serve(t, conn, sendBack)
	s, err := open(client)
	require.NoError(t, err)
	_, err = conn.Write([]byte("\x00\x00\x00\x03\x00\x00\x00\x05ab")) // five bytes are announced
	require.NoError(t, err)
	got := make([]byte, 5)
	_, err = io.ReadFull(s, got[:2])
	require.NoError(t, err)
	assert.Equal(t, "ab", string(got[:2]))
	require.NoError(t, conn.Close())
	_, err = s.Read(got)
	assert.ErrorIs(t, err, ErrLost)
}

func TestNonsenseEndsASession(t *testing.T) {
	for name, sent := range map[string]string{
		"a control frame of no type": "\x80\x03\xff\xff\x00\x00\x00\x00",
		"another version":            "\x80\x02\x00\x01\x00\x00\x00\x0a0123456789",
		"text":                       "HTTP/1.1 400 Bad Request\r\n\r\n",
	} {
		t.Run(name, func(t *testing.T) {
			client, conn := pair(t)
			go func() {
				_, _ = io.WriteString(conn, sent)
				_, _ = io.Copy(io.Discard, conn)
			}()
			_, err := openSession(client, 8443, time.Now().Add(200*time.Millisecond))
			assert.Error(t, err)
		})
	}
}
