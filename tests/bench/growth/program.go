// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// program is a manager at work, in a process of its own.
type program struct {
	cmd        *exec.Cmd
	grpc, http string
}

// start starts the manager with the chart's memory limit.
func (w *world) start(ctx context.Context, path string) (*program, error) {
	addresses := make([]string, 2)
	for i := range addresses {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			return nil, err
		}
		addresses[i] = l.Addr().String()
		if err := l.Close(); err != nil {
			return nil, err
		}
	}
	log, err := os.Create(filepath.Join(w.dir, "manager.log"))
	if err != nil {
		return nil, err
	}
	defer log.Close()
	p := &program{grpc: addresses[0], http: addresses[1]}
	p.cmd = exec.CommandContext(ctx, path, "--kubeconfig", w.kubeconfig, "--tls-dir", w.dir,
		"--namespace", installation,
		"--grpc-address", p.grpc, "--http-address", p.http,
		"--connect-address", "127.0.0.1:0")
	p.cmd.Env = append(os.Environ(), "GOMEMLIMIT=512MiB")
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Cancel = func() error { return p.cmd.Process.Signal(os.Interrupt) }
	p.cmd.WaitDelay = 10 * time.Second
	return p, p.cmd.Start()
}

func (p *program) stop() {
	_ = p.cmd.Cancel()
	_ = p.cmd.Wait()
}

// quiet waits until the manager has no more statuses to write.
func (p *program) quiet(ctx context.Context) error {
	last, since := "", time.Now()
	return until(ctx, "the manager has written all statuses", func() bool {
		if time.Since(since) < time.Second {
			return false
		}
		before := last
		last, since = p.writes(), time.Now()
		return last != "" && last == before
	})
}

// writes returns what the manager's metrics say of statuses written.
func (p *program) writes() string {
	answer, err := http.Get("http://" + p.http + "/metrics")
	if err != nil {
		return ""
	}
	defer answer.Body.Close()
	for lines := bufio.NewScanner(answer.Body); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), `sidestep_manager_status_writes_total{result="written"}`) {
			return lines.Text()
		}
	}
	return ""
}

// patience bounds each wait: ten thousand statuses take a while to be written.
const patience = 2 * time.Minute

func until(ctx context.Context, what string, holds func() bool) error {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	for tick := time.NewTicker(2 * time.Millisecond); !holds(); {
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait until %s: %w", what, ctx.Err())
		case <-tick.C:
		}
	}
	return nil
}

// writeCertificate writes the manager's certificate to tls.crt and tls.key, and to ca.crt for its
// node agents.
func writeCertificate(dir string) (*x509.CertPool, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, err
	}
	c := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "sidestep-manager"},
		DNSNames:  []string{"sidestep-manager"},
		NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(24 * time.Hour), IsCA: true,
		BasicConstraintsValid: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, c, c, key.Public(), key)
	if err != nil {
		return nil, err
	}
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, err
	}
	text := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	for name, content := range map[string][]byte{
		"tls.crt": text, "ca.crt": text,
		"tls.key": pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}),
	} {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o600); err != nil {
			return nil, err
		}
	}
	pool := x509.NewCertPool()
	pool.AppendCertsFromPEM(text)
	return pool, nil
}
