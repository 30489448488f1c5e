// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

const bearer = "the-token"

// manager is the manager's side of the wire, with a laptop behind it that answers every request
// with "laptop".
type manager struct {
	agentpb.UnimplementedAgentsServer
	address, caFile, tokenFile string
	cert                       tls.Certificate
	server                     *grpc.Server

	mu         sync.Mutex
	assignment *agentpb.Assignment
	sent       chan struct{} // closed and renewed when the assignment changes
	hello      *agentpb.Hello
	report     *agentpb.Report
	reported   chan struct{} // closed and renewed with each report
	attaches   int
	refused    int                     // hellos of agents that were older than the present one
	present    context.CancelCauseFunc // ends the stream of the present agent; nil if there is none
	away       bool                    // the laptop answers nothing but that it is not there
	mute       bool                    // the laptop answers nothing at all
	tunnels    map[*tunnel.Conn]struct{}
	// asking gets the streams on which agents answer questions for environments; nil: a manager
	// that has none.
	asking chan agentpb.Agents_EnvironmentsServer
	// predates: it does not say whose environments may be read.
	predates bool
	// parking gets the streams on which agents wait for laptops' connections to pods.
	parking chan agentpb.Agents_AcceptToPodServer
}

func newManager(t *testing.T) *manager {
	t.Helper()
	m := &manager{
		sent: make(chan struct{}), reported: make(chan struct{}),
		tunnels: map[*tunnel.Conn]struct{}{},
		caFile:  filepath.Join(t.TempDir(), "ca.crt"), tokenFile: filepath.Join(t.TempDir(), "token"),
	}
	m.certify(t)
	require.NoError(t, os.WriteFile(m.tokenFile, []byte(bearer+"\n"), 0o600))
	m.start(t, "127.0.0.1:0")
	t.Cleanup(m.stop)
	return m
}

// certify gives the manager a new certificate, which is its own authority.
func (m *manager) certify(t *testing.T) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "test"},
		DNSNames:  []string{"sidestep-manager"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour), IsCA: true,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	require.NoError(t, err)
	m.cert = tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
	require.NoError(t, os.WriteFile(m.caFile,
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
}

func (m *manager) start(t *testing.T, address string) {
	t.Helper()
	l, err := net.Listen("tcp", address)
	require.NoError(t, err)
	m.address = l.Addr().String()
	m.server = grpc.NewServer(append(tunnel.ServerOptions(),
		grpc.Creds(credentials.NewServerTLSFromCert(&m.cert)))...)
	agentpb.RegisterAgentsServer(m.server, m)
	go func() { _ = m.server.Serve(l) }()
}

// stop cuts all connections, as a manager that is killed does.
func (m *manager) stop() { m.server.Stop() }

func (m *manager) authenticate(ctx context.Context) error {
	md, _ := metadata.FromIncomingContext(ctx)
	if v := md.Get("authorization"); len(v) != 1 || v[0] != "Bearer "+bearer {
		return status.Error(codes.Unauthenticated, "wrong token")
	}
	return nil
}

// assign sends an assignment to the agent, and to every one that attaches later.
func (m *manager) assign(pods ...*agentpb.Pod) uint64 {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.assignment = &agentpb.Assignment{Revision: m.assignment.GetRevision() + 1, Pods: pods,
		Environments: !m.predates}
	close(m.sent)
	m.sent = make(chan struct{})
	return m.assignment.GetRevision()
}

func (m *manager) current() (*agentpb.Assignment, <-chan struct{}) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.assignment, m.sent
}

