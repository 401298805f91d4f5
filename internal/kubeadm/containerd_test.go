// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

var update = flag.Bool("update", false, "write the golden files anew")

// golden compares with testdata/name.
func golden(t *testing.T, name string, got []byte) {
	t.Helper()
	file := filepath.Join("testdata", name)
	if *update {
		if err := os.WriteFile(file, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != string(want) {
		t.Errorf("differs from %s (go test -update writes it anew):\n%s", file, got)
	}
}

func testdata(t testing.TB, name string) []byte {
	t.Helper()
	text, err := os.ReadFile(filepath.Join("testdata", name))
	if err != nil {
		t.Fatal(err)
	}
	return text
}

const pause = "registry.k8s.io/pause:3.10.1"

// changes lists where two configurations differ, as key = value of the new one.
func changes(before, after map[string]any, prefix string) []string {
	var found []string
	for _, key := range slices.Sorted(maps.Keys(after)) {
		old, isTable := before[key].(map[string]any)
		now, stillTable := after[key].(map[string]any)
		switch {
		case isTable && stillTable:
			found = append(found, changes(old, now, prefix+key+"/")...)
		case !reflect.DeepEqual(before[key], after[key]):
			found = append(found, fmt.Sprintf("%s%s = %v", prefix, key, after[key]))
		}
	}
	for key := range before {
		if _, ok := after[key]; !ok {
			found = append(found, prefix+key+" is gone")
		}
	}
	return found
}

// C19, C21: the settings land where each containerd reads them and nothing else
// changes. The texts are what `containerd config default` of Debian's 1.6.20 and
// 1.7.24 and of 2.0.5 and 2.4.2 as released printed; Debian's 1.7 looks for CNI
// plugins in a folder of its own.
func TestEditContainerdConfig(t *testing.T) {
	t.Parallel()
	const v2, runtime3, images3 = "plugins/io.containerd.grpc.v1.cri/", "plugins/io.containerd.cri.v1.runtime/", "plugins/io.containerd.cri.v1.images/"
	const options = "containerd/runtimes/runc/options/SystemdCgroup = true"
	for version, want := range map[string][]string{
		"1.6": {v2 + options, v2 + "sandbox_image = " + pause},
		"1.7": {v2 + "cni/bin_dir = /opt/cni/bin", v2 + options, v2 + "sandbox_image = " + pause},
		"2.0": {images3 + "pinned_images/sandbox = " + pause, runtime3 + options},
		"2.4": {images3 + "pinned_images/sandbox = " + pause, runtime3 + options},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			text := testdata(t, "containerd/"+version+"-default.toml")
			got, _, err := editContainerdConfig(text, wanted{sandboxImage: pause})
			if err != nil {
				t.Fatal(err)
			}
			golden(t, "containerd/"+version+"-edited.toml", got)
			var before, after map[string]any
			if err := errors.Join(toml.Unmarshal(text, &before), toml.Unmarshal(got, &after)); err != nil {
				t.Fatal(err)
			}
			if got := changes(before, after, ""); !slices.Equal(got, want) {
				t.Errorf("the edit changed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			again, _, err := editContainerdConfig(got, wanted{sandboxImage: pause})
			if err != nil || string(again) != string(got) {
				t.Errorf("a second edit changed the text again (%v)", err)
			}
		})
	}
}

func TestEditContainerdConfigRepairs(t *testing.T) {
	t.Parallel()
	const runc = `[plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]` + "\nruntime_type = \"io.containerd.runc.v2\"\n"
	for name, test := range map[string]struct{ text, want string }{
		"CRI switched off":   {"version = 2\ndisabled_plugins = [\"cri\", \"aufs\"]\n" + runc, "disabled_plugins = ['aufs']"},
		"CNI in its own dir": {"version = 2\n[plugins.\"io.containerd.grpc.v1.cri\".cni]\nbin_dir = \"/usr/lib/cni\"\n" + runc, "bin_dir = '/opt/cni/bin'"},
		"a list of CNI dirs": {"version = 3\n[plugins.\"io.containerd.cri.v1.runtime\".cni]\nbin_dirs = [\"/usr/lib/cni\"]\n", "bin_dirs = ['/opt/cni/bin']"},
		"a comment kept out": {"version = 2 # two\n" + runc, "version = 2\n"},
	} {
		got, _, err := editContainerdConfig([]byte(test.text), wanted{sandboxImage: pause})
		if err != nil || !strings.Contains(string(got), test.want) {
			t.Errorf("%s: %v, want %q in\n%s", name, err, test.want, got)
		}
	}
}

// C21: what is not known is not edited.
func TestEditContainerdConfigRefuses(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"version = 5\n":                "version 5",
		"root = '/x'\n":                "version 1",
		"version = 'two'\n":            "version 1",
		"version = \n":                 "cannot read it",
		"version = 2\nplugins = 'x'\n": `"plugins" is no table`,
	} {
		if got, _, err := editContainerdConfig([]byte(text), wanted{sandboxImage: pause}); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("edit of %q = %q, %v; want an error with %q", text, got, err, want)
		}
	}
}

