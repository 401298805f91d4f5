// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/secret"
)

// InitPlan is what the first control node of a cluster is made with. Only
// Version is required.
type InitPlan struct {
	NodeName         string
	AdvertiseAddress string      // IP address of this node
	Version          string      // v1.34.4; the v may be missing
	Endpoint         string      // host:port the cluster is reached at
	CertSANs         []string    // further names and addresses of the API server
	Token            secret.Text // bootstrap token: abcdef.0123456789abcdef
	TokenTTL         string      // Go duration; "0" never ends; "" is kubeadm's own
	CertificateKey   secret.Text // hex; encrypts the certificates of UploadCerts
	UploadCerts      bool
	// Flags are the further flags of the userdata's kubeadm command, as written
	// there: --name=value, --name value, or --name. A flag of what is above wins
	// over it.
	Flags []string
}

// initConfig is an InitPlan ready to run: the configuration file, which holds
// secrets, and the arguments kubeadm takes beside one.
type initConfig struct {
	file      []byte
	args      []string
	secrets   []string // to be kept out of logs and errors
	criSocket string   // with its scheme
	skipped   []string // phases the userdata leaves out
}

// ImageRepository returns the registry the flags ask for, or "".
func (p InitPlan) ImageRepository() string {
	b := newInitBuilder(p)
	_ = b.takeFlags(p.Flags) // Init reports the flags it cannot read
	return b.cluster.ImageRepository
}

// renderInit turns a plan into what kubeadm is run with.
func renderInit(plan InitPlan) (*initConfig, error) {
	b := newInitBuilder(plan)
	flagErr := b.takeFlags(plan.Flags)
	version := WithV(b.cluster.KubernetesVersion)
	major, minor, err := minorVersion(version)
	if err := errors.Join(flagErr, err); err != nil {
		return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
	}
	b.cluster.KubernetesVersion = version
	file, err := b.render(major > 1 || minor >= 31)
	if err != nil {
		return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
	}
	config := &initConfig{file: file, args: b.args, criSocket: b.init.NodeRegistration.CRISocket, skipped: b.init.SkipPhases}
	for _, token := range b.init.BootstrapTokens {
		config.secrets = append(config.secrets, token.Token)
		if _, half, ok := strings.Cut(token.Token, "."); ok {
			config.secrets = append(config.secrets, half) // the half that is secret
		}
	}
	config.secrets = append(config.secrets, b.init.CertificateKey)
	config.secrets = slices.DeleteFunc(config.secrets, func(s string) bool { return s == "" })
	return config, nil
}

// The documents of kubeadm's configuration, as far as this package fills them:
// kubernetes.io/docs/reference/config-api/kubeadm-config.v1beta4. Version v1beta3
// differs in the time limits.
type (
	initDocument struct {
		APIVersion       string           `yaml:"apiVersion"`
		Kind             string           `yaml:"kind"`
		BootstrapTokens  []bootstrapToken `yaml:"bootstrapTokens,omitempty"`
		CertificateKey   string           `yaml:"certificateKey,omitempty"`
		LocalAPIEndpoint localEndpoint    `yaml:"localAPIEndpoint,omitempty"`
		NodeRegistration nodeRegistration `yaml:"nodeRegistration"`
		SkipPhases       []string         `yaml:"skipPhases,omitempty"`
		Patches          *patches         `yaml:"patches,omitempty"`
		Timeouts         *timeouts        `yaml:"timeouts,omitempty"`
	}
	bootstrapToken struct {
		Token       string   `yaml:"token"`
		TTL         string   `yaml:"ttl,omitempty"`
		Usages      []string `yaml:"usages"`
		Groups      []string `yaml:"groups"`
		Description string   `yaml:"description,omitempty"`
	}
	localEndpoint struct {
		AdvertiseAddress string `yaml:"advertiseAddress,omitempty"`
		BindPort         int    `yaml:"bindPort,omitempty"`
	}
	nodeRegistration struct {
		Name            string `yaml:"name,omitempty"`
		CRISocket       string `yaml:"criSocket"`
		ImagePullPolicy string `yaml:"imagePullPolicy"`
	}
	patches struct {
		Directory string `yaml:"directory"`
	}
	timeouts struct {
		ControlPlaneComponentHealthCheck string `yaml:"controlPlaneComponentHealthCheck"`
	}
	clusterDocument struct {
		APIVersion           string          `yaml:"apiVersion"`
		Kind                 string          `yaml:"kind"`
		KubernetesVersion    string          `yaml:"kubernetesVersion"`
		ControlPlaneEndpoint string          `yaml:"controlPlaneEndpoint,omitempty"`
		APIServer            apiServer       `yaml:"apiServer,omitempty"`
		Networking           networking      `yaml:"networking,omitempty"`
		CertificatesDir      string          `yaml:"certificatesDir,omitempty"`
		ImageRepository      string          `yaml:"imageRepository,omitempty"`
		FeatureGates         map[string]bool `yaml:"featureGates,omitempty"`
	}
	apiServer struct {
		CertSANs               []string `yaml:"certSANs,omitempty"`
		TimeoutForControlPlane string   `yaml:"timeoutForControlPlane,omitempty"`
	}
	networking struct {
		PodSubnet     string `yaml:"podSubnet,omitempty"`
		ServiceSubnet string `yaml:"serviceSubnet,omitempty"`
		DNSDomain     string `yaml:"dnsDomain,omitempty"`
	}
	kubeletDocument struct {
		APIVersion   string `yaml:"apiVersion"`
		Kind         string `yaml:"kind"`
		CgroupDriver string `yaml:"cgroupDriver"`
	}
)

