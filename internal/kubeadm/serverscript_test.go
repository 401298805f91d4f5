// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"path"
	"regexp"
	"strings"
	"testing"

	"github.com/pelletier/go-toml/v2"
)

// Contract 5.4: CloudStack's own upgrade-kubernetes.sh sets the sandbox image by an edit
// of the line that has sandbox_image, runs what is in /opt/bin and unpacks into
// /opt/cni/bin. Containerd 2.x has no such line: there the image of before stays, and works.
func TestServersScriptEditsContainerd(t *testing.T) {
	t.Parallel()
	for version, lines := range map[string]int{"1.6": 1, "1.7": 1, "2.0": 0, "2.4": 0} {
		text, _, err := editContainerdConfig(testdata(t, "containerd/"+version+"-default.toml"), wanted{sandboxImage: pause})
		if err != nil {
			t.Fatal(err)
		}
		line := regexp.MustCompile(`sandbox_image = .*`)
		if got := len(line.FindAll(text, -1)); got != lines {
			t.Errorf("%s: %d lines with sandbox_image, want %d", version, got, lines)
		}
		edited := line.ReplaceAll(text, []byte(`sandbox_image = "registry.k8s.io/pause:3.99"`))
		var config map[string]any
		if err := toml.Unmarshal(edited, &config); err != nil {
			t.Fatalf("%s: the edit breaks the configuration: %v", version, err)
		}
		tables, err := tablesOf(config)
		if err != nil {
			t.Fatal(err)
		}
		want := pause
		if lines > 0 {
			want = "registry.k8s.io/pause:3.99"
		}
		if got, _ := lookUp(config, tables.sandbox...); got != want {
			t.Errorf("%s: sandbox image %q after the script's edit, want %q", version, got, want)
		}
	}
	if path.Dir(Kubeadm) != "/opt/bin" || cniFolder != "/opt/cni/bin" || imageNamespace != "k8s.io" || kubeletUnit != "kubelet.service" || strings.HasPrefix(isoFolder, "/mnt") {
		t.Error("a path that the script names is another, or its mount point is taken")
	}
}