func containerdMachine(t *testing.T) *hosttest.Machine {
	m := testMachine(t)
	m.Program(containerdProgram, func(command host.Command) (string, error) {
		switch strings.Join(command.Args, " ") {
		case "config default":
			return string(testdata(t, "containerd/1.6-default.toml")), nil
		case "config dump":
			return m.Read(containerdConfig), nil
		}
		return "containerd 1.5.0", nil
	})
	return m
}

func yes(value bool) *bool { return &value }

// daemon is a containerd that reads its file when it is restarted.
func daemon(m *hosttest.Machine) criStatus {
	var running criSettings
	return func(context.Context) (criSettings, error) {
		if slices.Contains(m.Actions(), "restart containerd.service") {
			text := m.Read(containerdConfig)
			running = criSettings{SandboxImage: "other", SystemdCgroup: yes(strings.Contains(text, "SystemdCgroup = true"))}
			if strings.Contains(text, pause) {
				running.SandboxImage = pause
			}
		}
		return running, nil
	}
}

// Debian's package brings a few lines, which Kubernetes cannot live with.
func TestConfigureContainerdOnceAndAfterAKill(t *testing.T) {
	t.Parallel()
	m := containerdMachine(t)
	m.Write(containerdConfig, string(testdata(t, "containerd/debian12-package.toml")))
	status := daemon(m)
	for i, want := range []bool{true, false} {
		changed, err := configureContainerd(t.Context(), m.Host(), wanted{sandboxImage: pause}, discard, status)
		if err != nil || changed != want {
			t.Fatalf("run %d = %v, %v; want %v", i, changed, err, want)
		}
	}
	if got, want := m.Read(containerdConfig), string(testdata(t, "containerd/1.6-edited.toml")); got != want {
		t.Errorf("the file holds\n%s\nwant the edited default", got)
	}
	// The file is right, containerd runs with an older one.
	restarted := 0
	stale := func(context.Context) (criSettings, error) {
		if slices.Contains(m.Actions(), "restart containerd.service") {
			restarted++
		}
		if restarted == 0 {
			return criSettings{SandboxImage: "registry.k8s.io/pause:3.6", SystemdCgroup: yes(false)}, nil
		}
		return criSettings{SandboxImage: pause, SystemdCgroup: yes(true)}, nil
	}
	m.Actions()
	changed, err := configureContainerd(t.Context(), m.Host(), wanted{sandboxImage: pause}, discard, stale)
	if err != nil || !changed || restarted != 1 {
		t.Errorf("with a stale daemon: %v, %v, %d restarts; want one", changed, err, restarted)
	}
}

// C19, C24: what containerd says of itself is compared.
func TestConfigureContainerdReadsBack(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		running criSettings
		err     error
		want    fault.Code
		text    string
	}{
		"another sandbox image": {running: criSettings{SandboxImage: "registry.k8s.io/pause:3.6"}, want: fault.SandboxMismatch, text: pause},
		"cgroupfs":              {running: criSettings{SandboxImage: pause, SystemdCgroup: yes(false)}, want: fault.ContainerdFailed, text: "SystemdCgroup"},
		"no CRI v1":             {err: errNoCRI, want: fault.ContainerdFailed, text: "RuntimeService"}, // C23
		"no answer":             {err: context.DeadlineExceeded, want: fault.ContainerdFailed, text: CRISocket},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := containerdMachine(t)
			_, err := configureContainerd(t.Context(), m.Host(), wanted{sandboxImage: pause}, discard, func(context.Context) (criSettings, error) { return test.running, test.err })
			if err == nil || fault.As(err).Code != test.want || !strings.Contains(err.Error(), test.text) {
				t.Errorf("error = %v, want %s with %q", err, test.want, test.text)
			}
			if test.err == errNoCRI && !strings.Contains(fault.As(err).Hint, "containerd 1.5.0") {
				t.Errorf("hint %q does not name the version", fault.As(err).Hint)
			}
		})
	}
}

