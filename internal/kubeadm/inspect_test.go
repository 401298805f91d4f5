// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const etcdImage = "registry.k8s.io/etcd:3.6.5-0"

// wholeISO is all that a binaries ISO for amd64 holds.
func wholeISO(t testing.TB) map[string]string {
	const version = "v1.34.4"
	files := map[string]string{
		"kubelet.service":                        "[Service]\nExecStart=/usr/bin/kubelet\n",
		"10-kubeadm.conf":                        "[Service]\nExecStart=\n",
		"network.yaml":                           "# the network\n---\napiVersion: v1\nkind: Pod\nspec:\n  containers:\n  - image: \"registry.k8s.io/pause:3.10.1\" # here\n",
		"headlamp.yaml":                          "apiVersion: v1\nkind: Pod\n",
		"snapshot-crds.yaml":                     "apiVersion: v1\nkind: CRD\n",
		"manifest.yaml":                          "apiVersion: v1\nkind: CSI\n",
		"cni/cni-plugins-linux-amd64-v1.7.1.tgz": tarGz(t, map[string]string{"./loopback": program("amd64", ""), "./LICENSE": "free"}),
		"cri-tools/crictl-linux-amd64.tar.gz":    tarGz(t, map[string]string{"crictl": program("amd64", "")}),
		"docker/etcd:3.6.5-0.tar":                string(tarOf(t, ociFiles(t, map[string]string{"io.containerd.image.name": etcdImage}, true))),
		"docker/pause:3.10.1.tar":                string(tarOf(t, dockerFiles(t, []string{pause}, strings.Repeat("p", 10000)))),
		"docker/coredns:v1.12.1.tar":             string(tarOf(t, dockerFiles(t, []string{"registry.k8s.io/coredns/coredns:v1.12.1"}, "c"))),
	}
	for _, name := range []string{"kubeadm", "kubelet", "kubectl"} {
		files["k8s/"+name] = program("amd64", strings.Repeat("-", 300<<10)+version)
	}
	for _, name := range neededImages[:versionedImages] {
		files["docker/"+name+":"+version+".tar"] = string(tarOf(t, dockerFiles(t, []string{"registry.k8s.io/" + name + ":" + version}, name)))
	}
	return files
}

// xorriso makes an ISO as CloudStack's builder does.
func xorriso(t testing.TB, files map[string]string) string {
	t.Helper()
	folder, image := filepath.Join(t.TempDir(), "tree"), filepath.Join(t.TempDir(), "image.iso")
	for name, text := range files {
		writeFile(t, filepath.Join(folder, name), text)
	}
	if out, err := exec.Command("xorriso", "-as", "mkisofs", "-quiet", "-V", "CDROM", "-J", "-R", "-o", image, folder).CombinedOutput(); err != nil {
		t.Fatalf("xorriso: %v: %s", err, out)
	}
	return image
}

func TestInspectWholeISO(t *testing.T) {
	t.Parallel()
	files := wholeISO(t)
	image := xorriso(t, withSums(files))
	folder := t.TempDir()
	for name, text := range files {
		writeFile(t, filepath.Join(folder, name), text)
	}
	for path, kind := range map[string]ISOKind{image: ISOImageFile, folder: ISOFolder} {
		c, err := InspectISO(t.Context(), path)
		if err != nil {
			t.Fatal(err)
		}
		if !c.Complete || len(c.Problems)+len(c.Warnings) > 0 {
			t.Errorf("%s: problems %v, warnings %v", kind, c.Problems, c.Warnings)
		}
		if c.Kind != kind || c.Version != "v1.34.4" || c.Architecture != "amd64" || len(c.Programs) != 3 || len(c.Images) != 7 || len(c.MissingImages) > 0 {
			t.Errorf("%s: %+v", kind, c)
		}
		if want := (ISOManifest{Present: true, Files: len(files) - 1, Verified: true}); c.Manifest != want {
			t.Errorf("%s: manifest %+v, want %+v", kind, c.Manifest, want)
		}
		if want := (ISOAddOns{Network: true, Headlamp: true, CSI: true}); c.AddOns != want {
			t.Errorf("%s: add-ons %+v, want %+v", kind, c.AddOns, want)
		}
		if want := []ISOArchive{{"cni/cni-plugins-linux-amd64-v1.7.1.tgz", "v1.7.1", 2}, {"cri-tools/crictl-linux-amd64.tar.gz", "", 1}}; !slices.Equal(c.Archives, want) {
			t.Errorf("%s: archives %+v, want %+v", kind, c.Archives, want)
		}
	}
}

