// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// What is planted below: secrets of every kind that a node is given. None may be in
// what an operator sends around.
const (
	plantedToken    = "q1w2e3.a1b2c3d4e5f6a7b8"
	plantedCertKey  = "5f1c0de5f1c0de5f1c0de5f1c0de5f1c0de5f1c0de5f1c0de5f1c0de5f1c0de0"
	plantedPassword = `Geh'eim&77"wort`
	plantedVM       = "Vm-Passw0rt"
	plantedKeystore = "KeystoreGeheim9"
	plantedRegistry = "RegistryGeheim5"
	plantedData     = "SecretGeheim3"
	plantedJWT      = "eyJhbGciOiJSUzI1NiJ9.eyJzdWIiOiJzeXN0ZW06c2VydmljZWFjY291bnQifQ.c2lnbmF0dXJlc2lnbmF0dXJl"
	plantedKey      = "MIIEpAIBAAKCAQEAwS1rYfVnQzJ0Q3lUbVhNa2V5Z2VoZWltMTIzNDU2Nzg5MGFi"
)

func plantedSecrets() []string {
	return []string{plantedToken, plantedCertKey, plantedPassword, plantedVM, plantedKeystore, plantedRegistry, plantedData, plantedJWT, plantedKey}
}

func plantedPEM() string {
	return "-----BEGIN RSA PRIVATE KEY-----\n" + plantedKey + "\n" + plantedKey + "\n-----END RSA PRIVATE KEY-----\n"
}

// plantedNode is a control node that has secrets wherever a real one has them.
func plantedNode(t *testing.T) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.Write("/proc/sys/kernel/hostname", "prod1-control-1\n")
	encode := func(text string) string { return base64.StdEncoding.EncodeToString([]byte(text)) }
	bootArgs := "type=cksnode name=prod1-control-1 eth0ip=10.1.1.2 eth0mask=255.255.255.0 vmpassword=" + plantedVM + " keystore_password=" + plantedKeystore + " userdata=" + encode("#cloud-config\npassword: "+plantedData+"\n")
	m.Write("/var/cache/cloud/cmdline", bootArgs)
	m.Write("/proc/cmdline", "BOOT_IMAGE=/vmlinuz "+bootArgs)
	record, err := json.Marshal(map[string]string{"bootID": "boot-1", "text": bootArgs})
	if err != nil {
		t.Fatal(err)
	}
	m.Write("/var/lib/nodeagent/boot-args.json", string(record))
	m.Write("/var/lib/cloud/seed/nocloud/user-data", "#cloud-config\npassword: '"+strings.ReplaceAll(plantedPassword, "'", "''")+"'\n")

	kubeadm := "kubeadm join 10.1.1.2:6443 --token " + plantedToken + " --control-plane --certificate-key " + plantedCertKey
	everything := strings.Join([]string{kubeadm, "certificateKey: " + plantedCertKey, "the registry said no to bob:" + plantedRegistry, "auth " + encode("bob:"+plantedRegistry),
		"PASSWORD is " + plantedPassword, "in a URL " + url.QueryEscape(plantedPassword) + " and https://bob:" + plantedRegistry + "@registry.example/", "vm got " + plantedVM + ".",
		"Authorization: Bearer " + plantedJWT, "sa token " + plantedJWT, "keystore " + plantedKeystore, "all of it: " + encode(bootArgs+" "+plantedPassword+" "+kubeadm)}, "\n") + "\n" + plantedPEM()

	fault := fault.New(fault.KubeadmInitFailed, "kubeadm init failed").WithLog(strings.Split(strings.TrimSpace(everything), "\n"))
	state := controlNode()
	failed := &state.Steps[len(state.Steps)-4]
	failed.Status, failed.Error = agent.Failed, &agent.Failure{Code: fault.Code, Message: fault.Message, Log: fault.Log}
	data, err := json.Marshal(state)
	if err != nil {
		t.Fatal(err)
	}
	m.Write(agent.StateFile, string(data))

	m.Write("/run/nodeagent/kubeadm.yaml", "kind: InitConfiguration\nbootstrapTokens:\n- token: "+plantedToken+"\n  ttl: 24h\ncertificateKey: "+plantedCertKey+"\n")
	m.Write("/etc/containerd/config.toml", "[plugins.\"io.containerd.grpc.v1.cri\".registry.configs.\"registry.example\".auth]\n  username = \"bob\"\n  password = \""+plantedRegistry+"\"\n  auth = \""+encode("bob:"+plantedRegistry)+"\"\n")
	m.Write("/etc/containerd/certs.d/registry.example/hosts.toml", "[host.\"https://registry.example\".header]\n  Authorization = \"Basic "+encode("bob:"+plantedRegistry)+"\"\n")
	m.Write("/etc/kubernetes/admin.conf", "users:\n- user:\n    client-key-data: "+encode(plantedPEM())+"\n    token: "+plantedJWT+"\n")
	m.Write("/etc/kubernetes/manifests/etcd.yaml", "kind: Pod\nspec:\n  containers:\n  - command: [etcd, --root-password="+plantedKeystore+"]\n    env:\n    - name: SECRET\n      value: "+plantedData+"\n---\nkind: Secret\ndata:\n  x: "+encode(plantedData)+"\nstringData:\n  y: "+plantedData+"\n")
	for _, log := range []string{"/var/log/cloud-init.log", "/var/log/cloud-init-output.log", "/var/log/nodeagent/kubeadm-init.log", "/var/log/pods/kube-system_etcd-prod1_0c051/etcd/3.log", "/var/log/pods/default_x_1/x/0.log", "/var/log/cloud.log"} {
		m.Write(log, everything)
	}
	for program, path := range map[string]string{"journalctl": "/usr/bin/journalctl", "ps": "/usr/bin/ps", "nft": "/usr/sbin/nft", "dmesg": "/usr/bin/dmesg", "ip": "/usr/sbin/ip", "systemctl": "/usr/bin/systemctl"} {
		m.Write(path, "")
		m.Program(path, func(command host.Command) (string, error) {
			var lines []string
			for line := range strings.Lines(everything) {
				lines = append(lines, "Nov 20 12:00:00 prod1-control-1 "+program+"[77]: "+strings.TrimSpace(line))
			}
			return strings.Join(lines, "\n") + "\n", nil
		})
	}
	return m
}

