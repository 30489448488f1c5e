// SPDX-License-Identifier: Apache-2.0

package certificate

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"log/slog"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
)

// house is an installation with a clock of its own.
type house struct {
	*Keeper
	client    client.WithWatch
	now       time.Time
	connected bool // a peer is still connected from before a switch
}

// newHouse has what the chart leaves in the Secret and the ConfigMap.
func newHouse(t *testing.T, secret map[string][]byte, trusted string) *house {
	t.Helper()
	h := &house{now: time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)}
	meta := func(name string) metav1.ObjectMeta { return metav1.ObjectMeta{Namespace: "sidestep", Name: name} }
	config := map[string]string{"host-network": "allowed"}
	if trusted != "" {
		config["ca.crt"] = trusted
	}
	h.client = fake.NewClientBuilder().WithObjects(
		&corev1.Secret{ObjectMeta: meta("sidestep-manager-tls"), Data: secret},
		&corev1.ConfigMap{ObjectMeta: meta("sidestep-ca"), Data: config}).Build()
	h.restart()
	return h
}

func (h *house) restart() {
	h.Keeper = NewKeeper(KeeperConfig{
		Client: h.client, Namespace: "sidestep", Secret: "sidestep-manager-tls", ConfigMap: "sidestep-ca",
		Names: Names("sidestep"), Log: slog.New(slog.DiscardHandler), Timing: DefaultTiming(),
		Reconnected: func(time.Time) bool { return !h.connected }, Now: func() time.Time { return h.now },
	})
}

// after lets time go by, and the Keeper look every minute of it, or every hour of a long time.
func (h *house) after(t *testing.T, d time.Duration) {
	t.Helper()
	pause := time.Minute
	if d > 24*time.Hour {
		pause = time.Hour
	}
	for end := h.now.Add(d); h.now.Before(end); {
		h.now = h.now.Add(min(pause, end.Sub(h.now)))
		require.NoError(t, h.Check(t.Context()))
	}
}

// trusted returns the certificates in the ConfigMap.
func (h *house) trusted(t *testing.T) []*x509.Certificate {
	t.Helper()
	var c corev1.ConfigMap
	require.NoError(t, h.client.Get(t.Context(), h.key("sidestep-ca"), &c))
	assert.Equal(t, "allowed", c.Data["host-network"], "what else is in the ConfigMap stays")
	return parseCerts([]byte(c.Data["ca.crt"]))
}

// shown returns the certificate that the manager shows now.
func (h *house) shown(t *testing.T) *x509.Certificate {
	t.Helper()
	c, err := h.Certificate(nil)
	require.NoError(t, err)
	return c.Leaf
}

// believed reports whether a peer that trusts these certificates accepts the manager.
func (h *house) believed(t *testing.T, roots []*x509.Certificate) bool {
	t.Helper()
	pool := x509.NewCertPool()
	for _, c := range roots {
		pool.AddCert(c)
	}
	_, err := h.shown(t).Verify(x509.VerifyOptions{Roots: pool, DNSName: "sidestep-manager",
		CurrentTime: h.now})
	return err == nil
}

func (h *house) annotate(t *testing.T, value string) {
	t.Helper()
	var s corev1.Secret
	require.NoError(t, h.client.Get(t.Context(), h.key("sidestep-manager-tls"), &s))
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
	s.Annotations[RotateAnnotation] = value
	require.NoError(t, h.client.Update(t.Context(), &s))
}

// released returns what releases without rotation have left: an authority whose key was thrown
// away.
func released(t *testing.T) (secret map[string][]byte, trusted string) {
	t.Helper()
	now := time.Date(2025, 6, 1, 0, 0, 0, 0, time.UTC)
	ca, err := newAuthority(now, 3650*24*time.Hour)
	require.NoError(t, err)
	server, err := ca.issue(now, 3650*24*time.Hour, Names("sidestep"))
	require.NoError(t, err)
	key, err := encodeKey(server.PrivateKey)
	require.NoError(t, err)
	cert := encodeCerts([]*x509.Certificate{ca.cert})
	return map[string][]byte{"ca.crt": cert, "tls.crt": encodeCerts([]*x509.Certificate{server.Leaf}),
		"tls.key": key}, string(cert)
}

func TestAnInstallationWithoutCertificatesGetsThem(t *testing.T) {
	h := newHouse(t, map[string][]byte{"tls.crt": {}, "tls.key": {}}, "")
	assert.False(t, h.Ready())
	_, err := h.Certificate(nil)
	require.Error(t, err)
	require.NoError(t, h.Check(t.Context()))
	assert.True(t, h.Ready())
	assert.True(t, h.believed(t, h.trusted(t)))
	first := h.shown(t)
	h.restart()
	require.NoError(t, h.Check(t.Context()))
	assert.True(t, first.Equal(h.shown(t)), "a restart changes nothing")
}

func TestAServerCertificateIsRenewedInTime(t *testing.T) {
	h := newHouse(t, nil, "")
	require.NoError(t, h.Check(t.Context()))
	first, roots := h.shown(t), h.trusted(t)
	h.now = h.now.Add(DefaultTiming().Server / 2)
	require.NoError(t, h.Check(t.Context()))
	assert.True(t, first.Equal(h.shown(t)))
	h.now = h.now.Add(DefaultTiming().Server / 4)
	require.NoError(t, h.Check(t.Context()))
	assert.False(t, first.Equal(h.shown(t)))
	assert.True(t, h.believed(t, roots), "the authority is the same")
}