// Containerd 2.x does not show its sandbox image over the CRI.
func TestConfigureContainerdAsksForTheLoadedFile(t *testing.T) {
	t.Parallel()
	m := containerdMachine(t)
	status := func(context.Context) (criSettings, error) { return criSettings{}, nil }
	if _, err := configureContainerd(t.Context(), m.Host(), wanted{sandboxImage: pause}, discard, status); err != nil {
		t.Fatal(err)
	}
	m.Program(containerdProgram, func(command host.Command) (string, error) {
		return "version = 3\n[plugins.'io.containerd.cri.v1.images'.pinned_images]\nsandbox = 'from an import'\n", nil
	})
	_, err := configureContainerd(t.Context(), m.Host(), wanted{sandboxImage: pause}, discard, status)
	if err == nil || fault.As(err).Code != fault.SandboxMismatch || !strings.Contains(err.Error(), "from an import") {
		t.Errorf("error = %v, want %s", err, fault.SandboxMismatch)
	}
}

func TestParseSettings(t *testing.T) {
	t.Parallel()
	config := `{"containerd":{"snapshotter":"overlayfs","runtimes":{"runc":{"options":{"SystemdCgroup":true}}}},"sandboxImage":"registry.k8s.io/pause:3.10"}`
	got, err := parseSettings(config)
	if err != nil || got.SandboxImage != "registry.k8s.io/pause:3.10" || got.SystemdCgroup == nil || !*got.SystemdCgroup {
		t.Errorf("settings = %+v, %v", got, err)
	}
	if got, err := parseSettings(""); err != nil || got.SystemdCgroup != nil || got.check(pause) != nil {
		t.Errorf("settings of nothing = %+v, %v; want none and no complaint", got, err)
	}
	if _, err := parseSettings("{"); err == nil {
		t.Error("half a JSON text was read")
	}
}

// C19, C20
func TestSandboxImage(t *testing.T) {
	t.Parallel()
	for _, images := range [][]string{
		{"registry.k8s.io/kube-proxy:v1.34.4", pause, "registry.k8s.io/etcd:3.6.5-0"},
		{"example.com/pause/etcd:1", pause},
	} {
		for range images {
			images = append(images[1:], images[0]) // whatever the order
			if got, err := SandboxImage(images); err != nil || got != pause {
				t.Errorf("SandboxImage(%q) = %q, %v; want %q", images, got, err, pause)
			}
		}
	}
	for _, images := range [][]string{nil, {"registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.10"}} {
		if got, err := SandboxImage(images); err == nil {
			t.Errorf("SandboxImage(%q) = %q, want an error", images, got)
		}
	}
}

// A worker does without the control plane's images, whatever registry they are of; an
// archive's image with another name beside is somebody's.
func TestForWorker(t *testing.T) {
	t.Parallel()
	control := []string{"registry.k8s.io/kube-apiserver:v1.34.4", "example.com:5000/k8s/etcd:3.6.5-0"}
	worker, left := ForWorker([]string{control[0], pause, "registry.k8s.io/kube-proxy:v1.34.4", control[1], "registry.k8s.io/coredns/coredns:v1.12.1"})
	if len(worker) != 3 || !slices.Equal(left, control) {
		t.Errorf("ForWorker = %q and %q", worker, left)
	}
	for _, test := range []struct {
		names []string
		want  bool
	}{{control[:1], true}, {control, true}, {append([]string{"mine:1"}, control...), false}, {[]string{pause}, false}} {
		if got := (archivedImage{names: test.names}).isOneOf(left); got != test.want {
			t.Errorf("an image named %q is one of %q: %v", test.names, left, got)
		}
	}
}

func TestImages(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	var args []string
	m.Program(Kubeadm, func(command host.Command) (string, error) {
		args = command.Args
		return "a/pause:1\nb/etcd:2\n", nil
	})
	got, err := Images(t.Context(), m.Host(), "1.34.4", "example.com/k8s")
	if err != nil || !slices.Equal(got, []string{"a/pause:1", "b/etcd:2"}) {
		t.Errorf("Images = %q, %v", got, err)
	}
	if want := "config images list --kubernetes-version v1.34.4 --image-repository example.com/k8s"; strings.Join(args, " ") != want {
		t.Errorf("kubeadm got %q, want %q", args, want)
	}
	m.Program(Kubeadm, func(host.Command) (string, error) { return "", nil })
	if got, err := Images(t.Context(), m.Host(), "1.34.4", ""); err == nil {
		t.Errorf("Images = %q of a kubeadm that lists none, want an error", got)
	}
}
