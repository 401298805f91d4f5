// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bytes"
	"embed"
	"errors"
	"fmt"
	"net/netip"
	"regexp"
	"strings"
	"text/template"
	"time"

	"github.com/google/uuid"
)

//go:embed userdata
var userdataTemplates embed.FS

// UserdataParams are what the management server puts into the cloud-config of
// a node (contract 4.2). NewUserdataParams fills in its defaults.
type UserdataParams struct {
	PublicKeys     []string
	Token          string // kubeadm's, 6.16 characters
	CertificateKey string // 64 hex digits; control nodes only
	ControlIP      netip.Addr
	Version        string // x.y.z, without a v; first control node only
	// Wait and Attempts are the pace at which the scripts look for the ISO.
	Wait     time.Duration // whole seconds
	Attempts int
	EjectISO bool // true on VMware only
	// ISORouter is the virtual router that external nodes of 4.21 and later may fetch the
	// ISO's files from; workers only.
	ISORouter netip.Addr
	// Registry is the cluster's private one. Without it its placeholders stay in the
	// text, as they do in CloudStack.
	Registry Registry
	// Certificates are written and never used; first control node only.
	Certificates Certificates
	// Etcd are the cluster's nodes for etcd alone, if it has any (4.21+), and EtcdNode
	// the name of the one that the userdata are for.
	Etcd     []EtcdMember
	EtcdNode string
}

// EtcdMember is a node for etcd alone.
type EtcdMember struct {
	Name    string
	Address netip.Addr
}

// Registry is an image registry as the management server knows it.
type Registry struct {
	Endpoint           string // host:port, as the images' names have it
	URL                string
	Username, Password string
}

// NewUserdataParams are the parameters of a cluster with that id: token and
// certificate key follow from it, and the pace is the default for control nodes
// (WorkerUserdata's is 30 s and 40 attempts).
func NewUserdataParams(cluster uuid.UUID, control netip.Addr, version string, publicKeys ...string) (UserdataParams, error) {
	certificates, err := NewCertificates("kubernetes-control", control)
	if err != nil {
		return UserdataParams{}, err
	}
	digits := strings.ReplaceAll(cluster.String(), "-", "")
	return UserdataParams{
		PublicKeys:     publicKeys,
		Token:          digits[:6] + "." + digits[6:22],
		CertificateKey: digits + digits,
		ControlIP:      control,
		Version:        version,
		Wait:           15 * time.Second,
		Attempts:       100,
		Certificates:   certificates,
	}, nil
}

// ControlNodeUserdata is the cloud-config of the first control node in the
// structure of CloudStack 4.16.1 to 4.20 (contract 4.3 to 4.7), with p.Etcd of 4.21 and
// later. Without nodeagent its scripts bring the node up themselves.
func ControlNodeUserdata(p UserdataParams) ([]byte, error) {
	return renderUserdata("control-node.yml.tmpl", renderData{p, true, true})
}

// ControlNodeAddUserdata is the cloud-config of every further control node.
func ControlNodeAddUserdata(p UserdataParams) ([]byte, error) {
	return renderUserdata("control-node-add.yml.tmpl", renderData{p, true, false})
}

// WorkerUserdata is the cloud-config of a worker.
func WorkerUserdata(p UserdataParams) ([]byte, error) {
	return renderUserdata("worker.yml.tmpl", renderData{p, false, false})
}

// EtcdNodeUserdata is the cloud-config of the node p.EtcdNode for etcd alone, in the
// structure of CloudStack 4.21 and later.
func EtcdNodeUserdata(p UserdataParams) ([]byte, error) {
	return renderUserdata("etcd-node.yml.tmpl", renderData{p, false, false})
}