// controlPlaneLimit replaces kubeadm's 4 minutes, which a busy hypervisor does
// not keep (pain-point K8). The step's own deadline still holds.
const controlPlaneLimit = "10m0s"

const uploadCerts = "--upload-certs"

type initBuilder struct {
	init    initDocument
	cluster clusterDocument
	args    []string
}

func newInitBuilder(plan InitPlan) *initBuilder {
	b := &initBuilder{}
	b.init = initDocument{
		Kind:             "InitConfiguration",
		CertificateKey:   plan.CertificateKey.Reveal(),
		LocalAPIEndpoint: localEndpoint{AdvertiseAddress: plan.AdvertiseAddress},
		NodeRegistration: nodeRegistration{
			Name:      strings.ToLower(plan.NodeName),
			CRISocket: "unix://" + CRISocket,
			// The images came with the ISO; nothing is fetched (pain-point K9).
			ImagePullPolicy: "Never",
		},
	}
	if !plan.Token.Empty() {
		b.token().Token = plan.Token.Reveal()
	}
	if plan.TokenTTL != "" {
		b.token().TTL = wholeTTL(plan.TokenTTL)
	}
	b.cluster = clusterDocument{
		Kind:                 "ClusterConfiguration",
		KubernetesVersion:    plan.Version,
		ControlPlaneEndpoint: plan.Endpoint,
		APIServer:            apiServer{CertSANs: slices.Clone(plan.CertSANs)},
	}
	if plan.UploadCerts {
		b.args = append(b.args, uploadCerts)
	}
	return b
}

// token returns the configuration's one bootstrap token.
func (b *initBuilder) token() *bootstrapToken {
	if len(b.init.BootstrapTokens) == 0 {
		b.init.BootstrapTokens = []bootstrapToken{{
			// What kubeadm gives a token of its command line.
			Usages: []string{"signing", "authentication"},
			Groups: []string{"system:bootstrappers:kubeadm:default-node-token"},
		}}
	}
	return &b.init.BootstrapTokens[0]
}

// wholeTTL gives a bare 0 the unit the configuration file wants.
func wholeTTL(text string) string {
	if text == "0" {
		return "0s"
	}
	return text
}

