// SPDX-License-Identifier: Apache-2.0

// Package pki is the cluster's certificate authority: it keeps its key in a directory, and signs
// certificates for the cluster's parts and for the people who use it.
package pki

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"math/big"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"time"
)

// lifetime is longer than any cluster of this kind lives.
const lifetime = 365 * 24 * time.Hour

// Authority signs certificates.
type Authority struct {
	certificate *x509.Certificate
	key         crypto.Signer
	pem         []byte
}

// Pair is a certificate and its key, both in PEM.
type Pair struct{ Certificate, Key []byte }

// Open reads the authority from a directory, or makes one and leaves it there.
func Open(dir string) (*Authority, error) {
	certificateFile, keyFile := filepath.Join(dir, "ca.crt"), filepath.Join(dir, "ca.key")
	certificate, err := os.ReadFile(certificateFile)
	if errors.Is(err, fs.ErrNotExist) {
		return create(dir, certificateFile, keyFile)
	}
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	key, err := os.ReadFile(keyFile)
	if err != nil {
		return nil, fmt.Errorf("read certificate authority: %w", err)
	}
	return parse(certificate, key)
}

func create(dir, certificateFile, keyFile string) (*Authority, error) {
	fail := func(err error) (*Authority, error) {
		return nil,
			fmt.Errorf("make certificate authority: %w", err)
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fail(err)
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return fail(err)
	}
	template, err := newTemplate(pkix.Name{CommonName: "cluster-ca"})
	if err != nil {
		return fail(err)
	}
	template.IsCA = true
	template.BasicConstraintsValid = true
	template.KeyUsage = x509.KeyUsageCertSign | x509.KeyUsageDigitalSignature
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return fail(err)
	}
	certificate := encode("CERTIFICATE", der)
	// The certificate is last: it shows that the authority exists.
	if err := os.WriteFile(keyFile, keyPEM, 0o600); err != nil {
		return fail(err)
	}
	if err := os.WriteFile(certificateFile, certificate, 0o644); err != nil {
		return fail(err)
	}
	return parse(certificate, keyPEM)
}

func parse(certificatePEM, keyPEM []byte) (*Authority, error) {
	fail := func(err error) (*Authority, error) {
		return nil,
			fmt.Errorf("read certificate authority: %w", err)
	}
	certificateBlock, _ := pem.Decode(certificatePEM)
	keyBlock, _ := pem.Decode(keyPEM)
	if certificateBlock == nil || keyBlock == nil {
		return fail(errors.New("not in PEM"))
	}
	certificate, err := x509.ParseCertificate(certificateBlock.Bytes)
	if err != nil {
		return fail(err)
	}
	key, err := x509.ParsePKCS8PrivateKey(keyBlock.Bytes)
	if err != nil {
		return fail(err)
	}
	signer, ok := key.(crypto.Signer)
	if !ok {
		return fail(fmt.Errorf("a key of type %T cannot sign", key))
	}
	return &Authority{certificate: certificate, key: signer, pem: certificatePEM}, nil
}

// Certificate is the authority's own, in PEM.
func (a *Authority) Certificate() []byte { return a.pem }

// Client signs a certificate for a user and the groups they are in.
func (a *Authority) Client(user string, groups ...string) (Pair, error) {
	return a.issue(pkix.Name{CommonName: user, Organization: groups}, nil, nil, x509.ExtKeyUsageClientAuth)
}

// Server signs a certificate for a server with these names and addresses.
func (a *Authority) Server(name string, names []string, addresses []netip.Addr) (Pair, error) {
	return a.issue(pkix.Name{CommonName: name}, names, addresses, x509.ExtKeyUsageServerAuth)
}

func (a *Authority) issue(subject pkix.Name, names []string, addresses []netip.Addr,
	usage x509.ExtKeyUsage) (Pair, error) {
	fail := func(err error) (Pair, error) {
		return Pair{}, fmt.Errorf("sign certificate for %s: %w", subject.CommonName, err)
	}
	key, keyPEM, err := NewKey()
	if err != nil {
		return fail(err)
	}
	template, err := newTemplate(subject)
	if err != nil {
		return fail(err)
	}
	template.KeyUsage = x509.KeyUsageDigitalSignature
	template.ExtKeyUsage = []x509.ExtKeyUsage{usage}
	template.DNSNames = names
	for _, address := range addresses {
		template.IPAddresses = append(template.IPAddresses, net.IP(address.AsSlice()))
	}
	der, err := x509.CreateCertificate(rand.Reader, template, a.certificate, key.Public(), a.key)
	if err != nil {
		return fail(err)
	}
	return Pair{Certificate: encode("CERTIFICATE", der), Key: keyPEM}, nil
}

// NewKey makes a private key, also in PEM.
func NewKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, err
	}
	return key, encode("PRIVATE KEY", der), nil
}

func newTemplate(subject pkix.Name) (*x509.Certificate, error) {
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 127))
	if err != nil {
		return nil, err
	}
	now := time.Now()
	return &x509.Certificate{
		SerialNumber: serial,
		Subject:      subject,
		NotBefore:    now.Add(-5 * time.Minute),
		NotAfter:     now.Add(lifetime),
	}, nil
}

func encode(kind string, der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
}
