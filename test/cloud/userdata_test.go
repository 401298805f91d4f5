// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"flag"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"go.yaml.in/yaml/v3"
)

var update = flag.Bool("update", false, "rewrite the golden files")

type cloudConfig struct {
	Users []struct {
		Name string   `yaml:"name"`
		Sudo string   `yaml:"sudo"`
		Keys []string `yaml:"ssh_authorized_keys"`
	} `yaml:"users"`
	Files []struct {
		Path        string `yaml:"path"`
		Permissions string `yaml:"permissions"`
		Owner       string `yaml:"owner"`
		Content     string `yaml:"content"`
	} `yaml:"write_files"`
	Run []string `yaml:"runcmd"`
}

func (c cloudConfig) file(t *testing.T, path string) string {
	t.Helper()
	for _, file := range c.Files {
		if file.Path == path {
			return file.Content
		}
	}
	t.Fatalf("no file %s in userdata", path)
	return ""
}

func testParams() UserdataParams {
	return UserdataParams{
		PublicKeys:     []string{"ssh-rsa AAAAB3 cloud@management", "ssh-ed25519 AAAAC3 operator"},
		Token:          "3f0c5a.1b2c3d4e5f607182",
		CertificateKey: strings.Repeat("3f0c5a1b2c3d4e5f", 4),
		ControlIP:      netip.MustParseAddr("10.1.1.11"),
		Version:        "1.34.4",
		Wait:           15 * time.Second,
		Attempts:       100,
		Certificates: Certificates{
			CA:   []byte("-----BEGIN CERTIFICATE-----\nY2E=\n-----END CERTIFICATE-----\n"),
			Cert: []byte("-----BEGIN CERTIFICATE-----\nY3J0\n-----END CERTIFICATE-----\n"),
			Key:  []byte("-----BEGIN RSA PRIVATE KEY-----\na2V5\n-----END RSA PRIVATE KEY-----\n"),
		},
	}
}

