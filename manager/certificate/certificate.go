// SPDX-License-Identifier: Apache-2.0

// Package certificate provides the manager's server certificate. Either the manager keeps it in a
// Secret, with the authority that issues it (Keeper), or another party renews it in a directory
// (Files), as Kubernetes does with a mounted Secret. Neither needs a restart.
package certificate

import (
	"crypto/tls"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

// checkEvery is the shortest pause between two checks, by handshakes, whether the files have
// changed.
const checkEvery = time.Second

// Files is a certificate and its key in files. It is safe for concurrent use.
type Files struct {
	cert, key string

	mu      sync.Mutex
	checked time.Time
	seen    [2]time.Time // modification times of the loaded files
	loaded  *tls.Certificate
}

// FromDir reads tls.crt and tls.key in a directory.
func FromDir(dir string) (*Files, error) {
	f := &Files{cert: filepath.Join(dir, "tls.crt"), key: filepath.Join(dir, "tls.key")}
	seen, err := f.times()
	if err == nil {
		err = f.load(seen)
	}
	if err != nil {
		return nil, fmt.Errorf("read the TLS certificate: %w (the chart mounts Secret sidestep-manager-tls there)", err)
	}
	return f, nil
}

func (f *Files) times() ([2]time.Time, error) {
	cert, err1 := os.Stat(f.cert)
	key, err2 := os.Stat(f.key)
	if err := errors.Join(err1, err2); err != nil {
		return [2]time.Time{}, err
	}
	return [2]time.Time{cert.ModTime(), key.ModTime()}, nil
}

func (f *Files) load(seen [2]time.Time) error {
	pair, err := tls.LoadX509KeyPair(f.cert, f.key)
	if err != nil {
		return err
	}
	f.loaded, f.seen, f.checked = &pair, seen, time.Now()
	return nil
}

// Get returns the present certificate. While the files are being changed, or are broken, the last
// good one stays.
func (f *Files) Get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if time.Since(f.checked) >= checkEvery {
		f.checked = time.Now()
		if seen, err := f.times(); err == nil && seen != f.seen {
			_ = f.load(seen) // a later handshake tries again
		}
	}
	return f.loaded, nil
}

// ServerConfig returns TLS for a server with this certificate.
func (f *Files) ServerConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: f.Get}
}

// Describe implements prometheus.Collector.
func (f *Files) Describe(out chan<- *prometheus.Desc) { out <- expiryDesc }

// Collect implements prometheus.Collector.
func (f *Files) Collect(out chan<- prometheus.Metric) {
	if c, err := f.Get(nil); err == nil && c.Leaf != nil {
		out <- expiry("server", c.Leaf)
	}
}
