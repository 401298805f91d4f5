// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"unicode/utf8"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/kubeadm"
)

func tarOf(t *testing.T, files map[string]string) string {
	t.Helper()
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for name, text := range files {
		err := archive.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(text))})
		if _, failed := archive.Write([]byte(text)); err != nil || failed != nil {
			t.Fatal(err, failed)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

func zipped(t *testing.T, text string) string {
	t.Helper()
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	if _, err := w.Write([]byte(text)); err != nil || w.Close() != nil {
		t.Fatal(err)
	}
	return out.String()
}

// isoTree is a folder with all that a binaries ISO for this machine holds.
func isoTree(t *testing.T) string {
	t.Helper()
	const version = "v1.34.4"
	program := "\x7fELF" + strings.Repeat("\x00", 14) + map[string]string{"amd64": "\x3e", "arm64": "\xb7"}[runtime.GOARCH] + strings.Repeat("\x00", 45) + version
	files := map[string]string{
		"k8s/kubeadm": program, "k8s/kubelet": program, "k8s/kubectl": program,
		"kubelet.service": "[Service]\n", "10-kubeadm.conf": "[Service]\n",
		"network.yaml": "apiVersion: v1\nkind: Pod\n", "dashboard.yaml": "apiVersion: v1\nkind: Pod\n",
		"cni/cni-plugins-" + runtime.GOARCH + ".tgz":           zipped(t, tarOf(t, map[string]string{"loopback": program})),
		"cri-tools/crictl-linux-" + runtime.GOARCH + ".tar.gz": zipped(t, tarOf(t, map[string]string{"crictl": program})),
	}
	for _, name := range []string{"kube-apiserver:" + version, "kube-controller-manager:" + version, "kube-scheduler:" + version, "kube-proxy:" + version,
		"coredns/coredns:v1.12.1", "etcd:3.6.5-0", "pause:3.10.1"} {
		files["docker/"+path.Base(name)+".tar"] = tarOf(t, map[string]string{
			"manifest.json": fmt.Sprintf(`[{"Config":"c","RepoTags":["registry.k8s.io/%s"],"Layers":[]}]`, name),
			"c":             fmt.Sprintf(`{"os":"linux","architecture":%q,"rootfs":{"type":"layers","diff_ids":[]}}`, runtime.GOARCH)})
	}
	folder := t.TempDir()
	for name, text := range files {
		path := filepath.Join(folder, name)
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(text), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	return folder
}

// A builder's way: check, manifest, check again; then a file changes.
func TestISOCommands(t *testing.T) {
	t.Parallel()
	folder := isoTree(t)
	code, out, errs := call(t, "iso", "check", folder)
	if code != 0 || errs != "" || !strings.Contains(out, ": complete\n") || !strings.Contains(out, `nodes will say "not verified"`) {
		t.Fatalf("check: %d %s\n%s", code, errs, out)
	}
	if code, out, errs := call(t, "iso", "manifest", folder); code != 0 || errs != "" || !strings.HasPrefix(out, folder+"/SHA256SUMS: 16 files, ") {
		t.Fatalf("manifest: %d %s\n%s", code, errs, out)
	}
	code, out, _ = call(t, "iso", "check", "-o", "json", folder)
	var found kubeadm.ISOContents
	if err := json.Unmarshal([]byte(out), &found); code != 0 || err != nil || !found.Complete || !found.Manifest.Verified || found.Version != "v1.34.4" {
		t.Errorf("check -o json: %d %v\n%s", code, err, out)
	}
	if strings.Contains(out, "null") {
		t.Errorf("an empty list is null:\n%s", out)
	}
	if err := os.WriteFile(folder+"/network.yaml", []byte("apiVersion: v1\nkind: Job\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	code, out, errs = call(t, "iso", "check", folder)
	if code != 1 || errs != "" || !strings.Contains(out, ": NOT COMPLETE\n") || !strings.Contains(out, "iso-checksum: network.yaml of ") || !strings.Contains(out, "What to do: ") {
		t.Errorf("check of a changed folder: %d %s\n%s", code, errs, out)
	}
	if code, _, errs := call(t, "iso", "check", folder+"/none"); code != 1 || !strings.Contains(errs, "no such file") {
		t.Errorf("check of nothing: %d %s", code, errs)
	}
	if code, _, errs := call(t, "iso", "manifest", t.TempDir()); code != 1 || !strings.Contains(errs, "no content of a binaries ISO") {
		t.Errorf("manifest of nothing: %d %s", code, errs)
	}
}

// What the check says is read on 80 columns.
func TestISOScreen(t *testing.T) {
	t.Parallel()
	var out bytes.Buffer
	newScreen(&out).iso(&kubeadm.ISOContents{
		Path: "setup-v1.34.4.iso", Kind: kubeadm.ISOImageFile, Label: "CDROM", Bytes: 431_000_000, Version: "v1.34.4", Architecture: "amd64",
		Programs:      []string{"kubeadm", "kubelet", "kubectl"},
		Archives:      []kubeadm.ISOArchive{{File: "cni/cni-plugins-linux-amd64-v1.7.1.tgz", Version: "v1.7.1", Files: 20}, {File: "cri-tools/crictl-linux-amd64.tar.gz", Files: 1}},
		Images:        []kubeadm.ISOImage{{File: "docker/pause.tar", Bytes: 760_000, Names: []string{"registry.k8s.io/pause:3.10.1"}}, {File: "docker/etcd.tar", Bytes: 30_000_000}},
		MissingImages: []string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns", "etcd"},
		AddOns:        kubeadm.ISOAddOns{Network: true, Headlamp: true, CSI: true},
		Manifest:      kubeadm.ISOManifest{Present: true, Files: 25, Verified: true},
		Problems:      []kubeadm.ISOProblem{{Code: fault.ISOInvalid, Message: "docker/etcd.tar: cannot read the image archive: unexpected EOF"}},
		Warnings:      []kubeadm.ISOProblem{{Code: fault.ImageMissing, Message: "headlamp.yaml uses images that are not on the ISO; nodes would have to fetch them: ghcr.io/headlamp-k8s/headlamp:v0.30.0"}},
	})
	const want = `setup-v1.34.4.iso: NOT COMPLETE

  Kubernetes  v1.34.4 amd64
  Medium      image, 431 MB, label "CDROM"
  SHA256SUMS  25 files, all as listed
  Programs    kubeadm, kubelet, kubectl
  Archives    cni/cni-plugins-linux-amd64-v1.7.1.tgz, v1.7.1, 20 files
              cri-tools/crictl-linux-amd64.tar.gz, 1 file
  Add-ons     network, headlamp, csi
  Images      2 archives, lacking kube-apiserver, kube-controller-manager,
              kube-scheduler, kube-proxy, coredns, etcd
                760 kB  registry.k8s.io/pause:3.10.1
                 30 MB  etcd.tar: cannot be read

Problems
  iso-invalid: docker/etcd.tar: cannot read the image archive: unexpected EOF
  What to do: Build the ISO again; check the downloads named in the message.

Warnings
  image-missing: headlamp.yaml uses images that are not on the ISO; nodes would
  have to fetch them: ghcr.io/headlamp-k8s/headlamp:v0.30.0
`
	if out.String() != want {
		t.Errorf("got\n%s\nwant\n%s", out.String(), want)
	}
	for line := range strings.Lines(out.String()) {
		if utf8.RuneCountInString(line) > 81 {
			t.Errorf("%q is wider than 80 columns", line)
		}
	}
}

// The steps' notes say whether what was installed is verified, where 80 columns show
// it.
func TestNotesOfVerification(t *testing.T) {
	t.Parallel()
	for _, verified := range []bool{false, true} {
		want := "not verified"
		tree := isoTree(t)
		if verified {
			want = "checked against SHA256SUMS"
			if code, _, errs := call(t, "iso", "manifest", tree); code != 0 {
				t.Fatal(errs)
			}
		}
		m := hosttest.New(t)
		m.AddUnit(host.Unit{Name: "kubelet.service"})
		m.Program(kubeadm.Kubeadm, func(host.Command) (string, error) { return "v1.34.4\n", nil })
		image := make([]byte, 17*2048)
		copy(image[16*2048:], "\x01CD001\x01")
		m.Write("/sys/class/block/sr0/size", "2048\n")
		m.Write("/dev/sr0", string(image))
		m.AddMedium("/dev/sr0", tree)
		bundle, err := kubeadm.FindISO(t.Context(), m.Host(), "", "", t.Logf)
		if err != nil {
			t.Fatal(err)
		}
		n := &node{host: m.Host(), bundle: bundle}
		result, err := n.install(t.Context(), t.Logf)
		if err != nil || result.Note != "programs and units, "+want {
			t.Errorf("install: %q, %v; want one with %q", result.Note, err, want)
		}
		if note := n.imagesNote(", without the control plane's"); note != "7 files, 0 MB, "+want+", without the control plane's" {
			t.Errorf("images: %q", note)
		}
	}
}

// A kill between the record that the ISO is installed and the removal of what was
// fetched of a router's: the next boot removes it.
func TestReleaseAfterKill(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Write("/var/lib/nodeagent/cks-iso/k8s/kubelet", "x")
	n := &node{host: m.Host(), installed: &agent.Installed{Version: "v1.34.4"}}
	result, err := n.releaseISO(t.Context(), t.Logf)
	if err != nil || !result.Skipped || result.Note != "installed before: v1.34.4" || m.Host().Exists("/var/lib/nodeagent/cks-iso") {
		t.Errorf("release: %+v, %v", result, err)
	}
}
