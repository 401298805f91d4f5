// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

func privateRegistry() *Registry {
	return &Registry{Host: "r.example.com:5000", URL: "https://r.example.com:5000", Username: "joe", Password: secret.New("hunter2hunter2")}
}

// The registry's settings land where each containerd reads them, and nothing else
// changes beside what a node without one has.
func TestEditRegistries(t *testing.T) {
	t.Parallel()
	const v2, v3 = "plugins/io.containerd.grpc.v1.cri/registry/", "plugins/io.containerd.cri.v1.images/registry/"
	const auth = "configs = map[r.example.com:5000:map[auth:map[password:hunter2hunter2 username:joe]]]"
	for version, want := range map[string][]string{
		"1.6": {v2 + "config_path = /etc/containerd/certs.d", v2 + "configs/r.example.com:5000 = map[auth:map[password:hunter2hunter2 username:joe]]"},
		"1.7": {v2 + "config_path = /etc/containerd/certs.d", v2 + "configs/r.example.com:5000 = map[auth:map[password:hunter2hunter2 username:joe]]"},
		"2.0": {v3 + "config_path = /etc/containerd/certs.d", v3 + auth},
		"2.4": {v3 + "config_path = /etc/containerd/certs.d", v3 + auth},
	} {
		t.Run(version, func(t *testing.T) {
			t.Parallel()
			plain, _, err := editContainerdConfig(testdata(t, "containerd/"+version+"-default.toml"), wanted{sandboxImage: pause})
			if err != nil {
				t.Fatal(err)
			}
			with := wanted{pause, privateRegistry()}
			got, files, err := editContainerdConfig(plain, with)
			if err != nil {
				t.Fatal(err)
			}
			var before, after map[string]any
			if err := toml.Unmarshal(plain, &before); err != nil {
				t.Fatal(err)
			}
			if err := toml.Unmarshal(got, &after); err != nil {
				t.Fatal(err)
			}
			if got := changes(before, after, ""); !slices.Equal(got, want) {
				t.Errorf("the edit changed\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
			}
			if len(files) != 1 || len(files["r.example.com:5000"]) == 0 {
				t.Errorf("files %q, want one hosts.toml", files)
			}
			if again, _, err := editContainerdConfig(got, with); err != nil || string(again) != string(got) {
				t.Errorf("a second edit changed the text again (%v)", err)
			}
		})
	}
}

// C33: the credentials are in a file of root's alone. Mirrors of the template's move to
// where containerd takes them beside a folder.
func TestConfigureContainerdWithARegistry(t *testing.T) {
	t.Parallel()
	m := containerdMachine(t)
	m.Write(containerdConfig, string(testdata(t, "containerd/1.6-default.toml"))+
		"\n[plugins.\"io.containerd.grpc.v1.cri\".registry.mirrors.\"docker.io\"]\nendpoint = [\"https://mirror.example.com\", \"http://10.1.1.2:5000\"]\n")
	status := daemon(m)
	want := wanted{pause, privateRegistry()}
	for i, changed := range []bool{true, false} {
		got, err := configureContainerd(t.Context(), m.Host(), want, discard, status)
		if err != nil || got != changed {
			t.Fatalf("run %d = %v, %v; want %v", i, got, err, changed)
		}
	}
	if info, err := os.Stat(m.Path(containerdConfig)); err != nil || info.Mode() != 0o600 {
		t.Errorf("%s is %v (%v), want mode 0600", containerdConfig, info, err)
	}
	golden(t, "containerd/registry-hosts.toml", []byte(m.Read(certsFolder+"/r.example.com:5000/hosts.toml")))
	golden(t, "containerd/mirror-hosts.toml", []byte(m.Read(certsFolder+"/docker.io/hosts.toml")))
	if strings.Contains(m.Read(containerdConfig), "mirror.example.com") {
		t.Error("a mirror stayed in the configuration, which containerd refuses")
	}
	// An upgrade knows no registry; what is in the file stays, and stays hidden.
	if _, err := writeContainerdConfig(t.Context(), m.Host(), wanted{sandboxImage: "registry.k8s.io/pause:3.11"}); err != nil {
		t.Fatal(err)
	}
	if info, err := os.Stat(m.Path(containerdConfig)); err != nil || info.Mode() != 0o600 || !strings.Contains(m.Read(containerdConfig), "auth") {
		t.Errorf("after an upgrade %s is %v (%v), want mode 0600 and the credentials", containerdConfig, info, err)
	}
}

func TestRegistryRefuses(t *testing.T) {
	t.Parallel()
	for _, host := range []string{"", "..", "a/../../b", "https://r.example.com", "r.example.com:", "r example.com", "-r", "r.example.com:5000/x"} {
		m := containerdMachine(t)
		_, err := configureContainerd(t.Context(), m.Host(), wanted{pause, &Registry{Host: host}}, discard, daemon(m))
		if err == nil || fault.As(err).Code != fault.ContainerdFailed {
			t.Errorf("registry %q: error %v, want %s", host, err, fault.ContainerdFailed)
		}
	}
	for _, url := range []string{"r.example.com", "ftp://r.example.com", "https://", "https://r.example.com\"]\nx = 1", "https://user:pw@r.example.com"} {
		if text, err := hosts(url); err == nil {
			t.Errorf("hosts(%q) = %q, want an error", url, text)
		}
	}
}