// C12, C18, K1 and contract 6.1: what goes wrong with ISOs, in the making or after;
// the check says what the node would meet an hour later.
func TestInspectBrokenISO(t *testing.T) {
	t.Parallel()
	docker := func(tag string, layers ...string) string {
		return string(tarOf(t, dockerFiles(t, []string{tag}, layers...)))
	}
	for title, test := range map[string]struct {
		change func(files map[string]string)
		image  func(image []byte) []byte // what becomes of the ISO
		want   []string                  // the problems: code and part of the message
		warn   string
	}{
		"lacks files": {change: func(f map[string]string) {
			delete(f, "k8s/kubelet")
			delete(f, "10-kubeadm.conf")
			f["k8s/kubectl"] = ""
		}, want: []string{"iso-incomplete: it lacks k8s/kubelet", "iso-incomplete: it lacks k8s/kubectl (empty)", "iso-incomplete: it lacks 10-kubeadm.conf"}},
		"lacks images": {change: func(f map[string]string) { delete(f, "docker/pause:3.10.1.tar"); delete(f, "docker/etcd:3.6.5-0.tar") },
			want: []string{"image-missing: no archive in docker/ has the images etcd, pause"}, warn: "image-missing: network.yaml uses images"},
		"no binaries ISO": {change: func(f map[string]string) {
			clear(f)
			f["openstack/latest/user_data"] = "x"
		}, want: []string{"iso-incomplete: it is no binaries ISO"}},
		"two versions": {change: func(f map[string]string) {
			f["docker/kube-proxy:v1.34.4.tar"] = docker("registry.k8s.io/kube-proxy:v1.33.1", "x")
		}, want: []string{"iso-invalid: its images are not of one version: v1.33.1 (kube-proxy), v1.34.4 (kube-apiserver, "}},
		"another kubeadm": {change: func(f map[string]string) { f["k8s/kubeadm"] = program("amd64", "v1.33.1") },
			want: []string{"iso-invalid: k8s/kubeadm is of another version than the images, v1.34.4"}},
		"two architectures": {change: func(f map[string]string) { f["k8s/kubelet"] = program("arm64", "v1.34.4") },
			want: []string{"iso-invalid: its programs are not of one architecture: kubeadm and kubectl for amd64, kubelet for arm64"}},
		// Contract 11, 18: CloudStack's etcd is amd64's on every ISO.
		"arm64 with plugins of amd64": {change: func(f map[string]string) {
			for _, name := range []string{"kubeadm", "kubelet", "kubectl"} {
				f["k8s/"+name] = program("arm64", "v1.34.4")
			}
			for name := range f {
				if strings.HasPrefix(name, "docker/") {
					delete(f, name)
				}
			}
			f["docker/pause.tar"] = docker(pause, "x")
			f["etcd/etcd-linux-amd64.tar.gz"] = tarGz(t, map[string]string{"etcd-v3.5.1/etcd": program("amd64", "")})
		}, want: []string{"iso-invalid: docker/pause.tar: image registry.k8s.io/pause:3.10.1 is built for amd64, the programs for arm64", "image-missing: ",
			"iso-invalid: cni/cni-plugins-linux-amd64-v1.7.1.tgz: loopback is built for amd64", "iso-invalid: cri-tools/crictl-linux-amd64.tar.gz: crictl is built",
			"iso-invalid: etcd/etcd-linux-amd64.tar.gz: etcd-v3.5.1/etcd is built for amd64"}},
		"pages in place of files": {change: func(f map[string]string) {
			f["k8s/kubeadm"] = "<!DOCTYPE html>"
			f["kubelet.service"] = "404: Not Found"
			f["network.yaml"] = "404: Not Found"
			f["headlamp.yaml"] = "<html><body>a: b</body></html>"
			f["docker/pause:3.10.1.tar"] = "<html>"
		}, want: []string{`iso-invalid: k8s/kubeadm: it is no program: it begins with "<!DOCTYPE html>"`, "iso-invalid: docker/pause:3.10.1.tar: ",
			"image-missing: ", `iso-invalid: kubelet.service is no unit file: it begins with "404: Not Found"`,
			"iso-invalid: headlamp.yaml is no Kubernetes manifest", "iso-invalid: network.yaml is no Kubernetes manifest"}},
		"archives cut short": {change: func(f map[string]string) {
			for _, name := range []string{"cri-tools/crictl-linux-amd64.tar.gz", "docker/pause:3.10.1.tar", "docker/etcd:3.6.5-0.tar"} {
				f[name] = f[name][:len(f[name])/3]
			}
		}, want: []string{"iso-invalid: docker/etcd:3.6.5-0.tar: ", "iso-invalid: docker/pause:3.10.1.tar: ", "image-missing: ", "iso-invalid: cri-tools/crictl-linux-amd64.tar.gz: "}, warn: "image-missing: network.yaml"},
		"a damaged gzip": {change: func(f map[string]string) {
			data := []byte(f["cri-tools/crictl-linux-amd64.tar.gz"])
			data[len(data)-6] ^= 1 // its checksum
			f["cri-tools/crictl-linux-amd64.tar.gz"] = string(data)
		}, want: []string{"iso-invalid: cri-tools/crictl-linux-amd64.tar.gz: cannot unpack it: gzip: invalid checksum"}},
		"the wrong archive": {change: func(f map[string]string) {
			f["cri-tools/crictl-linux-amd64.tar.gz"] = f["cni/cni-plugins-linux-amd64-v1.7.1.tgz"]
		}, want: []string{"iso-incomplete: cri-tools/crictl-linux-amd64.tar.gz: it lacks crictl"}},
		"a damaged layer": {image: func(image []byte) []byte { return bytes.Replace(image, []byte("ppppp"), []byte("ppqpp"), 1) },
			want: []string{"iso-invalid: docker/pause:3.10.1.tar: image registry.k8s.io/pause:3.10.1 is damaged"}},
		"a damaged file with a manifest": {change: func(f map[string]string) { withSums(f) },
			image: func(image []byte) []byte { return bytes.Replace(image, []byte("ppppp"), []byte("ppqpp"), 1) },
			want:  []string{"iso-checksum: docker/pause:3.10.1.tar of ", "image-missing: "}, warn: "image-missing: network.yaml"},
		"changed after the manifest": {change: func(f map[string]string) {
			withSums(f)
			f["docker/new.tar"] = docker("a:1", "x")
			delete(f, "headlamp.yaml")
		}, want: []string{`iso-checksum: SHA256SUMS lists files that are not there: "headlamp.yaml"; SHA256SUMS does not list "docker/new.tar"`}, warn: "without headlamp.yaml or dashboard.yaml"},
		"a hostile manifest": {change: func(f map[string]string) { f[SumsFile] = sumLine("../../etc/shadow", "") + sumLine("a\x1b", "") },
			want: []string{`iso-checksum: cannot use SHA256SUMS: line 1: "../../etc/shadow" is no name`}},
		"cut off": {image: func(image []byte) []byte { return image[:len(image)/2] },
			want: []string{"iso-truncated: it is cut off: ", "iso-truncated: the medium ends before the end of k8s/kubelet, "}},
		"cut off in its folders": {image: func(image []byte) []byte { return image[:40<<10] },
			want: []string{"iso-truncated: it is cut off: 40960 of ", "iso-truncated: the medium ends before the end of its folders"}},
		"no ISO":  {image: func([]byte) []byte { return []byte("PK\x03\x04") }, want: []string{"iso-invalid: "}},
		"nothing": {image: func([]byte) []byte { return nil }, want: []string{"iso-invalid: "}},
		"CNI brought by others": {change: func(f map[string]string) { delete(f, "network.yaml"); delete(f, "manifest.yaml") },
			warn: "without network.yaml nodes are not Ready"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			files := wholeISO(t)
			if test.change != nil {
				test.change(files)
			}
			image := xorriso(t, files)
			if test.image != nil {
				data, err := os.ReadFile(image)
				if err == nil {
					err = os.WriteFile(image, test.image(data), 0o644)
				}
				if err != nil {
					t.Fatal(err)
				}
			}
			c, err := InspectISO(t.Context(), image)
			if err != nil {
				t.Fatal(err)
			}
			got := problemLines(c.Problems)
			for _, want := range test.want {
				if !slices.ContainsFunc(got, func(line string) bool { return strings.HasPrefix(line, want) }) {
					t.Errorf("no problem %q in\n%s", want, strings.Join(got, "\n"))
				}
			}
			if c.Complete != (len(test.want) == 0) || len(got) != len(test.want) {
				t.Errorf("complete %v, problems\n%s", c.Complete, strings.Join(got, "\n"))
			}
			if warnings := strings.Join(problemLines(c.Warnings), "\n"); !strings.Contains(warnings, test.warn) {
				t.Errorf("warnings %q, want one with %q", warnings, test.warn)
			}
		})
	}
}

