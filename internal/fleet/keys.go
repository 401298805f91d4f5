// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strings"
	"time"

	"nodeagent/internal/secret"
)

// The labels of the keys. Another derivation gets another version, and speaks other
// protocols: nodes of different versions do not understand each other half.
const (
	salt         = "nodeagent fleet v1"
	labelCluster = "cluster name"
	labelReport  = "report authority"
	labelPeer    = "peer authority"

	protocolReport = "nodeagent-report/1"
	protocolJoin   = "nodeagent-join/1"
	protocolPeer   = "nodeagent-peer/1/" // and the name of the database
)

// Keys are what a node proves with that it belongs to its cluster. All nodes have the
// key for reports, from the bootstrap token; control nodes of a cluster with several of
// them also the one for peers, from the certificate key.
type Keys struct {
	cluster      string
	report, peer *authority
}

// NewKeys derives the keys. The certificate key may be empty.
func NewKeys(token, certificateKey secret.Text) (*Keys, error) {
	if token.Empty() {
		return nil, errors.New("cannot derive the fleet's keys: the userdata has no bootstrap token")
	}
	name, err := derive(token, labelCluster, 8)
	if err != nil {
		return nil, err
	}
	keys := &Keys{cluster: hex.EncodeToString(name)}
	if keys.report, err = newAuthority(token, labelReport); err != nil {
		return nil, err
	}
	if !certificateKey.Empty() {
		if keys.peer, err = newAuthority(certificateKey, labelPeer); err != nil {
			return nil, err
		}
	}
	return keys, nil
}

// Cluster is the cluster's name in reports; it is no secret.
func (k *Keys) Cluster() string { return k.cluster }

// CanPeer says whether this node may share the database with others.
func (k *Keys) CanPeer() bool { return k.peer != nil }

func derive(from secret.Text, label string, length int) ([]byte, error) {
	key, err := hkdf.Key(sha256.New, []byte(from.Reveal()), []byte(salt), label, length)
	if err != nil {
		return nil, fmt.Errorf("cannot derive the fleet's key for the %s: %w", label, err)
	}
	return key, nil
}

// authority is a certificate authority that every holder of a secret can make again. A
// certificate is good when the authority's key has signed it: who has the key belongs to
// the cluster. Its dates are not looked at, since clocks may be off when a node boots.
type authority struct {
	public ed25519.PublicKey
	leaf   tls.Certificate
}

func newAuthority(from secret.Text, label string) (*authority, error) {
	seed, err := derive(from, label, ed25519.SeedSize)
	if err != nil {
		return nil, err
	}
	key := ed25519.NewKeyFromSeed(seed)
	public := key.Public().(ed25519.PublicKey)
	leafPublic, leafKey, err := ed25519.GenerateKey(rand.Reader)
	if err != nil {
		return nil, err
	}
	serial, err := rand.Int(rand.Reader, new(big.Int).Lsh(big.NewInt(1), 120))
	if err != nil {
		return nil, err
	}
	template := &x509.Certificate{
		SerialNumber: serial,
		Subject:      pkix.Name{CommonName: "nodeagent fleet"},
		NotBefore:    time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC),
		NotAfter:     time.Date(9999, 12, 31, 23, 59, 59, 0, time.UTC),
		KeyUsage:     x509.KeyUsageDigitalSignature,
	}
	parent := &x509.Certificate{Subject: pkix.Name{CommonName: label}, PublicKey: public}
	der, err := x509.CreateCertificate(rand.Reader, template, parent, leafPublic, key)
	if err != nil {
		return nil, fmt.Errorf("cannot make a certificate of the fleet: %w", err)
	}
	return &authority{public, tls.Certificate{Certificate: [][]byte{der}, PrivateKey: leafKey}}, nil
}

// config is for both ends. Go's own checks of names, dates and chains are replaced by
// the one that counts.
func (a *authority) config(protocols ...string) *tls.Config {
	return &tls.Config{
		MinVersion:             tls.VersionTLS13,
		Certificates:           []tls.Certificate{a.leaf},
		NextProtos:             protocols,
		ClientAuth:             tls.RequireAnyClientCert,
		InsecureSkipVerify:     true,
		SessionTicketsDisabled: true,
		VerifyConnection: func(state tls.ConnectionState) error {
			if len(state.PeerCertificates) == 0 {
				return errors.New("the other side shows no certificate")
			}
			signer := &x509.Certificate{PublicKeyAlgorithm: x509.Ed25519, PublicKey: a.public}
			leaf := state.PeerCertificates[0]
			if err := signer.CheckSignature(x509.PureEd25519, leaf.RawTBSCertificate, leaf.Signature); err != nil {
				return errors.New("the other side does not have this cluster's secret")
			}
			if !slices.Contains(protocols, state.NegotiatedProtocol) {
				return fmt.Errorf("the other side speaks %q", state.NegotiatedProtocol)
			}
			return nil
		},
	}
}

// serverConfig takes reports and, from control nodes, joins and the traffic of one
// database.
func (k *Keys) serverConfig(database func() string) *tls.Config {
	return &tls.Config{
		MinVersion: tls.VersionTLS13,
		GetConfigForClient: func(hello *tls.ClientHelloInfo) (*tls.Config, error) {
			for _, protocol := range hello.SupportedProtos {
				switch {
				case protocol == protocolReport:
					return k.report.config(protocolReport), nil
				case protocol == protocolJoin && k.peer != nil:
					return k.peer.config(protocolJoin), nil
				case k.peer != nil && strings.HasPrefix(protocol, protocolPeer) && len(protocol) > len(protocolPeer) &&
					protocol == protocolPeer+database():
					return k.peer.config(protocol), nil
				}
			}
			return nil, errors.New("the client speaks no protocol of this cluster's fleet")
		},
	}
}
