// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"runtime"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

func tarGz(t testing.TB, files map[string]string) string {
	t.Helper()
	var entries []*tar.Header
	for _, name := range slices.Sorted(maps.Keys(files)) {
		entries = append(entries, &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o755, Size: int64(len(files[name]))})
	}
	return tarGzOf(t, entries, files)
}

func tarGzOf(t testing.TB, entries []*tar.Header, contents map[string]string) string {
	t.Helper()
	var out bytes.Buffer
	zipped := gzip.NewWriter(&out)
	archive := tar.NewWriter(zipped)
	for _, entry := range entries {
		if err := archive.WriteHeader(entry); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte(contents[entry.Name])); err != nil {
			t.Fatal(err)
		}
	}
	if err := errors.Join(archive.Close(), zipped.Close()); err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// mounted returns a machine with the ISO in place.
func mounted(t testing.TB, files map[string]string) (*hosttest.Machine, *Bundle) {
	t.Helper()
	m := testMachine(t)
	addDevice(t, m, "sr0", "CDROM", files)
	bundle, err := findISO(context.Background(), m.Host(), "", nil, nil, discard)
	if err != nil {
		t.Fatal(err)
	}
	m.Actions()
	return m, bundle
}

func TestInstall(t *testing.T) {
	t.Parallel()
	files := bundleFiles(t, "v1.34.4")
	m, bundle := mounted(t, files)
	m.Write("/etc/default/kubelet", "KUBELET_EXTRA_ARGS=\"--cgroup-driver=systemd --node-labels=a=b\"\n")
	m.Write("/root/.bashrc", "alias ll='ls -l'")
	if changed, err := Install(t.Context(), m.Host(), bundle); err != nil || !changed {
		t.Fatalf("Install = %v, %v; want a change", changed, err)
	}
	for name, want := range map[string]string{
		"/opt/bin/kubeadm":                    files["k8s/kubeadm"],
		"/opt/bin/kubelet":                    files["k8s/kubelet"],
		"/opt/bin/kubectl":                    files["k8s/kubectl"],
		"/opt/bin/crictl":                     "crictl",
		"/opt/cni/bin/bridge":                 "bridge",
		"/etc/systemd/system/kubelet.service": "[Service]\nExecStart=/opt/bin/kubelet\n",
		"/etc/systemd/system/kubelet.service.d/10-kubeadm.conf": "[Service]\nExecStart=\nExecStart=/opt/bin/kubelet $KUBELET_EXTRA_ARGS\n",
		"/etc/default/kubelet":                      "KUBELET_EXTRA_ARGS=\" --node-labels=a=b\"\n", // C24
		"/var/lib/nodeagent/manifests/network.yaml": "kind: DaemonSet\n",                           // C17
		"/opt/autoscaler/autoscaler_tmpl.yaml":      "kind: Deployment\n",
		"/opt/provider/provider.yaml":               "kind: Service\n",
		"/opt/csi/snapshot-crds.yaml":               "kind: CRD\n",
		"/opt/csi/manifest.yaml":                    "kind: CSI\n",
		"/root/.bashrc":                             "alias ll='ls -l'\nexport PATH=$PATH:/opt/bin\n",
	} {
		if got := m.Read(name); got != want {
			t.Errorf("%s = %q, want %q", name, got, want)
		}
	}
	for _, name := range []string{"kubeadm", "kubelet", "kubectl", "crictl"} {
		if info, err := os.Stat(m.Path("/opt/bin/" + name)); err != nil || info.Mode() != 0o755 {
			t.Errorf("%s: %v, %v; want mode 0755", name, info, err)
		}
	}
	// K13: enabled, not started. S5: one reload.
	if got, want := m.Actions(), []string{"enable kubelet.service", "daemon-reload"}; !slices.Equal(got, want) {
		t.Errorf("first run did %q, want %q", got, want)
	}
	if changed, err := Install(t.Context(), m.Host(), bundle); err != nil || changed {
		t.Errorf("second Install = %v, %v; want no change", changed, err)
	}
	if got := m.Actions(); len(got) != 0 {
		t.Errorf("second run did %q, want nothing", got)
	}
}

// killedUnits dies when systemd is to reload.
type killedUnits struct {
	host.Units
	reloads *int
}

func (u killedUnits) Reload(ctx context.Context) error {
	if *u.reloads++; *u.reloads == 1 {
		return errors.New("killed")
	}
	return u.Units.Reload(ctx)
}

// S5: a kill between the unit file and the reload does not lose the reload.
func TestInstallReloadsAfterAKill(t *testing.T) {
	t.Parallel()
	m, bundle := mounted(t, bundleFiles(t, "v1.34.4"))
	h := m.Host()
	reloads := 0
	h.Units = killedUnits{h.Units, &reloads}
	for i, want := range []int{1, 2, 2} {
		_, err := Install(t.Context(), h, bundle)
		if (err == nil) != (i > 0) || reloads != want {
			t.Errorf("run %d: %v with %d reloads, want %d", i, err, reloads, want)
		}
	}
}