// findSecrets returns those of the planted secrets that are in a text, also encoded.
func findSecrets(text string) (found []string) {
	texts := []string{text}
	for _, run := range regexp.MustCompile(`[A-Za-z0-9+/_-]{8,}={0,2}`).FindAllString(text, -1) {
		for _, encoding := range []*base64.Encoding{base64.RawStdEncoding, base64.RawURLEncoding} {
			for skip := range 4 { // wherever in a longer one it begins
				run := strings.TrimRight(run, "=")
				if len(run) > skip {
					run = run[skip:]
				}
				decoded, _ := encoding.DecodeString(run[:len(run)/4*4])
				texts = append(texts, string(decoded))
			}
		}
	}
	for _, secret := range plantedSecrets() {
		for _, form := range []string{secret, url.QueryEscape(secret), url.PathEscape(secret), strings.Trim(fmt.Sprintf("%q", secret), `"`)} {
			for _, text := range texts {
				if strings.Contains(text, form) {
					found = append(found, form)
				}
			}
		}
	}
	return found
}

// runDiag runs the command on a machine and returns what is in its file, by name.
func runDiag(t *testing.T, m *hosttest.Machine) map[string]string {
	t.Helper()
	var out bytes.Buffer
	cmd := diagCommand(m.Host())
	cmd.SetArgs([]string{"-o", "-"})
	cmd.SetOut(&out)
	cmd.SetErr(io.Discard)
	if err := cmd.ExecuteContext(t.Context()); err != nil {
		t.Fatal(err)
	}
	return unpackDiag(t, &out)
}

func unpackDiag(t *testing.T, archive io.Reader) map[string]string {
	t.Helper()
	zip, err := gzip.NewReader(archive)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for reader := tar.NewReader(zip); ; {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(reader)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(header.Name, "/")
		files[name] = string(text)
	}
}

