// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
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
	// ExternalEtcd are the endpoints of an etcd that is not this machine's; none is its own.
	ExternalEtcd []string
	// Documents are the configuration file that the userdata bring; of what is above it
	// takes what it does not say itself, and the node's name.
	Documents secret.Text
	// Flags are the further flags of the userdata's kubeadm command, as written
	// there: --name=value, --name value, or --name. A flag of what is above wins
	// over it.
	Flags []string
}

// config is a plan ready to run: the configuration file, which holds secrets, and
// the arguments kubeadm takes beside one.
type config struct {
	file      []byte
	args      []string
	secrets   []string // to be kept out of logs and errors
	criSocket string   // with its scheme
	skipped   []string // phases the userdata leaves out

	externalEtcd bool // of init: this machine has no etcd
	// ownAPI is, of the join of a control node, where its API server will be.
	ownAPI localEndpoint
}

// ImageRepository returns the registry the flags ask for, or "".
func (p InitPlan) ImageRepository() string {
	if g, err := readGiven(p.Documents.Reveal()); err == nil && !p.Documents.Empty() {
		return textAt(g.of(kindCluster), "imageRepository")
	}
	b := newInitBuilder(p)
	_ = b.takeFlags(p.Flags) // Init reports the flags it cannot read
	return b.cluster.ImageRepository
}

// renderInit turns a plan into what kubeadm is run with.
func renderInit(plan InitPlan) (*config, error) {
	if !plan.Documents.Empty() {
		c, err := renderGivenInit(plan)
		if err != nil {
			return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
		}
		return c, nil
	}
	b := newInitBuilder(plan)
	flagErr := b.takeFlags(plan.Flags)
	version := WithV(b.cluster.KubernetesVersion)
	v1beta4, err := takesV1beta4(version)
	if err := errors.Join(flagErr, err); err != nil {
		return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
	}
	b.cluster.KubernetesVersion = version
	file, err := b.render(v1beta4)
	if err != nil {
		return nil, fmt.Errorf("cannot write kubeadm's configuration: %w", err)
	}
	c := &config{file: file, args: b.args, criSocket: b.init.NodeRegistration.CRISocket, skipped: b.init.SkipPhases, externalEtcd: b.cluster.Etcd != nil}
	for _, token := range b.init.BootstrapTokens {
		c.hide(token.Token)
	}
	c.hide(b.init.CertificateKey)
	return c, nil
}

