// SPDX-License-Identifier: Apache-2.0

package iso

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"slices"
	"strings"
	"testing"
)

// smallFiles is CloudStack's layout of 4.16 and later: contract section 6.1.
var smallFiles = []string{
	"-rw-r--r-- /10-kubeadm.conf",
	"-rw-r--r-- /autoscaler.yaml",
	"-rw-r--r-- /cni/cni-plugins-amd64.tgz",
	"-rw-r--r-- /cri-tools/crictl-linux-amd64.tar.gz",
	"-rw-r--r-- /dashboard.yaml",
	"-rw-r--r-- /docker/coredns:v1.12.1.tar",
	"-rw-r--r-- /docker/dashboard:v1.tar",
	"-rw-r--r-- /docker/etcd:3.6.5-0.tar",
	"-rw-r--r-- /docker/kube-apiserver:v1.34.4.tar",
	"-rw-r--r-- /docker/kube-controller-manager:v1.34.4.tar",
	"-rw-r--r-- /docker/kube-proxy:v1.34.4.tar",
	"-rw-r--r-- /docker/kube-scheduler:v1.34.4.tar",
	"-rw-r--r-- /docker/pause:3.10.1.tar",
	"-rw-r--r-- /docker/podnet:v1.tar",
	"-rw-r--r-- /etcd/etcd-linux-amd64.tar.gz",
	"-rw-r--r-- /k8s/kubeadm",
	"-rw-r--r-- /k8s/kubectl",
	"-rw-r--r-- /k8s/kubelet",
	"-rw-r--r-- /kubelet.service",
	"-rw-r--r-- /network.yaml",
	"-rw-r--r-- /provider.yaml",
}

func TestSmallISO(t *testing.T) {
	t.Parallel()
	path := build(t, Options{Small: true})
	if got := listISO(t, path); !slices.Equal(got, smallFiles) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(smallFiles, "\n"))
	}
	if got := volumeLabel(t, path); got != "CDROM" {
		t.Errorf("label: got %q, want CDROM", got)
	}
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	if info.Size() > 4<<20 {
		t.Errorf("got %d bytes, want less than 4 MiB", info.Size())
	}
}

// C12: what an incomplete ISO is for the tests of the finder.
func TestOmit(t *testing.T) {
	t.Parallel()
	path := build(t, Options{Small: true, Omit: []string{"k8s/kubeadm", "docker"}})
	want := slices.DeleteFunc(slices.Clone(smallFiles), func(line string) bool {
		return strings.HasSuffix(line, " /k8s/kubeadm") || strings.Contains(line, " /docker/")
	})
	if got := listISO(t, path); !slices.Equal(got, want) {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}

// C15: an ISO that was made on another system has another label.
func TestLabel(t *testing.T) {
	t.Parallel()
	if got := volumeLabel(t, build(t, Options{Small: true, Label: "ISOIMAGE"})); got != "ISOIMAGE" {
		t.Errorf("label: got %q, want ISOIMAGE", got)
	}
}

func TestOptionsRefused(t *testing.T) {
	t.Parallel()
	tests := []struct {
		name    string
		options Options
		want    string
	}{
		{"version", Options{Small: true, Version: "v1.34.4"}, `cannot build an ISO of version "v1.34.4": want MAJOR.MINOR.PATCH`},
		{"label", Options{Small: true, Label: "a b"}, `cannot build an ISO with label "a b": want 1 to 32 letters, digits, - or _`},
		{"outside", Options{Small: true, Omit: []string{"../x"}}, `cannot omit "../x": want a path below the ISO's root`},
		{"everything", Options{Small: true, Omit: []string{"k8s/.."}}, `cannot omit "k8s/..": want a path below the ISO's root`},
		{"not there", Options{Small: true, Omit: []string{"k8s/kubeadmin"}}, `cannot omit "k8s/kubeadmin": `},
		{"no recipe", Options{Version: "1.2.3"}, `cannot build kubernetes/1.2.3: no such recipe in `},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			var log bytes.Buffer
			_, err := Build(context.Background(), &log, test.options)
			if err == nil || !strings.Contains(err.Error(), test.want) {
				t.Errorf("got  %v\nwant %s", err, test.want)
			}
		})
	}
}

func TestKubernetesVariables(t *testing.T) {
	t.Parallel()
	got := kubernetesVariables("1.34.4", "2026-02-10T12:53:36Z")
	want := []string{
		"k8s.io/component-base/version.gitVersion=v1.34.4",
		"k8s.io/component-base/version.gitMajor=1",
		"k8s.io/component-base/version.gitMinor=34",
		"k8s.io/component-base/version.gitCommit=",
		"k8s.io/component-base/version.gitTreeState=archive",
		"k8s.io/component-base/version.buildDate=2026-02-10T12:53:36Z",
	}
	if len(got) != 2*len(want) || !slices.Equal(got[:len(want)], want) {
		t.Errorf("got  %q\nwant %q and the same for client-go", got, want)
	}
}

func build(t *testing.T, options Options) string {
	t.Helper()
	var log bytes.Buffer
	path, err := Build(context.Background(), &log, options)
	if err != nil {
		t.Fatalf("%v\n%s", err, log.String())
	}
	return path
}

// listISO returns mode and name of every file, as xorriso reads them.
func listISO(t *testing.T, path string) []string {
	t.Helper()
	out, err := exec.Command("xorriso", "-indev", path, "-find", "/", "-type", "f", "-exec", "lsdl", "--").Output()
	if err != nil {
		t.Fatalf("xorriso: %v", err)
	}
	var list []string
	for line := range strings.Lines(string(out)) {
		fields := strings.Fields(line)
		list = append(list, fields[0]+" "+strings.Trim(fields[len(fields)-1], "'"))
	}
	slices.SortFunc(list, func(a, b string) int { return strings.Compare(a[11:], b[11:]) })
	return list
}

// volumeLabel reads the volume identifier of the primary volume descriptor:
// ECMA-119, section 8.4.7.
func volumeLabel(t *testing.T, path string) string {
	t.Helper()
	file, err := os.Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	label := make([]byte, 32)
	if _, err := file.ReadAt(label, 16*2048+40); err != nil {
		t.Fatal(err)
	}
	return strings.TrimRight(string(label), " ")
}