func problemLines(problems []ISOProblem) (lines []string) {
	for _, p := range problems {
		lines = append(lines, string(p.Code)+": "+p.Message)
	}
	return lines
}

func TestInspectNothing(t *testing.T) {
	t.Parallel()
	if _, err := InspectISO(t.Context(), "/does/not/exist"); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("error %v", err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := InspectISO(ctx, t.TempDir()); !errors.Is(err, context.Canceled) {
		t.Errorf("error %v", err)
	}
}

// C14: a drive whose storage hangs ends the check, and is said once.
func TestInspectStalled(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		whole := fstest.MapFS{}
		for name, text := range withSums(wholeISO(t)) {
			whole[name] = &fstest.MapFile{Data: []byte(text)}
		}
		dead, release := make(chan struct{}), make(chan struct{})
		files := &isoFiles{ctx: t.Context(), where: "/dev/sr0", limit: readLimit, files: deadFS{whole, dead, release}}
		i := &inspector{ISOContents: &ISOContents{}, files: files, damaged: map[string]bool{}}
		if _, _, _, err := judge(files); err != nil {
			t.Fatal(err)
		}
		close(dead)
		i.inspect()
		close(release)
		if len(i.Problems) != 1 || i.Problems[0].Code != fault.ISOStalled || !strings.Contains(i.Problems[0].Message, "of /dev/sr0: no answer for 2m0s") {
			t.Errorf("problems %v", i.Problems)
		}
	})
}

// What iso manifest writes is what iso check and a node verify.
func TestManifestOfWholeISO(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	for name, text := range wholeISO(t) {
		writeFile(t, filepath.Join(folder, name), text)
	}
	if _, _, err := WriteManifest(t.Context(), &host.Host{}, folder); err != nil {
		t.Fatal(err)
	}
	if c, err := InspectISO(t.Context(), folder); err != nil || !c.Complete || !c.Manifest.Verified {
		t.Errorf("%+v, %v", c, err)
	}
}