// Structure as of contract 4.3 to 4.7: what the server sends is what a node
// must understand (pain points C1, C7, C10).
func TestUserdata(t *testing.T) {
	t.Parallel()
	common := []string{"/etc/conf.d/nfs", "/opt/bin/setup-kube-system", "/opt/bin/setup-containerd", "/opt/bin/deploy-kube-system", "/etc/systemd/system/deploy-kube-system.service"}
	pki := "/etc/kubernetes/pki/cloudstack/"
	join := "kubeadm join 10.1.1.11:6443 --token 3f0c5a.1b2c3d4e5f607182 "
	tests := []struct {
		name   string
		render func(UserdataParams) ([]byte, error)
		change func(*UserdataParams)
		files  []string
		deploy []string // pieces of deploy-kube-system
		absent string   // from the whole text
		setup  []string // pieces of setup-kube-system
		unit   string
	}{
		{
			name: "control-node", render: ControlNodeUserdata,
			files: append([]string{pki + "ca.crt", pki + "apiserver.crt", pki + "apiserver.key"}, common...),
			deploy: []string{
				"kubeadm init --token 3f0c5a.1b2c3d4e5f607182 --token-ttl 0 --control-plane-endpoint 10.1.1.11:6443 --upload-certs --certificate-key " +
					strings.Repeat("3f0c5a1b2c3d4e5f", 4) + " --apiserver-cert-extra-sans=10.1.1.11 --kubernetes-version=1.34.4 --cri-socket /run/containerd/containerd.sock",
				"network.yaml", "dashboard.yaml", `echo "true" > /home/cloud/success`,
			},
			setup:  []string{"SLEEP=15\n", "ATTEMPTS=100\n", "EJECT_ISO_FROM_OS=false\n", "/tmp/k8sconfigscripts/"},
			absent: "ExecStartPre",
		},
		{
			name: "control-node-external-etcd", render: ControlNodeUserdata,
			change: func(p *UserdataParams) { p.Etcd = testEtcd() },
			files:  append([]string{pki + "ca.crt", pki + "apiserver.crt", pki + "apiserver.key", "/etc/kubernetes/kubeadm-config.yaml"}, common...),
			deploy: []string{"kubeadm init --config /etc/kubernetes/kubeadm-config.yaml --upload-certs\n"},
			absent: "--token-ttl",
		},
		{
			name: "control-node-add", render: ControlNodeAddUserdata, files: common,
			deploy: []string{join + "--control-plane --certificate-key " + strings.Repeat("3f0c5a1b2c3d4e5f", 4) + " --discovery-token-unsafe-skip-ca-verification", "/root/.kube/config"},
			setup:  []string{"SLEEP=15\n", "ATTEMPTS=100\n"},
			unit:   "ExecStartPre=/usr/bin/curl -k https://10.1.1.11:6443/version", absent: "kubeadm init",
		},
		{
			name: "worker", render: WorkerUserdata, files: common,
			change: func(p *UserdataParams) {
				p.Wait, p.Attempts, p.EjectISO, p.CertificateKey = 30*time.Second, 40, true, ""
			},
			deploy: []string{join + "--discovery-token-unsafe-skip-ca-verification", "ip_vs_wrr"},
			setup:  []string{"SLEEP=30\n", "ATTEMPTS=40\n", "EJECT_ISO_FROM_OS=true\n"},
			unit:   "ExecStartPre=/usr/bin/curl -k https://10.1.1.11:6443/version", absent: "--certificate-key",
		},
		{
			name: "worker-router-iso", render: WorkerUserdata, files: common,
			change: func(p *UserdataParams) { p.ISORouter, p.CertificateKey = netip.MustParseAddr("10.1.1.1"), "" },
			deploy: []string{join + "--discovery-token-unsafe-skip-ca-verification"},
			setup:  []string{"ROUTER_IP=\"10.1.1.1\"\n", "wget -r -R"},
			unit:   "ExecStartPre=/usr/bin/curl -k https://10.1.1.11:6443/version", absent: "--certificate-key",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			params := testParams()
			if test.change != nil {
				test.change(&params)
			}
			text, err := test.render(params)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, test.name+".yml", text)

			if !strings.HasPrefix(string(text), "#cloud-config\n") {
				t.Errorf("userdata begins with %.20q, want #cloud-config", text)
			}
			var config cloudConfig
			if err := yaml.Unmarshal(text, &config); err != nil {
				t.Fatalf("cannot parse userdata: %v", err)
			}
			if len(config.Users) != 1 || config.Users[0].Name != "cloud" || !slices.Equal(config.Users[0].Keys, params.PublicKeys) {
				t.Errorf("got users %+v, want only cloud with its keys", config.Users)
			}
			var paths []string
			for _, file := range config.Files {
				paths = append(paths, file.Path)
			}
			slices.Sort(paths)
			want := slices.Sorted(slices.Values(test.files))
			if !slices.Equal(paths, want) {
				t.Errorf("got files %q\nwant %q", paths, want)
			}
			contains(t, "deploy-kube-system", config.file(t, "/opt/bin/deploy-kube-system"), test.deploy...)
			setup := config.file(t, "/opt/bin/setup-kube-system")
			contains(t, "setup-kube-system", setup, test.setup...)
			contains(t, "setup-kube-system", setup, "/home/cloud/success", "blkid -o device -t TYPE=iso9660", "/mnt/k8sdisk",
				"ctr -n k8s.io image import", "sandbox_image", "KUBELET_EXTRA_ARGS=--cgroup-driver=systemd", "br_netfilter")
			contains(t, "setup-containerd", config.file(t, "/opt/bin/setup-containerd"),
				"{{registry.url}}", "{{registry.url.endpoint}}", "{{registry.username}}", "{{registry.password}}", "{{registry.token}}")
			contains(t, "unit", config.file(t, "/etc/systemd/system/deploy-kube-system.service"),
				"Requires=containerd.service", "StartLimitInterval=0", "Restart=on-failure", test.unit)
			if test.absent != "" && strings.Contains(string(text), test.absent) {
				t.Errorf("userdata contains %q", test.absent)
			}
			if len(config.Run) != 7 || config.Run[4] != "/opt/bin/setup-kube-system" || config.Run[6] != "systemctl start deploy-kube-system" {
				t.Errorf("runcmd %q is not in the order of contract 4.5", config.Run)
			}
			for _, path := range paths {
				if strings.HasPrefix(path, "/opt/bin/") {
					bashReads(t, path, config.file(t, path))
				}
			}
		})
	}
}

func testEtcd() []EtcdMember {
	return []EtcdMember{{"etcd-1", netip.MustParseAddr("10.1.1.21")}, {"etcd-2", netip.MustParseAddr("10.1.1.22")}}
}

