// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/secret"
)

const (
	testToken = "abcdef.0123456789abcdef"
	testKey   = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

// cloudStackPlan is what the management server's userdata asks for.
func cloudStackPlan() InitPlan {
	return InitPlan{
		NodeName:         "Prod1-control-19a2f0c4d10",
		AdvertiseAddress: "10.1.1.57",
		Version:          "1.34.4",
		Endpoint:         "10.1.1.57:6443",
		CertSANs:         []string{"10.1.1.57"},
		Token:            secret.New(testToken),
		TokenTTL:         "0",
		CertificateKey:   secret.New(testKey),
		UploadCerts:      true,
	}
}

func TestRenderInit(t *testing.T) {
	t.Parallel()
	old := cloudStackPlan()
	old.Version = "v1.30.14"
	flags := InitPlan{Version: "v1.35.0", Flags: []string{
		"--token", testToken, "--token-ttl=2h", "--certificate-key=" + testKey, "--node-name", "other", "--cri-socket=/run/x.sock",
		"--apiserver-advertise-address=10.1.1.58", "--apiserver-bind-port=6444", "--apiserver-cert-extra-sans=a.example.com,10.1.1.58",
		"--control-plane-endpoint=c.example.com:6444", "--kubernetes-version=1.34.4", "--cert-dir=/etc/pki", "--image-repository=example.com/k8s",
		"--feature-gates=ControlPlaneKubeletLocalMode=true,NodeLocalCRISocket=false", "--pod-network-cidr=10.244.0.0/16", "--service-cidr=10.96.0.0/12",
		"--service-dns-domain=k.local", "--skip-phases=addon/kube-proxy,addon/coredns", "--patches=/etc/patches",
		"--upload-certs", "--ignore-preflight-errors", "NumCPU,Mem", "--v=9", "--unheard-of=1", "-v", "3",
	}}
	for name, test := range map[string]struct {
		plan InitPlan
		args string
	}{
		"minimal":     {InitPlan{Version: "1.34.4"}, ""},
		"cloudstack":  {cloudStackPlan(), "--upload-certs"},
		"before-1.31": {old, "--upload-certs"},
		"all-flags":   {flags, "--upload-certs --ignore-preflight-errors NumCPU,Mem --v=9 --unheard-of=1 -v 3"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			config, err := renderInit(test.plan)
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "kubeadm/init-"+name+".yaml", config.file)
			if got := strings.Join(config.args, " "); got != test.args {
				t.Errorf("arguments = %q, want %q", got, test.args)
			}
		})
	}
}

// A flag that the table lists twice, in the plan and the flags, is there once.
func TestRenderInitOnce(t *testing.T) {
	t.Parallel()
	plan := cloudStackPlan()
	plan.Flags = []string{"--upload-certs", "--apiserver-cert-extra-sans=10.1.1.57"}
	config, err := renderInit(plan)
	if err != nil {
		t.Fatal(err)
	}
	plan.Flags = nil
	want, err := renderInit(plan)
	if err != nil {
		t.Fatal(err)
	}
	if string(config.file) != string(want.file) || !slices.Equal(config.args, want.args) {
		t.Errorf("configuration = %q\n%s\nwant %q\n%s", config.args, config.file, want.args, want.file)
	}
}

// Every problem at once.
func TestRenderInitRefuses(t *testing.T) {
	t.Parallel()
	_, err := renderInit(InitPlan{Version: "newest", Flags: []string{"--apiserver-bind-port=x", "--feature-gates=A", "--patches", "--node-name"}})
	if err == nil {
		t.Fatal("a senseless plan was taken")
	}
	for _, want := range []string{"newest", "apiserver-bind-port", "feature-gates", "patches", "node-name"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if _, err := renderInit(InitPlan{}); err == nil {
		t.Error("a plan without a version was taken: kubeadm would ask the internet (K9)")
	}
}

// C33: secrets are in the file only, and are known for scrubbing, wherever they
// came from.
func TestRenderInitSecrets(t *testing.T) {
	t.Parallel()
	byFlag := InitPlan{Version: "1.34.4", Flags: []string{"--token=" + testToken, "--certificate-key", testKey}}
	for _, plan := range []InitPlan{cloudStackPlan(), byFlag} {
		config, err := renderInit(plan)
		if err != nil {
			t.Fatal(err)
		}
		for _, want := range []string{testToken, testKey} {
			if !strings.Contains(string(config.file), want) || strings.Contains(strings.Join(config.args, " "), want) {
				t.Errorf("%s: want it in the file and not in %q", want, config.args)
			}
			line := scrubber(config.secrets)("using " + want + " and 0123456789abcdef now")
			if strings.Contains(line, want) || strings.Contains(line, "0123456789abcdef") {
				t.Errorf("scrubbed line %q shows a secret", line)
			}
		}
	}
}

func TestImageRepository(t *testing.T) {
	t.Parallel()
	plan := cloudStackPlan()
	if got := plan.ImageRepository(); got != "" {
		t.Errorf("ImageRepository = %q, want none", got)
	}
	plan.Flags = []string{"--image-repository", "example.com/k8s"}
	if got := plan.ImageRepository(); got != "example.com/k8s" {
		t.Errorf("ImageRepository = %q, want example.com/k8s", got)
	}
}

func TestMinorVersion(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]int{"v1.34.4": 34, "1.9.0": 9, "v1.35.0-rc.1": 35} {
		if major, minor, err := minorVersion(text); err != nil || major != 1 || minor != want {
			t.Errorf("minorVersion(%q) = %d, %d, %v; want 1, %d", text, major, minor, err, want)
		}
	}
	for _, text := range []string{"", "v", "1", "v1.", "1.x.2", "-1.2.3", "Client Version: 1.2"} {
		if major, minor, err := minorVersion(text); err == nil {
			t.Errorf("minorVersion(%q) = %d, %d, want an error", text, major, minor)
		}
	}
}