// None of the secrets of a node is in what is sent around of it, in no form.
func TestDiagHoldsNoSecrets(t *testing.T) {
	t.Parallel()
	m := plantedNode(t)
	if len(findSecrets(m.Read("/var/log/cloud-init.log"))) < len(plantedSecrets())-2 {
		t.Fatal("the test does not find what it has planted")
	}
	files := runDiag(t, m)
	for name, text := range files {
		if found := findSecrets(text); len(found) > 0 {
			t.Errorf("%s holds %q:\n%s", name, found, text)
		}
	}
	for _, want := range []string{"status.txt", "status.json", "timeline.json", "manifest.txt", "boot-args.txt", "files/var/lib/nodeagent/state.json", "journal/kubelet.txt", "journal/nodeagent.txt", "processes.txt",
		"files/etc/containerd/config.toml", "files/etc/containerd/certs.d/registry.example/hosts.toml", "files/etc/kubernetes/manifests/etcd.yaml", "files/var/log/cloud-init.log",
		"files/var/log/nodeagent/kubeadm-init.log", "pods/kube-system_etcd-prod1_0c051/etcd/3.log", "network/nft.txt", "versions.txt", "files.txt"} {
		if files[want] == "" {
			t.Errorf("it has no %s", want)
		}
	}
	for name := range files {
		if strings.Contains(name, "admin.conf") || strings.Contains(name, "user-data") || strings.Contains(name, "pods/default_") {
			t.Errorf("it has %s", name)
		}
	}
	// What tells something is still there.
	for name, want := range map[string]string{"boot-args.txt": "eth0ip=10.1.1.2", "journal/kubelet.txt": "the registry said no to bob:[redacted]", "files/run/nodeagent/kubeadm.yaml": "kind: InitConfiguration",
		"files/etc/containerd/config.toml": `username = "bob"`, "manifest.txt": "LEFT OUT: not on this machine (nft list"} {
		if name == "manifest.txt" {
			want = "LEFT OUT: not on this machine (lsblk"
		}
		if !strings.Contains(files[name], want) {
			t.Errorf("%s does not say %q:\n%s", name, want, files[name])
		}
	}
	if name := files["manifest.txt"]; !strings.Contains(name, "nodeagent-diag-prod1-control-1-") {
		t.Errorf("the manifest does not name the node:\n%s", name)
	}
}