func renderUserdata(name string, data renderData) ([]byte, error) {
	if err := errors.Join(data.check(name), data.checkEtcd(name)); err != nil {
		return nil, fmt.Errorf("cannot render %s: %w", name, err)
	}
	// Shell and CloudStack have all the usual brackets for themselves.
	root := template.New(name).Delims("<%", "%>")
	root.Funcs(template.FuncMap{
		// script renders a shared script as the content of a write_files entry.
		"script": func(file string) (string, error) {
			var text strings.Builder
			err := root.ExecuteTemplate(&text, file, data)
			return indent(text.String()), err
		},
		"indent": func(pem []byte) string { return indent(string(pem)) },
	})
	if _, err := root.ParseFS(userdataTemplates, "userdata/*.tmpl"); err != nil {
		return nil, err
	}
	var text bytes.Buffer
	if err := root.ExecuteTemplate(&text, name, data); err != nil {
		return nil, err
	}
	if r := data.Registry; r != (Registry{}) { // contract 4.2
		return []byte(strings.NewReplacer("- containerd config default > /etc/containerd/config.toml", "- bash -x /opt/bin/setup-containerd",
			"{{registry.url.endpoint}}", r.Endpoint, "{{registry.url}}", r.URL,
			"{{registry.username}}", r.Username, "{{registry.password}}", r.Password, "{{registry.token}}", "").Replace(text.String())), nil
	}
	return text.Bytes(), nil
}

type renderData struct {
	UserdataParams
	Control bool // a control node
	First   bool // the one that begins the cluster
}

// WaitSeconds is Wait as the scripts want it.
func (d renderData) WaitSeconds() int { return int(d.Wait / time.Second) }

// EtcdIP is the address of the etcd node that the userdata are for.
func (d renderData) EtcdIP() netip.Addr {
	for _, member := range d.Etcd {
		if member.Name == d.EtcdNode {
			return member.Address
		}
	}
	return netip.Addr{}
}

// InitialCluster is what the management server composes of the etcd nodes.
func (d renderData) InitialCluster() string {
	var members []string
	for _, member := range d.Etcd {
		members = append(members, fmt.Sprintf("%s=http://%s:2380", member.Name, member.Address))
	}
	return strings.Join(members, ",")
}

// InitArgs are the arguments of kubeadm init that the management server composes.
func (d renderData) InitArgs() string {
	return fmt.Sprintf("--control-plane-endpoint %s:6443 --upload-certs --certificate-key %s --apiserver-cert-extra-sans=%s --kubernetes-version=%s",
		d.ControlIP, d.CertificateKey, d.ControlIP, d.Version)
}

// indent puts text at the depth of a literal block in write_files.
func indent(text string) string {
	lines := strings.Split(strings.TrimRight(text, "\n"), "\n")
	for i, line := range lines {
		if line != "" {
			lines[i] = "      " + line
		}
	}
	return strings.Join(lines, "\n")
}

var (
	tokenFormat   = regexp.MustCompile(`^[a-z0-9]{6}\.[a-z0-9]{16}$`)
	keyFormat     = regexp.MustCompile(`^[0-9a-f]{64}$`)
	versionFormat = regexp.MustCompile(`^\d+\.\d+\.\d+$`)
)

func (p UserdataParams) check(name string) error {
	var errs []error
	require := func(ok bool, format string, args ...any) {
		if !ok {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	require(len(p.PublicKeys) > 0, "no ssh public key")
	for _, key := range p.PublicKeys {
		require(key != "" && !strings.ContainsAny(key, "\"\n\\"), "ssh public key %q cannot stand in a line", key)
	}
	require(tokenFormat.MatchString(p.Token), "token %q is not of the form 6.16", p.Token)
	require(p.ControlIP.IsValid(), "no control node address")
	require(p.Wait >= time.Second && p.Attempts > 0, "wait %s and attempts %d are not both positive", p.Wait, p.Attempts)
	if name != "worker.yml.tmpl" && name != "etcd-node.yml.tmpl" {
		require(keyFormat.MatchString(p.CertificateKey), "certificate key %q has not 64 hex digits", p.CertificateKey)
	}
	if name == "control-node.yml.tmpl" {
		require(versionFormat.MatchString(p.Version), "version %q is not x.y.z", p.Version)
		require(len(p.Certificates.CA) > 0 && len(p.Certificates.Cert) > 0 && len(p.Certificates.Key) > 0, "certificates are not complete")
	}
	return errors.Join(errs...)
}

func (d renderData) checkEtcd(name string) error {
	for _, member := range d.Etcd {
		if member.Name == "" || !member.Address.IsValid() {
			return fmt.Errorf("etcd node %+v has no name or no address", member)
		}
	}
	if name == "etcd-node.yml.tmpl" && !d.EtcdIP().IsValid() {
		return fmt.Errorf("%q is none of the etcd nodes", d.EtcdNode)
	}
	return nil
}
