// SPDX-License-Identifier: Apache-2.0

package iso

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images/archive"
	"github.com/containerd/containerd/v2/plugins/content/local"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var sample = image{
	name:        "registry.k8s.io/coredns/coredns:v1.12.1",
	entrypoint:  []string{"/usr/local/bin/coredns"},
	environment: []string{"COLOUR=blue"},
	files: []entry{
		{name: "usr/local/bin/coredns", mode: 0o755, content: []byte("program")},
		{name: "usr/local/bin/dns", link: "coredns"},
		{name: "tmp/.keep", mode: 0o644},
	},
}

// The judge is the importer that ctr uses on the node.
func TestContainerdReadsImage(t *testing.T) {
	t.Parallel()
	file, err := os.Open(writeSample(t))
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	store, err := local.NewStore(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	ctx := context.Background()

	descriptor, err := archive.ImportIndex(ctx, store, file)
	if err != nil {
		t.Fatalf("ImportIndex: %v", err)
	}
	index := readBlob[ocispec.Index](t, store, descriptor)
	if len(index.Manifests) != 1 {
		t.Fatalf("got %d manifests, want 1", len(index.Manifests))
	}
	if got := index.Manifests[0].Annotations["io.containerd.image.name"]; got != sample.name {
		t.Errorf("name: got %q, want %q", got, sample.name)
	}
	manifest := readBlob[ocispec.Manifest](t, store, index.Manifests[0])
	config := readBlob[ocispec.Image](t, store, manifest.Config)
	if !slices.Equal(config.Config.Entrypoint, sample.entrypoint) {
		t.Errorf("entrypoint: got %q, want %q", config.Config.Entrypoint, sample.entrypoint)
	}
	if want := []string{imagePath, "COLOUR=blue"}; !slices.Equal(config.Config.Env, want) {
		t.Errorf("environment: got %q, want %q", config.Config.Env, want)
	}
	if config.OS != "linux" || config.Architecture != "amd64" {
		t.Errorf("platform: got %s/%s, want linux/amd64", config.OS, config.Architecture)
	}

	if len(manifest.Layers) != 1 || len(config.RootFS.DiffIDs) != 1 {
		t.Fatalf("got %d layers and %d diff ids, want 1 each", len(manifest.Layers), len(config.RootFS.DiffIDs))
	}
	layer, err := content.ReadBlob(ctx, store, manifest.Layers[0])
	if err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(layer)
	if got, want := string(config.RootFS.DiffIDs[0]), "sha256:"+hex.EncodeToString(sum[:]); got != want {
		t.Errorf("diff id: got %s, want %s", got, want)
	}
	want := []string{
		"drwxr-xr-x usr/", "drwxr-xr-x usr/local/", "drwxr-xr-x usr/local/bin/",
		"-rwxr-xr-x usr/local/bin/coredns", "Lrwxrwxrwx usr/local/bin/dns",
		"dtrwxrwxrwx tmp/", "-rw-r--r-- tmp/.keep",
	}
	if got := listTar(t, layer); !slices.Equal(got, want) {
		t.Errorf("layer:\ngot  %q\nwant %q", got, want)
	}
}

func TestImageIsDeterministic(t *testing.T) {
	t.Parallel()
	first, err := os.ReadFile(writeSample(t))
	if err != nil {
		t.Fatal(err)
	}
	second, err := os.ReadFile(writeSample(t))
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(first, second) {
		t.Error("the same image was written as different bytes")
	}
}

// Older readers take the configuration's name for its digest.
func TestConfigIsNamedByDigest(t *testing.T) {
	t.Parallel()
	written, err := os.ReadFile(writeSample(t))
	if err != nil {
		t.Fatal(err)
	}
	files := map[string][]byte{}
	reader := tar.NewReader(bytes.NewReader(written))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[header.Name], err = io.ReadAll(reader); err != nil {
			t.Fatal(err)
		}
	}
	var manifest []archiveManifest
	if err := json.Unmarshal(files["manifest.json"], &manifest); err != nil {
		t.Fatal(err)
	}
	if len(manifest) != 1 {
		t.Fatalf("got %d images, want 1", len(manifest))
	}
	sum := sha256.Sum256(files[manifest[0].Config])
	if want := hex.EncodeToString(sum[:]) + ".json"; manifest[0].Config != want {
		t.Errorf("config: got %s, want %s", manifest[0].Config, want)
	}
}

func TestWriteImageNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	missing := filepath.Join(t.TempDir(), "etcd")
	err := writeImage(filepath.Join(t.TempDir(), "image.tar"), programImage("registry.k8s.io/etcd:3.6.5-0", missing, "etcd"))
	want := "cannot write image registry.k8s.io/etcd:3.6.5-0: open " + missing + ": no such file or directory"
	if err == nil || err.Error() != want {
		t.Errorf("got  %v\nwant %s", err, want)
	}
}

func writeSample(t *testing.T) string {
	t.Helper()
	file := filepath.Join(t.TempDir(), "coredns:v1.12.1.tar")
	if err := writeImage(file, sample); err != nil {
		t.Fatal(err)
	}
	return file
}

func readBlob[T any](t *testing.T, store content.Store, descriptor ocispec.Descriptor) T {
	t.Helper()
	var value T
	blob, err := content.ReadBlob(context.Background(), store, descriptor)
	if err != nil {
		t.Fatalf("cannot read %s: %v", descriptor.Digest, err)
	}
	if err := json.Unmarshal(blob, &value); err != nil {
		t.Fatal(err)
	}
	return value
}

func listTar(t *testing.T, archive []byte) []string {
	t.Helper()
	var list []string
	reader := tar.NewReader(bytes.NewReader(archive))
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return list
		}
		if err != nil {
			t.Fatal(err)
		}
		if header.ModTime.Unix() != 0 {
			t.Errorf("%s is dated %s, want 1970", header.Name, header.ModTime)
		}
		list = append(list, header.FileInfo().Mode().String()+" "+header.Name)
	}
}
