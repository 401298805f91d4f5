// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"crypto/rand"
	"crypto/rsa"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"math/big"
	"net"
	"net/netip"
	"time"
)

const certificateLife = 3650 * 24 * time.Hour

// Certificates are the PEM files that CloudStack puts into
// /etc/kubernetes/pki/cloudstack.
type Certificates struct {
	CA, Cert, Key []byte
}

// NewCertificates makes a CA and an API server certificate for the names and
// addresses of contract 4.2.
func NewCertificates(hostname string, addresses ...netip.Addr) (Certificates, error) {
	fail := func(err error) (Certificates, error) {
		return Certificates{}, fmt.Errorf("cannot make certificates: %w", err)
	}
	now := time.Now()
	caKey, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fail(err)
	}
	ca := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "ca.cloudstack.apache.org"},
		NotBefore: now.Add(-time.Hour), NotAfter: now.Add(certificateLife),
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign, IsCA: true, BasicConstraintsValid: true,
	}
	caDER, err := x509.CreateCertificate(rand.Reader, ca, ca, caKey.Public(), caKey)
	if err != nil {
		return fail(err)
	}
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return fail(err)
	}
	server := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: hostname},
		NotBefore: ca.NotBefore, NotAfter: ca.NotAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature | x509.KeyUsageKeyEncipherment,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames: []string{hostname, "kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster", "kubernetes.default.svc.cluster.local"},
	}
	for _, address := range addresses {
		server.IPAddresses = append(server.IPAddresses, net.IP(address.AsSlice()))
	}
	serverDER, err := x509.CreateCertificate(rand.Reader, server, ca, key.Public(), caKey)
	if err != nil {
		return fail(err)
	}
	block := func(kind string, der []byte) []byte {
		return pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der})
	}
	return Certificates{
		CA:   block("CERTIFICATE", caDER),
		Cert: block("CERTIFICATE", serverDER),
		Key:  block("RSA PRIVATE KEY", x509.MarshalPKCS1PrivateKey(key)),
	}, nil
}