func (m *manager) Attach(stream agentpb.Agents_AttachServer) error {
	if err := m.authenticate(stream.Context()); err != nil {
		return err
	}
	first, err := stream.Recv()
	if err != nil {
		return err
	}
	ctx, leave, err := m.admit(stream.Context(), first.GetHello())
	if err != nil {
		return err
	}
	defer leave()
	go func() {
		for {
			msg, err := stream.Recv()
			if err != nil {
				return
			}
			m.mu.Lock()
			if ctx.Err() != nil {
				m.mu.Unlock()
				return
			}
			m.report = msg.GetReport()
			close(m.reported)
			m.reported = make(chan struct{})
			m.mu.Unlock()
		}
	}()
	for {
		a, changed := m.current()
		if a != nil {
			if err := stream.Send(a); err != nil {
				return err
			}
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

var errYounger = status.Error(codes.AlreadyExists, "a newer node agent of this node is attached")

// admit lets the youngest agent in, and the older one go.
func (m *manager) admit(ctx context.Context, hello *agentpb.Hello) (_ context.Context, leave func(),
	err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.present != nil {
		if hello.GetEpoch() < m.hello.GetEpoch() {
			m.refused++
			return nil, nil, errYounger
		}
		m.present(errYounger)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	m.hello, m.report, m.present = hello, nil, cancel
	m.attaches++
	return ctx, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if context.Cause(ctx) != errYounger {
			m.present = nil
		}
		cancel(nil)
	}, nil
}

// await waits for a report that satisfies ok.
func (m *manager) await(t *testing.T, what string, ok func(*agentpb.Report) bool) *agentpb.Report {
	t.Helper()
	deadline := time.After(20 * time.Second)
	for {
		m.mu.Lock()
		r, next := m.report, m.reported
		m.mu.Unlock()
		if r != nil && ok(r) {
			return r
		}
		select {
		case <-next:
		case <-deadline:
			require.Failf(t, "no such report", "%s; the last was %v", what, r)
		}
	}
}

// steering waits until all targets of the revision, at least one, are reported as steering.
func (m *manager) steering(t *testing.T, revision uint64) {
	t.Helper()
	m.await(t, "all targets are steering", func(r *agentpb.Report) bool {
		for _, target := range r.GetTargets() {
			if !target.GetSteering() {
				return false
			}
		}
		return r.GetRevision() >= revision && len(r.GetTargets()) > 0
	})
}

// Tunnel is the laptop at the other end, too.
func (m *manager) Tunnel(stream agentpb.Agents_TunnelServer) error {
	if err := m.authenticate(stream.Context()); err != nil {
		return err
	}
	open, c, err := tunnel.Accept(stream)
	if err != nil {
		return err
	}
	m.mu.Lock()
	away, mute := m.away, m.mute
	m.tunnels[c] = struct{}{}
	m.mu.Unlock()
	defer func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		delete(m.tunnels, c)
	}()
	if mute {
		_, err := io.Copy(io.Discard, c)
		return err
	}
	if away {
		return c.Answer(tunnelpb.Opened_NO_CLIENT, "the laptop sleeps")
	}
	if err := c.Answer(tunnelpb.Opened_OK, ""); err != nil {
		return err
	}
	if open.GetProbe() {
		_, err := io.Copy(io.Discard, c)
		return err
	}
	if open.GetDatagrams() {
		return echoDatagrams(c)
	}
	l := &once{conn: c, done: make(chan struct{})}
	server := &http.Server{Handler: word("laptop"), ConnState: func(_ net.Conn, s http.ConnState) {
		if s == http.StateClosed {
			close(l.done)
		}
	}}
	_ = server.Serve(l)
	return nil
}

// laptop changes how the laptop behaves, and cuts its tunnels.
func (m *manager) laptop(away, mute bool) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.away, m.mute = away, mute
	for c := range m.tunnels {
		go c.Reset("cut")
	}
}

// once is a listener with a single connection.
type once struct {
	conn net.Conn
	mu   sync.Mutex
	done chan struct{}
}

func (o *once) Accept() (net.Conn, error) {
	o.mu.Lock()
	c := o.conn
	o.conn = nil
	o.mu.Unlock()
	if c != nil {
		return c, nil
	}
	<-o.done
	return nil, net.ErrClosed
}

func (o *once) Close() error   { return nil }
func (o *once) Addr() net.Addr { return &net.TCPAddr{} }

// word is a handler that answers with a word, and at /stream says it again and again.
func word(text string) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, err := io.WriteString(w, text)
		for r.URL.Path == streamPath && err == nil && r.Context().Err() == nil {
			time.Sleep(streamPause())
			if err = http.NewResponseController(w).Flush(); err == nil {
				_, err = io.WriteString(w, text)
			}
		}
	})
}

const streamPath = "/stream"

// streamPause is the time between two words of a stream. Hundreds of fast ones are too much for a
// virtual machine.
func streamPause() time.Duration {
	if testing.Short() {
		return time.Second
	}
	return 50 * time.Millisecond
}
