// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"math/big"
	"net"
	"runtime"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/experimental"
	"google.golang.org/grpc/mem"
	"google.golang.org/grpc/test/bufconn"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tlsbatch"
	"sidestep.dev/sidestep/internal/tunnel"
)

// manager is a gRPC server that joins each stream of a node agent with one that a laptop has
// parked, over a transport of the test's choice. The node agent and the laptop have a connection
// each.
type manager struct {
	server        *grpc.Server
	agent, laptop *grpc.ClientConn
	parked        chan parkedStream
	options       []tunnel.Option // of every Conn
}

type parkedStream struct {
	grpc.ServerStream
	done chan error
}

// transport makes a listener, and says how to dial it.
type transport func(t testing.TB) (net.Listener, []grpc.ServerOption, func() []grpc.DialOption)

func overMemory(testing.TB) (net.Listener, []grpc.ServerOption, func() []grpc.DialOption) {
	l := bufconn.Listen(1 << 20)
	return l, nil, func() []grpc.DialOption {
		return []grpc.DialOption{
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithContextDialer(func(ctx context.Context, _ string) (net.Conn,
				error) {
				return l.DialContext(ctx)
			}),
		}
	}
}

func overTLS(t testing.TB) (net.Listener, []grpc.ServerOption, func() []grpc.DialOption) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	cert, roots := certificate(t)
	server := tlsbatch.Credentials(&tls.Config{Certificates: []tls.Certificate{cert},
		MinVersion: tls.VersionTLS13})
	return l, []grpc.ServerOption{grpc.Creds(server)}, func() []grpc.DialOption {
		return []grpc.DialOption{grpc.WithTransportCredentials(
			tlsbatch.Credentials(&tls.Config{RootCAs: roots, ServerName: "manager"}))}
	}
}

func certificate(t testing.TB) (tls.Certificate, *x509.CertPool) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{SerialNumber: big.NewInt(1), DNSNames: []string{"manager"},
		NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(der)
	require.NoError(t, err)
	roots := x509.NewCertPool()
	roots.AddCert(parsed)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, roots
}

// newManager starts a manager and checks, when the test is over, that no goroutine of a tunnel is
// left.
func newManager(t testing.TB, over transport) *manager {
	return newManagerWithPool(t, over, mem.DefaultBufferPool())
}

// newManagerWithPool has gRPC take its buffers from a pool of the test's.
func newManagerWithPool(t testing.TB, over transport, pool mem.BufferPool, options ...tunnel.Option) *manager {
	t.Helper()
	m := &manager{parked: make(chan parkedStream, 4096), options: options}
	listener, credentials, dial := over(t)
	credentials = append(credentials, grpc.UnknownServiceHandler(m.handle), experimental.BufferPool(pool))
	m.server = grpc.NewServer(append(tunnel.ServerOptions(), credentials...)...)
	go func() { _ = m.server.Serve(listener) }()
	connect := func() *grpc.ClientConn {
		cc, err := grpc.NewClient("passthrough:"+listener.Addr().String(),
			append(append(tunnel.DialOptions(), dial()...), experimental.WithBufferPool(pool))...)
		require.NoError(t, err)
		t.Cleanup(func() { _ = cc.Close() })
		return cc
	}
	t.Cleanup(func() { noGoroutines(t) }) // runs last
	m.agent, m.laptop = connect(), connect()
	t.Cleanup(m.server.Stop)
	return m
}

func (m *manager) handle(_ any, s grpc.ServerStream) error {
	if method, _ := grpc.MethodFromServerStream(s); method == "/test/Accept" {
		p := parkedStream{s, make(chan error, 1)}
		m.parked <- p
		return <-p.done
	}
	open, err := tunnel.RecvOpen(s)
	if err != nil {
		return err
	}
	var p parkedStream
	select {
	case p = <-m.parked:
	case <-s.Context().Done():
		return s.Context().Err()
	}
	if err = tunnel.SendOpen(p, open); err == nil {
		err = tunnel.Relay(s, p)
	}
	p.done <- err
	return err
}