func TestAnUpgradeAdoptsTheAuthorityWhoseKeyWasThrownAway(t *testing.T) {
	secret, trusted := released(t)
	h := newHouse(t, secret, trusted)
	old := h.trusted(t)
	require.NoError(t, h.Check(t.Context()))
	assert.True(t, h.believed(t, old), "what everybody trusts is still shown")
	both := h.trusted(t)
	assert.Len(t, both, 2, "the new authority is trusted before it is used")
	h.after(t, 4*time.Minute)
	assert.True(t, h.believed(t, old))
	h.restart() // in the middle
	h.connected = true
	h.after(t, 3*time.Minute)
	assert.False(t, h.believed(t, old))
	assert.True(t, h.believed(t, both), "who has read the bundle since then need not read it again")
	assert.Len(t, h.trusted(t), 2)
	h.after(t, 2*time.Hour)
	assert.Len(t, h.trusted(t), 2, "somebody is connected from before")
	h.connected = false
	h.after(t, time.Minute)
	assert.Len(t, h.trusted(t), 1)
	assert.True(t, h.believed(t, h.trusted(t)))
}

func TestAForcedRotation(t *testing.T) {
	h := newHouse(t, nil, "")
	require.NoError(t, h.Check(t.Context()))
	old := h.trusted(t)
	h.annotate(t, "once")
	h.connected = true
	for h.believed(t, old) {
		bundle := h.trusted(t)
		h.after(t, time.Minute)
		assert.True(t, h.believed(t, bundle), "whoever reads the ConfigMap now is served for a minute, at least")
		require.Less(t, h.now.Sub(time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)), time.Hour)
	}
	h.after(t, time.Hour)
	assert.Len(t, h.trusted(t), 2)
	h.after(t, DefaultTiming().Forget)
	assert.Len(t, h.trusted(t), 1, "an authority whose key leaked is not trusted for good")
	now := h.trusted(t)
	h.after(t, time.Hour)
	assert.Equal(t, now, h.trusted(t), "one annotation asks for one rotation")
	h.annotate(t, "twice")
	h.after(t, 10*time.Minute)
	assert.False(t, h.believed(t, now))
}

func TestAnAuthorityIsReplacedBeforeItEnds(t *testing.T) {
	h := newHouse(t, nil, "")
	require.NoError(t, h.Check(t.Context()))
	old := h.trusted(t)[0]
	h.now = old.NotAfter.Add(-DefaultTiming().Authority / 4)
	h.after(t, 10*time.Minute)
	assert.False(t, h.believed(t, []*x509.Certificate{old}))
	assert.True(t, h.believed(t, h.trusted(t)))
	assert.InDelta(t, float64(h.shown(t).NotAfter.Unix()), metric(t, h.Keeper, "server"), 1)
	assert.Greater(t, metric(t, h.Keeper, "authority"), float64(old.NotAfter.Unix()))
}

func metric(t *testing.T, k *Keeper, which string) float64 {
	t.Helper()
	r := prometheus.NewRegistry()
	r.MustRegister(k)
	families, err := r.Gather()
	require.NoError(t, err)
	require.Len(t, families[0].GetMetric(), 2)
	for _, m := range families[0].GetMetric() {
		if m.GetLabel()[0].GetValue() == which {
			return m.GetGauge().GetValue()
		}
	}
	return 0
}

func TestABundleThatIsTakenAwayIsPublishedAgainAndItsTimeBeginsAnew(t *testing.T) {
	h := newHouse(t, nil, "")
	require.NoError(t, h.Check(t.Context()))
	old := h.trusted(t)
	h.annotate(t, "once")
	h.after(t, 4*time.Minute)
	var c corev1.ConfigMap // as by an upgrade that was rendered before the rotation
	require.NoError(t, h.client.Get(t.Context(), h.key("sidestep-ca"), &c))
	c.Data["ca.crt"] = string(encodeCerts(old))
	require.NoError(t, h.client.Update(t.Context(), &c))
	h.after(t, 4*time.Minute)
	assert.True(t, h.believed(t, old))
	assert.Len(t, h.trusted(t), 2)
	h.after(t, 4*time.Minute)
	assert.False(t, h.believed(t, old))
}

func TestWithoutRightsTheLastCertificateStays(t *testing.T) {
	h := newHouse(t, nil, "")
	require.NoError(t, h.Check(t.Context()))
	first := h.shown(t)
	h.cfg.Secret = "another"
	require.ErrorContains(t, h.Check(t.Context()), "read Secret another")
	assert.True(t, first.Equal(h.shown(t)))
}

func TestRunLooksUntilItIsStopped(t *testing.T) {
	h := newHouse(t, nil, "")
	h.cfg.Timing.Check = time.Millisecond
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() { defer close(done); h.Run(ctx) }()
	require.Eventually(t, h.Ready, 10*time.Second, time.Millisecond)
	assert.EqualValues(t, tls.VersionTLS13, h.ServerConfig().MinVersion)
	stop()
	<-done
}
