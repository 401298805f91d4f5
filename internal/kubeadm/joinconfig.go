// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"errors"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/secret"
)

// JoinPlan is what a node joins a cluster with.
type JoinPlan struct {
	NodeName string
	Version  string // of the kubeadm that is installed: v1.34.4
	Endpoint string // host:port of an API server of the cluster
	Token    secret.Text
	// CAHashes are the hashes (sha256:hex of its public key) one of which the
	// cluster's CA has; none of them, and UnsafeSkipCA, is whoever answers (K3).
	CAHashes          []string
	UnsafeSkipCA      bool
	DiscoveryFile     string // a kubeconfig with the CA, in place of all of the above
	TLSBootstrapToken secret.Text

	ControlPlane     bool
	AdvertiseAddress string // IP address of this control node
	CertificateKey   secret.Text

	// Documents and Flags are as InitPlan's.
	Documents secret.Text
	Flags     []string
}

type (
	joinDocument struct {
		APIVersion       string           `yaml:"apiVersion"`
		Kind             string           `yaml:"kind"`
		ControlPlane     *joinControl     `yaml:"controlPlane,omitempty"`
		Discovery        discovery        `yaml:"discovery"`
		NodeRegistration nodeRegistration `yaml:"nodeRegistration"`
		SkipPhases       []string         `yaml:"skipPhases,omitempty"`
		Patches          *patches         `yaml:"patches,omitempty"`
		Timeouts         *timeouts        `yaml:"timeouts,omitempty"`
	}
	joinControl struct {
		LocalAPIEndpoint localEndpoint `yaml:"localAPIEndpoint,omitempty"`
		CertificateKey   string        `yaml:"certificateKey,omitempty"`
	}
	discovery struct {
		BootstrapToken    *discoveryToken `yaml:"bootstrapToken,omitempty"`
		File              *discoveryFile  `yaml:"file,omitempty"`
		TLSBootstrapToken string          `yaml:"tlsBootstrapToken,omitempty"`
		Timeout           string          `yaml:"timeout,omitempty"` // v1beta3 only
	}
	discoveryToken struct {
		Token                    string   `yaml:"token"`
		APIServerEndpoint        string   `yaml:"apiServerEndpoint"`
		CACertHashes             []string `yaml:"caCertHashes,omitempty"`
		UnsafeSkipCAVerification bool     `yaml:"unsafeSkipCAVerification,omitempty"`
	}
	discoveryFile struct {
		KubeConfigPath string `yaml:"kubeConfigPath"`
	}
)

// discoveryLimit is how long kubeadm itself looks for the cluster's description:
// nodeagent starts it when that is there, so what is missing then stays away.
const discoveryLimit = "1m0s"

type joinBuilder struct {
	join         joinDocument
	control      joinControl
	controlPlane bool
	token        discoveryToken
	file         discoveryFile
}

func newJoinBuilder(plan JoinPlan) *joinBuilder {
	b := &joinBuilder{controlPlane: plan.ControlPlane, file: discoveryFile{plan.DiscoveryFile}}
	b.join = joinDocument{
		Kind:      "JoinConfiguration",
		Discovery: discovery{TLSBootstrapToken: plan.TLSBootstrapToken.Reveal()},
		NodeRegistration: nodeRegistration{
			Name:            strings.ToLower(plan.NodeName),
			CRISocket:       "unix://" + CRISocket,
			ImagePullPolicy: "Never",
		},
	}
	b.control = joinControl{
		LocalAPIEndpoint: localEndpoint{AdvertiseAddress: plan.AdvertiseAddress},
		CertificateKey:   plan.CertificateKey.Reveal(),
	}
	b.token = discoveryToken{Token: plan.Token.Reveal(), APIServerEndpoint: plan.Endpoint,
		CACertHashes: slices.Clone(plan.CAHashes), UnsafeSkipCAVerification: plan.UnsafeSkipCA}
	return b
}

// places are the flags of kubeadm join.
func (b *joinBuilder) places() places {
	toBool := func(place *bool) func(string) error {
		return func(v string) (err error) { *place, err = strconv.ParseBool(v); return err }
	}
	own := places{
		"apiserver-advertise-address":                 into(&b.control.LocalAPIEndpoint.AdvertiseAddress),
		"apiserver-bind-port":                         intoNumber(&b.control.LocalAPIEndpoint.BindPort),
		"certificate-key":                             into(&b.control.CertificateKey),
		"control-plane":                               toBool(&b.controlPlane),
		"discovery-file":                              into(&b.file.KubeConfigPath),
		"discovery-token":                             into(&b.token.Token),
		"discovery-token-ca-cert-hash":                intoList(&b.token.CACertHashes),
		"discovery-token-unsafe-skip-ca-verification": toBool(&b.token.UnsafeSkipCAVerification),
		"tls-bootstrap-token":                         into(&b.join.Discovery.TLSBootstrapToken),
		"token": func(v string) error {
			b.token.Token = v
			return nil
		},
	}
	maps.Copy(own, b.join.NodeRegistration.places(&b.join.SkipPhases, &b.join.Patches))
	return own
}

// renderJoin turns a plan into what kubeadm is run with.
func renderJoin(plan JoinPlan) (*config, error) {
	if !plan.Documents.Empty() {
		c, err := renderGivenJoin(plan)
		if err != nil {
			return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
		}
		return c, nil
	}
	b := newJoinBuilder(plan)
	rest, flagErr := b.places().take(plan.Flags, "control-plane", "discovery-token-unsafe-skip-ca-verification")
	v1beta4, err := takesV1beta4(plan.Version)
	if err := errors.Join(flagErr, err); err != nil {
		return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
	}
	join := b.join
	if b.file.KubeConfigPath != "" {
		join.Discovery.File = &b.file
		if join.Discovery.TLSBootstrapToken == "" { // kubeadm's --token is both
			join.Discovery.TLSBootstrapToken = b.token.Token
		}
	} else {
		if len(b.token.CACertHashes) > 0 {
			b.token.UnsafeSkipCAVerification = false
		}
		join.Discovery.BootstrapToken = &b.token
	}
	if b.controlPlane {
		join.ControlPlane = &b.control
	}
	if v1beta4 {
		join.APIVersion = apiV1beta4
		join.Timeouts = &timeouts{ControlPlaneComponentHealthCheck: controlPlaneLimit, KubernetesAPICall: apiCallLimit, Discovery: discoveryLimit, TLSBootstrap: controlPlaneLimit}
	} else {
		join.APIVersion = apiV1beta3
		join.Discovery.Timeout = discoveryLimit
	}
	file, err := documents(join)
	if err != nil {
		return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
	}
	c := &config{file: file, args: rest, criSocket: join.NodeRegistration.CRISocket, skipped: join.SkipPhases, ownAPI: b.control.LocalAPIEndpoint}
	c.hide(b.token.Token)
	c.hide(join.Discovery.TLSBootstrapToken)
	c.hide(b.control.CertificateKey)
	return c, nil
}