// pair is both ends of a tunnel that has been answered: near is the node agent's, far the laptop's.
func (m *manager) pair(t testing.TB) (near, far *tunnel.Conn) {
	t.Helper()
	accepted := make(chan *tunnel.Conn, 1)
	s, cancel := stream(t, m.laptop, "/test/Accept")
	go func() {
		_, c, err := tunnel.Accept(s, append(m.options, tunnel.OnClose(cancel))...)
		if err == nil {
			_ = c.Answer(tunnelpb.Opened_OK, "")
		}
		accepted <- c
	}()
	near = m.open(t)
	answer, err := near.Opened(context.Background())
	require.NoError(t, err)
	require.Equal(t, tunnelpb.Opened_OK, answer.GetResult())
	return near, <-accepted
}

func (m *manager) open(t testing.TB) *tunnel.Conn {
	t.Helper()
	s, cancel := stream(t, m.agent, "/test/Tunnel")
	open := &tunnelpb.Open{InterceptUid: "uid", RemoteAddr: "10.0.0.1:5000", LocalAddr: "10.0.0.2:8080"}
	c, err := tunnel.Open(s, open, append(m.options, tunnel.OnClose(cancel))...)
	require.NoError(t, err)
	return c
}

func stream(t testing.TB, cc *grpc.ClientConn, method string) (grpc.ClientStream, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := cc.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	require.NoError(t, err)
	return s, cancel
}

// tcpPair is two ends of a TCP connection over loopback.
func tcpPair(t testing.TB) (a, b *net.TCPConn) {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer func() { _ = l.Close() }()
	dialed, err := net.Dial("tcp", l.Addr().String())
	require.NoError(t, err)
	accepted, err := l.Accept()
	require.NoError(t, err)
	t.Cleanup(func() {
		_ = dialed.Close()
		_ = accepted.Close()
	})
	return dialed.(*net.TCPConn), accepted.(*net.TCPConn)
}

// copied is what Copy returned.
type copied struct {
	to, from int64
	err      error
}

// through joins a client and an app, TCP connections both, by a tunnel.
func (m *manager) through(t testing.TB) (client, app *net.TCPConn, agentEnd, laptopEnd chan copied) {
	t.Helper()
	near, far := m.pair(t)
	return joined(t, near, far)
}

func joined(t testing.TB, near, far *tunnel.Conn) (client, app *net.TCPConn, agentEnd, laptopEnd chan copied) {
	t.Helper()
	client, steered := tcpPair(t)
	local, app := tcpPair(t)
	run := func(tcp *net.TCPConn, c *tunnel.Conn) chan copied {
		ended := make(chan copied, 1)
		go func() {
			to, from, err := tunnel.Copy(tcp, c)
			ended <- copied{to, from, err}
		}()
		return ended
	}
	return client, app, run(steered, near), run(local, far)
}

// soon waits for a result; it is generous, since machines that test are slow.
func soon[T any](t testing.TB, c <-chan T) T {
	t.Helper()
	select {
	case v := <-c:
		return v
	case <-time.After(20 * time.Second):
		require.FailNow(t, "it did not happen", stacks())
		panic("unreachable")
	}
}

// within runs what must not block.
func within(t testing.TB, d time.Duration, f func()) {
	t.Helper()
	done := make(chan struct{})
	go func() { defer close(done); f() }()
	select {
	case <-done:
	case <-time.After(d):
		require.FailNow(t, "it blocks", stacks())
	}
}

func stacks() string {
	buf := make([]byte, 4<<20)
	return string(buf[:runtime.Stack(buf, true)])
}

func noGoroutines(t testing.TB) {
	t.Helper()
	var left []string
	for end := time.Now().Add(15 * time.Second); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		left = nil
		for g := range strings.SplitSeq(stacks(), "\n\n") {
			if strings.Contains(g, "/internal/tunnel.") {
				left = append(left, g)
			}
		}
		if len(left) == 0 {
			return
		}
	}
	t.Errorf("%d goroutines of tunnels are left:\n%s", len(left),
		strings.Join(left[:min(3, len(left))], "\n\n"))
}