// hide keeps a secret out of logs and errors, of a bootstrap token also the half
// that is secret.
func (c *config) hide(text string) {
	if text == "" {
		return
	}
	c.secrets = append(c.secrets, text)
	if _, half, ok := strings.Cut(text, "."); ok && half != "" {
		c.secrets = append(c.secrets, half)
	}
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
		ControlPlaneComponentHealthCheck string `yaml:"controlPlaneComponentHealthCheck,omitempty"`
		KubernetesAPICall                string `yaml:"kubernetesAPICall,omitempty"`
		Discovery                        string `yaml:"discovery,omitempty"`
		TLSBootstrap                     string `yaml:"tlsBootstrap,omitempty"`
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
		Etcd                 *etcdDocument   `yaml:"etcd,omitempty"`
	}
	etcdDocument struct {
		External struct {
			Endpoints []string `yaml:"endpoints"`
		} `yaml:"external"`
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

// apiCallLimit replaces kubeadm's minute: an API server that has just begun to answer may
// still be making its own roles then, and kubeadm init ends for want of them.
const apiCallLimit = "5m0s"

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
	if len(plan.ExternalEtcd) > 0 {
		b.cluster.Etcd = &etcdDocument{}
		b.cluster.Etcd.External.Endpoints = plan.ExternalEtcd
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

// places are the flags of the userdata's kubeadm command that have a place in the
// configuration file; kubeadm refuses most of them beside one.
type places map[string]func(value string) error

// into is a flag whose value is stored as it is.
func into(place *string) func(string) error {
	return func(value string) error { *place = value; return nil }
}

// intoNumber is a flag whose value is a number.
func intoNumber(place *int) func(string) error {
	return func(value string) (err error) { *place, err = strconv.Atoi(value); return err }
}

// intoList is a flag that may come several times, with several values each.
func intoList(place *[]string) func(string) error {
	return func(value string) error {
		for item := range strings.SplitSeq(value, ",") {
			if item != "" && !slices.Contains(*place, item) {
				*place = append(*place, item)
			}
		}
		return nil
	}
}

// places are the flags that init and join have in common.
func (r *nodeRegistration) places(skipPhases *[]string, patch **patches) places {
	return places{
		"cri-socket": func(v string) error {
			if !strings.Contains(v, "://") {
				v = "unix://" + v
			}
			r.CRISocket = v
			return nil
		},
		"node-name":   into(&r.Name),
		"patches":     func(v string) error { *patch = &patches{v}; return nil },
		"skip-phases": intoList(skipPhases),
	}
}

// take puts every flag where it belongs; one that is not known goes to kubeadm's
// command line as it is, so that it is kubeadm that judges it. switches are those
// known flags that need no value.
func (p places) take(flags []string, switches ...string) (rest []string, err error) {
	var problems []error
	for i := 0; i < len(flags); i++ {
		name, value, hasValue := strings.Cut(strings.TrimPrefix(flags[i], "--"), "=")
		place := p[name]
		if !strings.HasPrefix(flags[i], "--") || place == nil {
			rest = append(rest, flags[i])
			continue
		}
		switch {
		case hasValue:
		case slices.Contains(switches, name):
			value = "true"
		case i+1 >= len(flags) || strings.HasPrefix(flags[i+1], "--"):
			problems = append(problems, fmt.Errorf("the flag --%s lacks its value", name))
			continue
		default:
			i++
			value = flags[i]
		}
		if err := place(value); err != nil {
			problems = append(problems, fmt.Errorf("the flag --%s has a wrong value: %w", name, err))
		}
	}
	return rest, errors.Join(problems...)
}

// places are the flags of kubeadm init.
func (b *initBuilder) places() places {
	own := places{
		"apiserver-advertise-address": into(&b.init.LocalAPIEndpoint.AdvertiseAddress),
		"apiserver-bind-port":         intoNumber(&b.init.LocalAPIEndpoint.BindPort),
		"apiserver-cert-extra-sans":   intoList(&b.cluster.APIServer.CertSANs),
		"cert-dir":                    into(&b.cluster.CertificatesDir),
		"certificate-key":             into(&b.init.CertificateKey),
		"control-plane-endpoint":      into(&b.cluster.ControlPlaneEndpoint),
		"feature-gates": func(v string) error {
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
		"image-repository":   into(&b.cluster.ImageRepository),
		"kubernetes-version": into(&b.cluster.KubernetesVersion),
		"pod-network-cidr":   into(&b.cluster.Networking.PodSubnet),
		"service-cidr":       into(&b.cluster.Networking.ServiceSubnet),
		"service-dns-domain": into(&b.cluster.Networking.DNSDomain),
		"token":              func(v string) error { b.token().Token = v; return nil },
		"token-ttl":          func(v string) error { b.token().TTL = wholeTTL(v); return nil },
	}
	maps.Copy(own, b.init.NodeRegistration.places(&b.init.SkipPhases, &b.init.Patches))
	return own
}

// takeFlags puts the userdata's flags where they belong.
func (b *initBuilder) takeFlags(flags []string) error {
	rest, err := b.places().take(flags)
	for _, flag := range rest {
		if flag != uploadCerts || !slices.Contains(b.args, uploadCerts) {
			b.args = append(b.args, flag)
		}
	}
	return err
}

const (
	apiV1beta3 = "kubeadm.k8s.io/v1beta3"
	apiV1beta4 = "kubeadm.k8s.io/v1beta4"
)

// takesV1beta4 says whether a version of kubeadm reads v1beta4: those from 1.31 on.
func takesV1beta4(version string) (bool, error) {
	major, minor, err := minorVersion(version)
	return major > 1 || minor >= 31, err
}

// render writes the documents, for v1beta4 or v1beta3.
func (b *initBuilder) render(v1beta4 bool) ([]byte, error) {
	init, cluster := b.init, b.cluster
	if v1beta4 {
		init.APIVersion = apiV1beta4
		init.Timeouts = &timeouts{ControlPlaneComponentHealthCheck: controlPlaneLimit, KubernetesAPICall: apiCallLimit}
	} else {
		init.APIVersion = apiV1beta3
		cluster.APIServer.TimeoutForControlPlane = controlPlaneLimit
	}
	cluster.APIVersion = init.APIVersion
	kubelet := kubeletDocument{APIVersion: "kubelet.config.k8s.io/v1beta1", Kind: "KubeletConfiguration", CgroupDriver: "systemd"}

	return documents(init, cluster, kubelet)
}

// documents writes one YAML text.
func documents(all ...any) ([]byte, error) {
	var out bytes.Buffer
	encoder := yaml.NewEncoder(&out)
	encoder.SetIndent(2)
	for _, document := range all {
		if err := encoder.Encode(document); err != nil {
			return nil, err
		}
	}
	if err := encoder.Close(); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}
