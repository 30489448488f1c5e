// SPDX-License-Identifier: Apache-2.0

package certificate_test

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"math/big"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/manager/certificate"
)

func write(t *testing.T, dir string, serial int64) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	require.NoError(t, err)
	cert := &x509.Certificate{SerialNumber: big.NewInt(serial), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, cert, cert, key.Public(), key)
	require.NoError(t, err)
	keyDER, err := x509.MarshalPKCS8PrivateKey(key)
	require.NoError(t, err)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.crt"),
		pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.key"),
		pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: keyDER}), 0o600))
}

func serial(t *testing.T, f *certificate.Files) int64 {
	t.Helper()
	c, err := f.Get(nil)
	require.NoError(t, err)
	parsed, err := x509.ParseCertificate(c.Certificate[0])
	require.NoError(t, err)
	return parsed.SerialNumber.Int64()
}

func TestRenewedCertificateIsServedAndABrokenOneIsNot(t *testing.T) {
	dir := t.TempDir()
	_, err := certificate.FromDir(dir)
	require.ErrorContains(t, err, "sidestep-manager-tls")

	write(t, dir, 1)
	f, err := certificate.FromDir(dir)
	require.NoError(t, err)
	assert.EqualValues(t, 1, serial(t, f))
	assert.EqualValues(t, tls.VersionTLS13, f.ServerConfig().MinVersion)

	require.NoError(t, os.WriteFile(filepath.Join(dir, "tls.crt"), []byte("half a file"), 0o600))
	time.Sleep(1100 * time.Millisecond) // handshakes look once a second
	assert.EqualValues(t, 1, serial(t, f))
	write(t, dir, 2)
	require.Eventually(t, func() bool { return serial(t, f) == 2 }, 5*time.Second, 50*time.Millisecond)
}
