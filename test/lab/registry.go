// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"net/http"
	"os"
	"strings"
	"sync/atomic"
)

// Registry serves one image to those who log in: what an OCI registry answers to a
// pull (the distribution specification), and no more.
type Registry struct {
	Username, Password string
	// Pulls counts the manifests that were handed out.
	Pulls atomic.Int32

	blobs    map[string][]byte // by digest
	manifest []byte
}

// NewRegistry makes an image of one static program, which it runs.
func NewRegistry(program, username, password string) (*Registry, error) {
	binary, err := os.ReadFile(program)
	if err != nil {
		return nil, err
	}
	var layer bytes.Buffer
	archive := tar.NewWriter(&layer)
	if err := archive.WriteHeader(&tar.Header{Name: "program", Mode: 0o755, Size: int64(len(binary))}); err != nil {
		return nil, err
	}
	if _, err := archive.Write(binary); err != nil {
		return nil, err
	}
	if err := archive.Close(); err != nil {
		return nil, err
	}
	config, err := json.Marshal(map[string]any{"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/program"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digest(layer.Bytes())}}})
	if err != nil {
		return nil, err
	}
	manifest, err := json.Marshal(map[string]any{"schemaVersion": 2, "mediaType": manifestType,
		"config": descriptor("application/vnd.oci.image.config.v1+json", config),
		"layers": []any{descriptor("application/vnd.oci.image.layer.v1.tar", layer.Bytes())}})
	if err != nil {
		return nil, err
	}
	return &Registry{Username: username, Password: password, manifest: manifest,
		blobs: map[string][]byte{digest(config): config, digest(layer.Bytes()): layer.Bytes()}}, nil
}

const manifestType = "application/vnd.oci.image.manifest.v1+json"

func digest(blob []byte) string {
	sum := sha256.Sum256(blob)
	return "sha256:" + hex.EncodeToString(sum[:])
}

func descriptor(mediaType string, blob []byte) map[string]any {
	return map[string]any{"mediaType": mediaType, "digest": digest(blob), "size": len(blob)}
}

// ServeHTTP answers below /v2/, whatever the image is called.
func (r *Registry) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	if username, password, ok := request.BasicAuth(); !ok || username != r.Username || password != r.Password {
		w.Header().Set("WWW-Authenticate", `Basic realm="registry"`)
		w.WriteHeader(http.StatusUnauthorized)
		return
	}
	switch _, name, _ := strings.Cut(request.URL.Path, "/blobs/"); {
	case request.URL.Path == "/v2/":
	case strings.Contains(request.URL.Path, "/manifests/"):
		r.Pulls.Add(1)
		w.Header().Set("Content-Type", manifestType)
		w.Header().Set("Docker-Content-Digest", digest(r.manifest))
		w.Header().Set("Content-Length", fmt.Sprint(len(r.manifest)))
		_, _ = w.Write(r.manifest)
	case r.blobs[name] != nil:
		_, _ = w.Write(r.blobs[name])
	default:
		http.NotFound(w, request)
	}
}