// Contract 4.2, 4.4 and 4.7 of the nodes for etcd alone (C29).
func TestEtcdNodeUserdata(t *testing.T) {
	t.Parallel()
	params := testParams()
	params.Etcd, params.EtcdNode = testEtcd(), "etcd-2"
	text, err := EtcdNodeUserdata(params)
	if err != nil {
		t.Fatal(err)
	}
	golden(t, "etcd-node.yml", text)
	var config cloudConfig
	if err := yaml.Unmarshal(text, &config); err != nil {
		t.Fatal(err)
	}
	contains(t, "unit", config.file(t, "/etc/systemd/system/etcd.service"), "--name etcd-2 ", "--listen-client-urls http://10.1.1.22:2379,http://127.0.0.1:2379 ",
		"--initial-cluster etcd-1=http://10.1.1.21:2380,etcd-2=http://10.1.1.22:2380 ", "Type=exec")
	script := config.file(t, "/opt/bin/setup-etcd-node")
	contains(t, "script", script, "etcd/etcd-linux-amd64.tar.gz", "/mnt/etcddisk", "SLEEP=15\n")
	bashReads(t, "setup-etcd-node", script)
	params.EtcdNode = "etcd-3"
	if _, err := EtcdNodeUserdata(params); err == nil || !strings.Contains(err.Error(), "none of the etcd nodes") {
		t.Errorf("a node that is none of them: %v", err)
	}
}

func contains(t *testing.T, what, text string, pieces ...string) {
	t.Helper()
	for _, piece := range pieces {
		if !strings.Contains(text, piece) {
			t.Errorf("%s does not contain %q", what, piece)
		}
	}
}

// bashReads asks bash itself whether the script is well-formed.
func bashReads(t *testing.T, path, script string) {
	t.Helper()
	cmd := exec.Command("bash", "-n")
	cmd.Stdin = strings.NewReader(script)
	if output, err := cmd.CombinedOutput(); err != nil {
		t.Errorf("bash cannot read %s: %v: %s", path, err, output)
	}
}

func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	path := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(path, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("userdata differs from %s; look at the difference after go test -update", path)
	}
}

func TestUserdataNamesAllProblems(t *testing.T) {
	t.Parallel()
	params := testParams()
	params.PublicKeys = []string{"a\"b"}
	params.Token = "short"
	params.CertificateKey = ""
	params.Version = "v1.34.4"
	_, err := ControlNodeUserdata(params)
	if err == nil {
		t.Fatal("got no error")
	}
	contains(t, "error", err.Error(), `cannot render control-node.yml.tmpl`, `"a\"b"`, `token "short"`, `certificate key ""`, `version "v1.34.4"`)
}

func TestNewUserdataParams(t *testing.T) {
	t.Parallel()
	params, err := NewUserdataParams(uuid.MustParse("3f0c5a1b-2c3d-4e5f-6071-8293a4b5c6d7"), netip.MustParseAddr("10.1.1.11"), "1.34.4", "ssh-rsa A")
	if err != nil {
		t.Fatal(err)
	}
	if want := "3f0c5a.1b2c3d4e5f607182"; params.Token != want {
		t.Errorf("got token %q, want %q", params.Token, want)
	}
	if want := "3f0c5a1b2c3d4e5f60718293a4b5c6d73f0c5a1b2c3d4e5f60718293a4b5c6d7"; params.CertificateKey != want {
		t.Errorf("got certificate key %q, want %q", params.CertificateKey, want)
	}
	if _, err := ControlNodeUserdata(params); err != nil {
		t.Error(err)
	}

	if _, err := tls.X509KeyPair(params.Certificates.Cert, params.Certificates.Key); err != nil {
		t.Errorf("certificate and key do not fit: %v", err)
	}
	roots := x509.NewCertPool()
	roots.AppendCertsFromPEM(params.Certificates.CA)
	block, _ := pem.Decode(params.Certificates.Cert)
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"kubernetes.default.svc.cluster.local", "10.1.1.11"} {
		if _, err := certificate.Verify(x509.VerifyOptions{DNSName: name, Roots: roots}); err != nil {
			t.Errorf("certificate does not hold for %s: %v", name, err)
		}
	}
}