// initFlags are the flags of kubeadm init that have a place in the configuration
// file; kubeadm refuses most of them beside one.
var initFlags = map[string]func(b *initBuilder, value string) error{
	"apiserver-advertise-address": func(b *initBuilder, v string) error { b.init.LocalAPIEndpoint.AdvertiseAddress = v; return nil },
	"apiserver-bind-port": func(b *initBuilder, v string) (err error) {
		b.init.LocalAPIEndpoint.BindPort, err = strconv.Atoi(v)
		return err
	},
	"apiserver-cert-extra-sans": func(b *initBuilder, v string) error {
		for san := range strings.SplitSeq(v, ",") {
			if san != "" && !slices.Contains(b.cluster.APIServer.CertSANs, san) {
				b.cluster.APIServer.CertSANs = append(b.cluster.APIServer.CertSANs, san)
			}
		}
		return nil
	},
	"cert-dir":               func(b *initBuilder, v string) error { b.cluster.CertificatesDir = v; return nil },
	"certificate-key":        func(b *initBuilder, v string) error { b.init.CertificateKey = v; return nil },
	"control-plane-endpoint": func(b *initBuilder, v string) error { b.cluster.ControlPlaneEndpoint = v; return nil },
	"cri-socket": func(b *initBuilder, v string) error {
		if !strings.Contains(v, "://") {
			v = "unix://" + v
		}
		b.init.NodeRegistration.CRISocket = v
		return nil
	},
	"feature-gates": func(b *initBuilder, v string) error {
		for gate := range strings.SplitSeq(v, ",") {
			name, value, _ := strings.Cut(gate, "=")
			on, err := strconv.ParseBool(value)
			if err != nil {
				return fmt.Errorf("want name=true or name=false")
			}
			if b.cluster.FeatureGates == nil {
				b.cluster.FeatureGates = map[string]bool{}
			}
			b.cluster.FeatureGates[name] = on
		}
		return nil
	},
	"image-repository":   func(b *initBuilder, v string) error { b.cluster.ImageRepository = v; return nil },
	"kubernetes-version": func(b *initBuilder, v string) error { b.cluster.KubernetesVersion = v; return nil },
	"node-name":          func(b *initBuilder, v string) error { b.init.NodeRegistration.Name = v; return nil },
	"patches":            func(b *initBuilder, v string) error { b.init.Patches = &patches{v}; return nil },
	"pod-network-cidr":   func(b *initBuilder, v string) error { b.cluster.Networking.PodSubnet = v; return nil },
	"service-cidr":       func(b *initBuilder, v string) error { b.cluster.Networking.ServiceSubnet = v; return nil },
	"service-dns-domain": func(b *initBuilder, v string) error { b.cluster.Networking.DNSDomain = v; return nil },
	"skip-phases": func(b *initBuilder, v string) error {
		b.init.SkipPhases = append(b.init.SkipPhases, strings.Split(v, ",")...)
		return nil
	},
	"token":     func(b *initBuilder, v string) error { b.token().Token = v; return nil },
	"token-ttl": func(b *initBuilder, v string) error { b.token().TTL = wholeTTL(v); return nil },
}

// takeFlags puts every flag where it belongs; one that is not known goes to
// kubeadm's command line as it is, so that it is kubeadm that judges it.
func (b *initBuilder) takeFlags(flags []string) error {
	var problems []error
	for i := 0; i < len(flags); i++ {
		name, value, hasValue := strings.Cut(strings.TrimPrefix(flags[i], "--"), "=")
		place := initFlags[name]
		if !strings.HasPrefix(flags[i], "--") || place == nil {
			if flags[i] != uploadCerts || !slices.Contains(b.args, uploadCerts) {
				b.args = append(b.args, flags[i])
			}
			continue
		}
		if !hasValue {
			if i+1 >= len(flags) || strings.HasPrefix(flags[i+1], "--") {
				problems = append(problems, fmt.Errorf("the flag --%s lacks its value", name))
				continue
			}
			i++
			value = flags[i]
		}
		if err := place(b, value); err != nil {
			problems = append(problems, fmt.Errorf("the flag --%s has a wrong value: %w", name, err))
		}
	}
	return errors.Join(problems...)
}

// render writes the documents, for v1beta4 (kubeadm from 1.31 on) or v1beta3.
func (b *initBuilder) render(v1beta4 bool) ([]byte, error) {
	init, cluster := b.init, b.cluster
	if v1beta4 {
		init.APIVersion = "kubeadm.k8s.io/v1beta4"
		init.Timeouts = &timeouts{controlPlaneLimit}
	} else {
		init.APIVersion = "kubeadm.k8s.io/v1beta3"
		cluster.APIServer.TimeoutForControlPlane = controlPlaneLimit
	}
	cluster.APIVersion = init.APIVersion
	kubelet := kubeletDocument{APIVersion: "kubelet.config.k8s.io/v1beta1", Kind: "KubeletConfiguration", CgroupDriver: "systemd"}

	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	for _, document := range []any{init, cluster, kubelet} {
		if err := encoder.Encode(document); err != nil {
			return nil, err
		}
	}
	if err := encoder.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
