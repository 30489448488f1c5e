// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"bytes"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/internal/names"
)

// KeeperConfig is what a Keeper needs.
type KeeperConfig struct {
	Client    client.Client
	Namespace string
	Secret    string // with the authority and the server's certificate
	ConfigMap string // with the certificates to trust, under ca.crt
	Names     []string
	// Reconnected reports whether no connection is left that was made before that time.
	Reconnected func(time.Time) bool
	Log         *slog.Logger
	Timing      Timing
	Now         func() time.Time
}

// Keeper keeps the manager's authority and its certificate, and replaces both in time. It stores
// them in a Secret, and what others have to trust in a ConfigMap. It is safe for concurrent use.
type Keeper struct {
	cfg KeeperConfig

	mu     sync.Mutex
	server *tls.Certificate
	ca     *x509.Certificate
}

// NewKeeper returns a Keeper. Run makes it work.
func NewKeeper(cfg KeeperConfig) *Keeper {
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	return &Keeper{cfg: cfg}
}

// Run keeps certificates until ctx is done.
func (k *Keeper) Run(ctx context.Context) {
	ticker := time.NewTicker(k.cfg.Timing.Check)
	defer ticker.Stop()
	said := ""
	for {
		err := k.Check(ctx)
		switch {
		case ctx.Err() != nil:
			return
		case err == nil:
			said = ""
		case err.Error() != said: // log it once, and not every ten seconds
			said = err.Error()
			k.cfg.Log.Error("certificates not kept", "error", err)
		}
		select {
		case <-ticker.C:
		case <-ctx.Done():
			return
		}
	}
}

// Check does what is due.
func (k *Keeper) Check(ctx context.Context) error {
	var secret corev1.Secret
	if err := k.cfg.Client.Get(ctx, k.key(k.cfg.Secret), &secret); err != nil {
		return fmt.Errorf("read Secret %s: %w", k.cfg.Secret, err)
	}
	var trusted corev1.ConfigMap
	if err := k.cfg.Client.Get(ctx, k.key(k.cfg.ConfigMap), &trusted); err != nil {
		return fmt.Errorf("read ConfigMap %s: %w", k.cfg.ConfigMap, err)
	}
	s, adopted, err := readState(&secret)
	if err != nil {
		return fmt.Errorf("read the certificate in Secret %s: %w", k.cfg.Secret, err)
	}
	before := secret.DeepCopy()
	did, err := s.step(circumstances{now: k.cfg.Now(), adopted: adopted,
		published: parseCerts([]byte(trusted.Data[names.CACert])), reconnected: k.cfg.Reconnected,
		names: k.cfg.Names}, k.cfg.Timing)
	if err != nil {
		return err
	}
	if err := s.write(&secret); err != nil {
		return err
	}
	if !same(before, &secret) {
		err := k.cfg.Client.Update(ctx, &secret)
		if apierrors.IsConflict(err) {
			return nil // another party has changed it; the next check reads it
		}
		if err != nil {
			return fmt.Errorf("update Secret %s: %w", k.cfg.Secret, err)
		}
		for _, what := range did {
			k.cfg.Log.Info("certificates", "change", what)
		}
	}
	if s.signing != nil { // an authority that was just replaced is among the previous ones
		adopted = nil
	}
	if err := k.publish(ctx, &trusted, s.bundle(adopted)); err != nil {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	k.server, k.ca = s.server, nil
	if s.signing != nil {
		k.ca = s.signing.cert
	} else if len(adopted) > 0 {
		k.ca = adopted[0]
	}
	return nil
}

func same(a, b *corev1.Secret) bool {
	if len(a.Data) != len(b.Data) || len(a.Annotations) != len(b.Annotations) {
		return false
	}
	for name, value := range a.Data {
		if !bytes.Equal(bytes.TrimSpace(value), bytes.TrimSpace(b.Data[name])) {
			return false
		}
	}
	for name, value := range a.Annotations {
		if b.Annotations[name] != value {
			return false
		}
	}
	return true
}

// publish writes the certificates to trust into the ConfigMap, and leaves its other keys as they
// are.
func (k *Keeper) publish(ctx context.Context, trusted *corev1.ConfigMap, bundle []*x509.Certificate) error {
	text := string(encodeCerts(bundle))
	if strings.TrimSpace(trusted.Data[names.CACert]) == strings.TrimSpace(text) {
		return nil
	}
	if trusted.Data == nil {
		trusted.Data = map[string]string{}
	}
	trusted.Data[names.CACert] = text
	err := k.cfg.Client.Update(ctx, trusted)
	if err != nil && !apierrors.IsConflict(err) {
		return fmt.Errorf("update ConfigMap %s: %w", k.cfg.ConfigMap, err)
	}
	return nil
}

func (k *Keeper) key(name string) client.ObjectKey {
	return client.ObjectKey{Namespace: k.cfg.Namespace, Name: name}
}

// Certificate returns the present server certificate.
func (k *Keeper) Certificate(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	if k.server == nil {
		return nil, errors.New("there is no certificate yet: the log says why")
	}
	return k.server, nil
}

// Ready reports whether there is a certificate.
func (k *Keeper) Ready() bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	return k.server != nil
}

// ServerConfig returns TLS for a server with the certificate.
func (k *Keeper) ServerConfig() *tls.Config {
	return &tls.Config{MinVersion: tls.VersionTLS13, GetCertificate: k.Certificate}
}

var expiryDesc = prometheus.NewDesc("sidestep_manager_certificate_expiry_timestamp_seconds",
	"When a certificate ends, in Unix seconds: the one that the manager shows, and its authority's.",
	[]string{"certificate"}, nil)

// Describe implements prometheus.Collector.
func (k *Keeper) Describe(out chan<- *prometheus.Desc) { out <- expiryDesc }

// Collect implements prometheus.Collector.
func (k *Keeper) Collect(out chan<- prometheus.Metric) {
	k.mu.Lock()
	server, ca := k.server, k.ca
	k.mu.Unlock()
	if server != nil {
		out <- expiry("server", server.Leaf)
	}
	if ca != nil {
		out <- expiry("authority", ca)
	}
}

func expiry(which string, c *x509.Certificate) prometheus.Metric {
	return prometheus.MustNewConstMetric(expiryDesc, prometheus.GaugeValue, float64(c.NotAfter.Unix()), which)
}

// Names returns the names by which the manager of an installation is dialled.
func Names(namespace string) []string {
	const service = names.Manager
	return slices.Clone([]string{service, service + "." + namespace, service + "." + namespace + ".svc"})
}
