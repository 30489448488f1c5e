// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"net"
	"os"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/tlsbatch"
)

// Files returns dial options that trust the certificates in caFile and identify the caller by the
// token in tokenFile. Both files are replaced from time to time, so they are read whenever they are
// needed.
func Files(caFile, tokenFile string) []grpc.DialOption {
	return []grpc.DialOption{
		grpc.WithTransportCredentials(transport{credentials.NewTLS(&tls.Config{}), caFile}),
		grpc.WithPerRPCCredentials(&token{file: tokenFile}),
	}
}

// transport is TLS with the roots that the file has at the time of a handshake.
type transport struct {
	credentials.TransportCredentials
	caFile string
}

func (t transport) ClientHandshake(ctx context.Context, _ string, raw net.Conn) (net.Conn,
	credentials.AuthInfo, error) {
	pem, err := os.ReadFile(t.caFile)
	if err != nil {
		return nil, nil, fmt.Errorf("read the manager's certificate authority: %w", err)
	}
	roots := x509.NewCertPool()
	if !roots.AppendCertsFromPEM(pem) {
		return nil, nil, fmt.Errorf("read the manager's certificate authority: %s holds no certificate",
			t.caFile)
	}
	return tlsbatch.Credentials(&tls.Config{RootCAs: roots, ServerName: names.Manager,
		MinVersion: tls.VersionTLS13}).
		ClientHandshake(ctx, names.Manager, raw)
}

func (t transport) Clone() credentials.TransportCredentials {
	return transport{t.TransportCredentials.Clone(), t.caFile}
}

// token is the bearer token in a file.
type token struct {
	file string

	mu       sync.Mutex
	modified time.Time
	value    string
}

func (t *token) RequireTransportSecurity() bool { return true }

func (t *token) GetRequestMetadata(context.Context, ...string) (map[string]string, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	info, err := os.Stat(t.file)
	if err != nil {
		return nil, fmt.Errorf("read the node agent's token: %w", err)
	}
	if t.value == "" || !info.ModTime().Equal(t.modified) {
		text, err := os.ReadFile(t.file)
		if err != nil {
			return nil, fmt.Errorf("read the node agent's token: %w", err)
		}
		t.value, t.modified = string(bytes.TrimSpace(text)), info.ModTime()
	}
	return map[string]string{"authorization": "Bearer " + t.value}, nil
}