// The file is its owner's, is never another's, and nothing is left of a failure.
func TestDiagFile(t *testing.T) {
	m := hosttest.New(t)
	t.Chdir(t.TempDir())
	diag := func(ctx context.Context, args ...string) (string, error) {
		var out bytes.Buffer
		cmd := diagCommand(m.Host())
		cmd.SetArgs(args)
		cmd.SetOut(&out)
		cmd.SetErr(io.Discard)
		cmd.SilenceUsage, cmd.SilenceErrors = true, true
		return out.String(), errors.Join(cmd.ExecuteContext(ctx), nil)
	}
	if _, err := diag(t.Context()); err != nil {
		t.Fatal(err)
	}
	names, err := filepath.Glob("nodeagent-diag-node-*Z.tar.gz")
	if err != nil || len(names) != 1 {
		t.Fatalf("made %q, %v", names, err)
	}
	if info, err := os.Stat(names[0]); err != nil || info.Mode() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
	// A link to a file that is not there is a trap: root would make it.
	if err := os.Symlink("elsewhere", "link"); err != nil {
		t.Fatal(err)
	}
	for _, taken := range []string{names[0], "link"} {
		if _, err := diag(t.Context(), "-o", taken); err == nil || !strings.Contains(err.Error(), "there is such a file already") {
			t.Errorf("-o %s: %v", taken, err)
		}
	}
	if _, err := os.Stat("elsewhere"); err == nil {
		t.Error("a link was followed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := diag(ctx, "-o", "stopped"); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
	if names, _ := filepath.Glob("*.part"); len(names) > 0 {
		t.Errorf("left %q", names)
	}
	if _, err := os.Lstat("stopped"); err == nil {
		t.Error("a part of the archive was left")
	}
	if err := explainWrite("x", syscall.ENOSPC); !strings.Contains(err.Error(), "the disk is full") {
		t.Errorf("a full disk: %v", err)
	}
}

// Logs of containers that had to be started again come first, then the newest.
func TestChooseLogs(t *testing.T) {
	t.Parallel()
	var logs []podLog
	for i := range 100 {
		logs = append(logs, podLog{name: fmt.Sprint("fine", i), written: *at(float64(i))})
	}
	logs = append(logs, podLog{name: "failing", restarts: 3, written: *at(-5)})
	got := chooseLogs(logs)
	if len(got) != maxPodLogs || got[0].name != "failing" || got[1].name != "fine99" {
		t.Errorf("%d logs, first %v", len(got), got[:2])
	}
}

// On a router the log of CloudStack's scripts stays; of cloud-init's files only those
// without userdata come; a FIFO holds nothing up, and the secrets of VPNs are known.
func TestDiagLeavesOut(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write("/var/cache/cloud/cmdline", "type=router name=r-1-VM")
	m.Write("/var/log/cloud.log", "Adding vpn user bob * Vpngeheim1 *\n")
	m.Write("/etc/ppp/chap-secrets", "# x\nbob * Vpngeheim1 *\n")
	m.Write("/etc/ipsec.d/a.secrets", ": PSK \"Pskgeheim1\"\n")
	m.Write("/var/log/cloud-init.log", "bob Vpngeheim1 Pskgeheim1\n")
	m.Write("/run/cloud-init/instance-data.json", `{"userdata": "Vpngeheim2"}`)
	m.Write("/run/cloud-init/instance-data-sensitive.json", "{}")
	m.Write("/run/cloud-init/combined-cloud-config.json", "{}")
	m.Write("/run/cloud-init/status.json", "{}")
	m.Write("/etc/cni/net.d/calico-kubeconfig", "x")
	m.Write("/etc/cni/net.d/10-calico.conflist", "x")
	m.Write("/home/cloud/.kube/x", "")
	m.Write("/var/log/pods/kube-system_a_1/a/0.log", "x")
	if err := errors.Join(syscall.Mkfifo(m.Path("/home/cloud/.kube/config"), 0o600), os.Symlink("0.log", m.Path("/var/log/pods/kube-system_a_1/a/1.log"))); err != nil {
		t.Fatal(err)
	}
	files := runDiag(t, m)
	for _, name := range []string{"files/var/log/cloud.log", "files/run/cloud-init/instance-data.json", "files/run/cloud-init/instance-data-sensitive.json",
		"files/run/cloud-init/combined-cloud-config.json", "files/etc/cni/net.d/calico-kubeconfig", "pods/kube-system_a_1/a/1.log"} {
		if files[name] != "" {
			t.Errorf("it has %s", name)
		}
	}
	for _, name := range []string{"files/run/cloud-init/status.json", "files/etc/cni/net.d/10-calico.conflist", "pods/kube-system_a_1/a/0.log"} {
		if files[name] == "" {
			t.Errorf("it has no %s", name)
		}
	}
	if got := files["files/var/log/cloud-init.log"]; got != "bob [redacted] [redacted]\n" {
		t.Errorf("a log holds %q", got)
	}
	for _, want := range []string{"Not looked through for secrets: /home/cloud/.kube/config: ", `on a machine of type "router"`} {
		if !strings.Contains(files["manifest.txt"], want) {
			t.Errorf("the manifest does not say %q:\n%s", want, files["manifest.txt"])
		}
	}
	d := &diagnosis{host: m.Host()}
	if err := os.Symlink("../../../cloud.log", m.Path("/var/log/pods/kube-system_a_1/a/2.log")); err != nil {
		t.Fatal(err)
	}
	if err := d.copyPodLog(t.Context(), "/var/log/pods/kube-system_a_1/a/2.log", io.Discard); err == nil {
		t.Error("a link out of the logs' folder was followed")
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, _, err := knownSecrets(ctx, m.Host()); !errors.Is(err, context.Canceled) {
		t.Errorf("stopped: %v", err)
	}
}

// Until it is whole the file has another name, and it replaces none.
func TestMoveTo(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	part, name := filepath.Join(dir, "a.part"), filepath.Join(dir, "a")
	if err := errors.Join(os.WriteFile(part, []byte("new"), 0o600), os.WriteFile(name, []byte("old"), 0o600)); err != nil {
		t.Fatal(err)
	}
	if err := moveTo(part, name); !errors.Is(err, os.ErrExist) {
		t.Errorf("replaced: %v", err)
	}
	if err := errors.Join(os.Remove(name), moveTo(part, name)); err != nil {
		t.Error(err)
	}
}