func TestInstallNamesEveryBadFile(t *testing.T) {
	t.Parallel()
	files := bundleFiles(t, "v1.34.4")
	other := map[string]string{"amd64": "arm64", "arm64": "amd64"}[runtime.GOARCH]
	files["k8s/kubelet"] = program(other, "kubelet")
	files["k8s/kubectl"] = "<!DOCTYPE html>"
	files["cri-tools/crictl-linux-"+runtime.GOARCH+".tar.gz"] = "not zipped"
	m, bundle := mounted(t, files)
	_, err := Install(t.Context(), m.Host(), bundle)
	if err == nil || fault.As(err).Code != fault.ISOInvalid {
		t.Fatalf("error = %v, want %s", err, fault.ISOInvalid)
	}
	for _, want := range []string{"k8s/kubelet", "built for " + other, "k8s/kubectl", `"<!DOCTYPE html>"`, "cri-tools/crictl"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %s", err, want)
		}
	}
	for _, name := range []string{"kubelet", "kubectl"} {
		if m.Host().Exists("/opt/bin/" + name) {
			t.Errorf("the unusable %s was installed", name)
		}
	}
}

func TestInstallReplacesAnotherVersion(t *testing.T) {
	t.Parallel()
	files := bundleFiles(t, "v1.34.4")
	m, bundle := mounted(t, files)
	m.Write("/opt/bin/kubelet", strings.Repeat("x", len(files["k8s/kubelet"])))
	if err := os.Chmod(m.Path("/opt/bin/kubelet"), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := Install(t.Context(), m.Host(), bundle); err != nil {
		t.Fatal(err)
	}
	if got := m.Read("/opt/bin/kubelet"); got != files["k8s/kubelet"] {
		t.Errorf("kubelet = %q, want the ISO's", got)
	}
}

// C24
func TestKubeletEnvironment(t *testing.T) {
	t.Parallel()
	for old, want := range map[string]string{
		"": "KUBELET_EXTRA_ARGS=\n",
		"KUBELET_EXTRA_ARGS=--cgroup-driver=systemd\n":                             "KUBELET_EXTRA_ARGS=\n",
		"KUBELET_EXTRA_ARGS=--node-ip=10.1.1.1\n":                                  "KUBELET_EXTRA_ARGS=--node-ip=10.1.1.1\n",
		"KUBELET_EXTRA_ARGS='--pod-infra-container-image=a/b:1 --v=2'\n":           "KUBELET_EXTRA_ARGS=' --v=2'\n",
		"KUBELET_EXTRA_ARGS='--v=2 --cgroup-driver cgroupfs'\n# --node-labels=x\n": "KUBELET_EXTRA_ARGS='--v=2 '\n# --node-labels=x\n",
	} {
		got := kubeletEnvironment(old)
		if got != want {
			t.Errorf("environment of %q = %q, want %q", old, got, want)
		}
		if again := kubeletEnvironment(got); again != got {
			t.Errorf("environment of %q = %q, want it kept", got, again)
		}
	}
}

func TestUntarRefuses(t *testing.T) {
	t.Parallel()
	for name, entry := range map[string]*tar.Header{
		"a path that climbs":  {Typeflag: tar.TypeReg, Name: "../../etc/passwd", Mode: 0o644},
		"an absolute path":    {Typeflag: tar.TypeReg, Name: "/etc/passwd", Mode: 0o644},
		"a hidden climb":      {Typeflag: tar.TypeReg, Name: "a/../../b", Mode: 0o644},
		"a symbolic link":     {Typeflag: tar.TypeSymlink, Name: "bridge", Linkname: "/etc/passwd"},
		"a hard link":         {Typeflag: tar.TypeLink, Name: "bridge", Linkname: "x"},
		"a device":            {Typeflag: tar.TypeBlock, Name: "vda"},
		"the folder's itself": {Typeflag: tar.TypeReg, Name: "."},
	} {
		archive := tarGzOf(t, []*tar.Header{entry}, nil)
		err := untar(strings.NewReader(archive), func(string, fs.FileMode, []byte) error { return nil })
		if err == nil {
			t.Errorf("%s was unpacked", name)
		}
	}
}

func FuzzUntar(f *testing.F) {
	f.Add([]byte(tarGz(f, map[string]string{"./bridge": "x", "a/b": "y"})))
	f.Add([]byte(tarGzOf(f, []*tar.Header{{Typeflag: tar.TypeReg, Name: "../x"}}, nil)))
	f.Add([]byte("\x1f\x8b"))
	f.Fuzz(func(t *testing.T, data []byte) {
		_ = untar(bytes.NewReader(data), func(name string, mode fs.FileMode, content []byte) error {
			if !strings.HasPrefix(path.Join("/opt/cni/bin", name), "/opt/cni/bin/") {
				t.Errorf("%q leads out of the folder", name)
			}
			if mode&^0o777 != 0 {
				t.Errorf("%q has mode %v", name, mode)
			}
			return nil
		})
	})
}
