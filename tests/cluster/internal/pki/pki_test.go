// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"net/netip"
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/client-go/tools/clientcmd"
)

func open(t *testing.T, dir string) *Authority {
	t.Helper()
	authority, err := Open(dir)
	require.NoError(t, err)
	return authority
}

func leaf(t *testing.T, certificate []byte) *x509.Certificate {
	t.Helper()
	block, _ := pem.Decode(certificate)
	require.NotNil(t, block)
	parsed, err := x509.ParseCertificate(block.Bytes)
	require.NoError(t, err)
	return parsed
}

func pool(authority *Authority) *x509.CertPool {
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(authority.Certificate())
	return roots
}

func TestAnAuthorityStaysTheSame(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "pki")
	first := open(t, dir)
	assert.Equal(t, first.Certificate(), open(t, dir).Certificate())
	info, err := os.Stat(filepath.Join(dir, "ca.key"))
	require.NoError(t, err)
	assert.EqualValues(t, 0o600, info.Mode().Perm(), "nobody else reads the key")
}

func TestAnAuthorityWhoseCreationWasInterruptedIsMadeAnew(t *testing.T) {
	dir := t.TempDir()
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.key"), []byte("half a k"), 0o600))
	assert.NotEmpty(t, open(t, dir).Certificate())
}

func TestAnAuthorityThatIsDamagedIsNotReplaced(t *testing.T) {
	dir := t.TempDir()
	open(t, dir)
	require.NoError(t, os.WriteFile(filepath.Join(dir, "ca.key"), []byte("nonsense"), 0o600))
	_, err := Open(dir)
	assert.ErrorContains(t, err, "not in PEM")
}

func TestAClientIsItsUserInItsGroups(t *testing.T) {
	authority := open(t, t.TempDir())
	pair, err := authority.Client("alice", "developers", "testers")
	require.NoError(t, err)
	certificate := leaf(t, pair.Certificate)
	assert.Equal(t, "alice", certificate.Subject.CommonName)
	assert.ElementsMatch(t, []string{"developers", "testers"}, certificate.Subject.Organization)
	_, err = certificate.Verify(x509.VerifyOptions{Roots: pool(authority),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth}})
	assert.NoError(t, err)
	_, err = certificate.Verify(x509.VerifyOptions{Roots: pool(authority),
		KeyUsages: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth}})
	assert.Error(t, err, "a client is no server")
	_, err = tls.X509KeyPair(pair.Certificate, pair.Key)
	assert.NoError(t, err, "certificate and key belong together")
}

func TestAServerIsVerifiedByItsNamesAndAddresses(t *testing.T) {
	authority := open(t, t.TempDir())
	pair, err := authority.Server("kubelet", []string{"node1"}, []netip.Addr{
		netip.MustParseAddr("198.18.0.11"), netip.MustParseAddr("fd00::1"),
	})
	require.NoError(t, err)
	certificate := leaf(t, pair.Certificate)
	for host, good := range map[string]bool{"node1": true, "198.18.0.11": true, "fd00::1": true,
		"node2": false, "198.18.0.12": false} {
		_, err := certificate.Verify(x509.VerifyOptions{Roots: pool(authority), DNSName: host})
		assert.Equal(t, good, err == nil, host)
	}
}

func TestAKubeconfigNeedsNoOtherFile(t *testing.T) {
	authority := open(t, t.TempDir())
	text, err := authority.ClientKubeconfig("sidestep", "https://198.18.0.1:6443", "alice", "developers")
	require.NoError(t, err)

	config, err := clientcmd.RESTConfigFromKubeConfig(text)
	require.NoError(t, err)
	assert.Equal(t, "https://198.18.0.1:6443", config.Host)
	assert.Equal(t, authority.Certificate(), config.CAData)
	assert.Equal(t, []string{"developers"}, leaf(t, config.CertData).Subject.Organization)
	_, err = tls.X509KeyPair(config.CertData, config.KeyData)
	assert.NoError(t, err)

	raw, err := clientcmd.Load(text)
	require.NoError(t, err)
	assert.Equal(t, "sidestep", raw.CurrentContext)
	assert.Contains(t, raw.AuthInfos, "alice")
}
