// SPDX-License-Identifier: Apache-2.0

package tlsbatch_test

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"io"
	"math/big"
	"net"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/tlsbatch"
)

// counting counts what is written to a connection.
type counting struct {
	net.Conn
	writes atomic.Int64
}

func (c *counting) Write(p []byte) (int, error) {
	c.writes.Add(1)
	return c.Conn.Write(p)
}

// pair makes both ends of a TLS connection; raw is below the client's.
func pair(t testing.TB) (client, server net.Conn, raw *counting) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	cert, roots := certificate(t)
	accepted := make(chan net.Conn, 1)
	go func() {
		defer close(accepted)
		conn, err := listener.Accept()
		if err != nil {
			return
		}
		sealed, _, err := tlsbatch.Credentials(
			&tls.Config{Certificates: []tls.Certificate{cert}}).ServerHandshake(conn)
		if err == nil {
			accepted <- sealed
		}
	}()
	tcp, err := net.Dial("tcp", listener.Addr().String())
	require.NoError(t, err)
	raw = &counting{Conn: tcp}
	client, err = tlsbatch.Client(t.Context(), raw,
		&tls.Config{RootCAs: roots, ServerName: "server", NextProtos: []string{"h2"}})
	require.NoError(t, err)
	server = <-accepted
	require.NotNil(t, server)
	t.Cleanup(func() { _, _ = client.Close(), server.Close() })
	return client, server, raw
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"server"},
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

func TestWhatIsWrittenAtOnceIsOnePiece(t *testing.T) {
	client, server, raw := pair(t)
	read := make(chan []byte)
	go func() {
		all, _ := io.ReadAll(server)
		read <- all
	}()
	var want []byte
	for i, size := range []int{1, 16 << 10, 16<<10 + 1, 64 << 10, 1 << 20, 3} {
		p := bytes.Repeat([]byte{byte(i)}, size)
		_, _ = rand.Read(p[:1])
		before := raw.writes.Load()
		n, err := client.Write(p)
		require.NoError(t, err)
		assert.Equal(t, size, n)
		if size != 16<<10 { // which TLS may send as small records at first
			assert.EqualValues(t, 1, raw.writes.Load()-before, "%d bytes", size)
		}
		want = append(want, p...)
	}
	require.NoError(t, client.Close())
	assert.True(t, bytes.Equal(want, <-read), "what was read differs from what was written")
}

func TestClosingDoesNotWaitForAPeerThatDoesNotRead(t *testing.T) {
	client, _, _ := pair(t)
	held := make(chan error)
	var wrote atomic.Int64
	go func() {
		p := make([]byte, 64<<10)
		for {
			n, err := client.Write(p)
			if err != nil {
				held <- err
				return
			}
			wrote.Add(int64(n))
		}
	}()
	require.Eventually(t, func() bool { // the peer's buffers are full
		before := wrote.Load()
		time.Sleep(100 * time.Millisecond)
		return before > 0 && wrote.Load() == before
	}, 20*time.Second, time.Millisecond)
	closed := make(chan struct{})
	go func() {
		_ = client.Close()
		close(closed)
	}()
	select {
	case <-closed:
	case <-time.After(4 * time.Second): // crypto/tls waits for five seconds to say goodbye
		t.Fatal("Close waits for the peer")
	}
	assert.Error(t, <-held)
}

func TestAFailedHandshakeClosesTheConnection(t *testing.T) {
	ours, theirs := net.Pipe()
	go func() {
		_, _ = theirs.Read(make([]byte, 1<<14))
		_, _ = theirs.Write([]byte("HTTP/1.1 400 Bad Request\r\n\r\n"))
	}()
	_, err := tlsbatch.Client(context.Background(), ours, &tls.Config{ServerName: "server"})
	require.Error(t, err)
	_, err = ours.Write([]byte("x"))
	assert.ErrorIs(t, err, io.ErrClosedPipe)
}

func TestAPeerThatIsNotTrustedGetsNoConnection(t *testing.T) {
	cert, _ := certificate(t)
	client, server := net.Pipe()
	defer server.Close()
	go func() {
		_, _, _ = tlsbatch.Credentials(&tls.Config{Certificates: []tls.Certificate{cert}}).ServerHandshake(server)
	}()
	conn, _, err := tlsbatch.Credentials(&tls.Config{RootCAs: x509.NewCertPool(), ServerName: "server",
		NextProtos: []string{"h2"}}).ClientHandshake(t.Context(), "server", client)
	var unknown x509.UnknownAuthorityError
	assert.ErrorAs(t, err, &unknown)
	assert.Nil(t, conn)
}
