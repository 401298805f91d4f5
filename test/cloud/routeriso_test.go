// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"net/http"
	"net/http/httptest"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/kubeadm"
	"nodeagent/internal/userdata"
)

// Contract 4.6 and 5.5: nodeagent understands the worker's userdata, and finds the ISO
// that this router serves.
func TestServeISO(t *testing.T) {
	t.Parallel()
	params := testParams()
	params.ISORouter = netip.MustParseAddr("10.1.1.1")
	text, err := WorkerUserdata(params)
	if err != nil {
		t.Fatal(err)
	}
	if intent, problems := userdata.Parse(text); intent.VRISO != "10.1.1.1" || intent.Handover != userdata.HandoverNodeagent || len(problems) > 0 {
		t.Errorf("router %q, by %s, %v", intent.VRISO, intent.Handover, problems)
	}

	dir := filepath.Join(t.TempDir(), "iso")
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	head[18] = map[string]byte{"amd64": 62, "arm64": 183}[runtime.GOARCH]
	for _, name := range []string{"k8s/kubeadm", "k8s/kubelet", "k8s/kubectl", "cni/cni-plugins-amd64.tgz", "cri-tools/crictl-linux-amd64.tar.gz",
		"docker/pause:3.10.tar", "docker/a&b c.tar", "kubelet.service", "10-kubeadm.conf", "network.yaml"} {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, head, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m := new(metadata)
	server := httptest.NewServer(http.HandlerFunc(m.serveMetadata))
	defer server.Close()
	m.setISO(dir)
	if response, err := http.Get(server.URL + "/cks-iso/..%2f..%2fetc/passwd"); err != nil || response.StatusCode != http.StatusNotFound {
		t.Errorf("outside of the folder: %v, %v", response, err)
	}
	node := hosttest.New(t)
	if err := os.MkdirAll(node.Path("/sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	node.Program(kubeadm.Kubeadm, func(host.Command) (string, error) { return "v1.34.4\n", nil })
	bundle, err := kubeadm.FindISO(t.Context(), node.Host(), "1.34.4", strings.TrimPrefix(server.URL, "http://"), t.Logf)
	if err != nil || bundle.Source() != server.URL+"/cks-iso/" || len(bundle.Images) != 2 {
		t.Errorf("bundle %+v, %v", bundle, err)
	}
}
