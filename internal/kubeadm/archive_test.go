// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

var linuxAMD64 = platforms.OnlyStrict(ocispec.Platform{OS: "linux", Architecture: "amd64"})

// file is an entry of a tar: a link when link is set.
type file struct{ name, text, link string }

func tarOf(t testing.TB, files []file) []byte {
	t.Helper()
	var out bytes.Buffer
	archive := tar.NewWriter(&out)
	for _, f := range files {
		header := &tar.Header{Typeflag: tar.TypeReg, Name: f.name, Mode: 0o644, Size: int64(len(f.text))}
		if f.link != "" {
			header.Typeflag, header.Linkname = tar.TypeSymlink, f.link
		}
		if err := archive.WriteHeader(header); err != nil {
			t.Fatal(err)
		}
		if _, err := archive.Write([]byte(f.text)); err != nil {
			t.Fatal(err)
		}
	}
	if err := archive.Close(); err != nil {
		t.Fatal(err)
	}
	return out.Bytes()
}

func asJSON(t testing.TB, value any) string {
	t.Helper()
	text, err := json.Marshal(value)
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// dockerFiles is what docker save writes of one image with the layers.
func dockerFiles(t testing.TB, tags []string, layers ...string) []file {
	var config ocispec.Image
	config.OS, config.Architecture = "linux", "amd64"
	saved := map[string]any{"Config": "config.json", "RepoTags": tags}
	files := []file{}
	var names []string
	for i, layer := range layers {
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromString(layer))
		names = append(names, fmt.Sprintf("%d/layer.tar", i))
		files = append(files, file{name: names[i], text: layer})
	}
	saved["Layers"] = names
	return append(files, file{name: "config.json", text: asJSON(t, config)}, file{name: "manifest.json", text: asJSON(t, []any{saved})})
}

// ociFiles is an OCI layout of one image: an index for two platforms of which only
// linux/amd64 is there, as ctr image export writes it, or a bare manifest.
func ociFiles(t testing.TB, annotations map[string]string, multi bool) []file {
	files := []file{{name: "oci-layout", text: `{"imageLayoutVersion":"1.0.0"}`}}
	blob := func(mediaType, text string) ocispec.Descriptor {
		d := digest.FromString(text)
		files = append(files, file{name: "blobs/sha256/" + d.Encoded(), text: text})
		return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(text))}
	}
	manifest := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest}
	manifest.Config = blob(ocispec.MediaTypeImageConfig, "{}")
	manifest.Layers = []ocispec.Descriptor{blob(ocispec.MediaTypeImageLayerGzip, "layer")}
	top := blob(ocispec.MediaTypeImageManifest, asJSON(t, manifest))
	if multi {
		here, there := top, top
		here.Platform = &ocispec.Platform{OS: "linux", Architecture: "amd64"}
		there.Platform = &ocispec.Platform{OS: "linux", Architecture: "arm64"}
		there.Digest = digest.FromString("is not in the archive")
		top = blob(ocispec.MediaTypeImageIndex, asJSON(t, ocispec.Index{MediaType: ocispec.MediaTypeImageIndex, Manifests: []ocispec.Descriptor{there, here}}))
	}
	top.Annotations = annotations
	return append(files, file{name: "index.json", text: asJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{top}})})
}

func TestReadArchive(t *testing.T) {
	t.Parallel()
	name := map[string]string{images.AnnotationImageName: pause, ocispec.AnnotationRefName: "3.10.1"}
	for title, test := range map[string]struct {
		files []file
		names []string
		blobs int
	}{
		"docker":             {dockerFiles(t, []string{pause}, "one", "two"), []string{pause}, 4},
		"docker, two tags":   {dockerFiles(t, []string{"busybox", pause}, "one"), []string{"docker.io/library/busybox:latest", pause}, 3},
		"docker, gzip":       {dockerFiles(t, []string{pause}, "\x1f\x8bzipped"), []string{pause}, 3},
		"OCI":                {ociFiles(t, name, false), []string{pause}, 3},
		"OCI, two platforms": {ociFiles(t, name, true), []string{pause}, 4},
		"OCI, whole ref":     {ociFiles(t, map[string]string{ocispec.AnnotationRefName: pause}, false), []string{pause}, 3},
		"both formats":       {append(ociFiles(t, name, false), dockerFiles(t, []string{"other:1"}, "x")...), []string{pause}, 3},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			data := tarOf(t, test.files)
			found, err := readArchive(bytes.NewReader(data), int64(len(data)), linuxAMD64)
			if err != nil || len(found) != 1 {
				t.Fatalf("found %d images, %v; want one", len(found), err)
			}
			image := found[0]
			if !slices.Equal(image.names, test.names) || len(image.blobs) != test.blobs {
				t.Errorf("image %q of %d blobs, want %q of %d", image.names, len(image.blobs), test.names, test.blobs)
			}
			for _, blob := range image.blobs {
				content, err := io.ReadAll(blob.content)
				if err != nil || digest.FromBytes(content) != blob.Digest || int64(len(content)) != blob.Size {
					t.Errorf("blob %s (%s) holds %q (%v)", blob.Digest, blob.MediaType, content, err)
				}
			}
			if last := image.blobs[len(image.blobs)-1]; last.Digest != image.target.Digest {
				t.Errorf("the last blob is %s, want the target %s: what refers comes after what it refers to", last.Digest, image.target.Digest)
			}
		})
	}
}

func TestReadArchiveOfLinkedLayers(t *testing.T) {
	t.Parallel()
	files := dockerFiles(t, []string{pause}, "same", "same")
	files[1] = file{name: "1/layer.tar", link: "../0/layer.tar"}
	data := tarOf(t, files)
	found, err := readArchive(bytes.NewReader(data), int64(len(data)), linuxAMD64)
	if err != nil || len(found) != 1 || found[0].blobs[0].Digest != found[0].blobs[1].Digest {
		t.Errorf("found %+v, %v; want an image with one layer twice", found, err)
	}
}

func TestReadArchiveRefuses(t *testing.T) {
	t.Parallel()
	name := map[string]string{images.AnnotationImageName: pause}
	without := func(files []file, part string) []file {
		return slices.DeleteFunc(files, func(f file) bool { return strings.Contains(f.name, part) })
	}
	pointing := func(mediaType string) []file {
		return []file{{name: "index.json", text: asJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{
			{MediaType: mediaType, Digest: digest.FromString("x"), Annotations: name}}})}}
	}
	// Indexes that refer to indexes, each in a blob of its own.
	var nested []file
	below := ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromString("x")}
	for range maxManifestDepth + 1 {
		text := asJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{below}})
		below = ocispec.Descriptor{MediaType: ocispec.MediaTypeImageIndex, Digest: digest.FromString(text), Size: int64(len(text)), Annotations: name}
		nested = append(nested, file{name: blobName(below.Digest), text: text})
	}
	nested = append(nested, file{name: "index.json", text: asJSON(t, ocispec.Index{Manifests: []ocispec.Descriptor{below}})})
	for title, test := range map[string]struct {
		files []file
		want  string
	}{
		"nothing":           {nil, "neither index.json nor manifest.json"},
		"no names":          {dockerFiles(t, nil, "one"), "no image in it has a name"},
		"a bad name":        {dockerFiles(t, []string{"A B"}, "one"), `"A B"`},
		"a lost layer":      {without(dockerFiles(t, []string{pause}, "one"), "layer"), "0/layer.tar"},
		"a lost config":     {without(dockerFiles(t, []string{pause}, "one"), "config"), "config.json"},
		"a lost blob":       {without(ociFiles(t, name, false), digest.FromString("layer").Encoded()), "lacks"},
		"no JSON":           {[]file{{name: "manifest.json", text: "<html>"}}, "manifest.json"},
		"a bad digest":      {[]file{{name: "index.json", text: `{"manifests":[{"digest":"sha256:../../x","annotations":{"io.containerd.image.name":"a"}}]}`}}, "digest"},
		"a foreign type":    {pointing("text/plain"), "cannot use the media type"},
		"a lost manifest":   {pointing(ocispec.MediaTypeImageManifest), "lacks"},
		"endless indexes":   {nested, "nested too deeply"},
		"a link to nowhere": {[]file{{name: "manifest.json", text: `[{"Config":"c","RepoTags":["a"]}]`}, {name: "c", link: "d"}}, `lacks "c"`},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			data := tarOf(t, test.files)
			_, err := readArchive(bytes.NewReader(data), int64(len(data)), linuxAMD64)
			if err == nil {
				t.Fatal("it was read")
			}
			if !strings.Contains(err.Error(), test.want) {
				t.Errorf("error = %v, want one with %q", err, test.want)
			}
		})
	}
}

// A truncated ISO must not be mistaken for an image.
func TestReadArchiveCutOff(t *testing.T) {
	t.Parallel()
	data := tarOf(t, dockerFiles(t, []string{pause}, strings.Repeat("x", 4000)))
	if _, err := readArchive(bytes.NewReader(data[:2000]), 2000, linuxAMD64); err == nil {
		t.Error("half an archive was read")
	}
}

func FuzzReadArchive(f *testing.F) {
	name := map[string]string{images.AnnotationImageName: pause}
	f.Add(tarOf(f, dockerFiles(f, []string{pause}, "one", "\x1f\x8btwo")))
	f.Add(tarOf(f, ociFiles(f, name, true)))
	f.Add(tarOf(f, []file{{name: "manifest.json", link: "manifest.json"}}))
	f.Fuzz(func(t *testing.T, data []byte) {
		found, err := readArchive(bytes.NewReader(data), int64(len(data)), linuxAMD64)
		if err != nil {
			return
		}
		for _, image := range found {
			if len(image.names) == 0 || len(image.blobs) == 0 {
				t.Errorf("image %+v has no name or no content", image)
			}
			for _, blob := range image.blobs {
				if blob.Digest.Validate() != nil || blob.content == nil {
					t.Errorf("blob %+v cannot be sent", blob)
				}
			}
		}
	})
}

func TestMissingImages(t *testing.T) {
	t.Parallel()
	got := missingImages([]string{"a:1", pause, "b:2"}, []images.Image{{Name: pause}, {Name: "c:3"}})
	if want := []string{"a:1", "b:2"}; !slices.Equal(got, want) {
		t.Errorf("missing %q, want %q", got, want)
	}
}

func TestDescribeProgress(t *testing.T) {
	t.Parallel()
	const mb = 1_000_000
	for want, p := range map[string][6]int64{ // count, files, sent, passed, finished, total
		"images 0 of 12":                     {0, 12, 0, 0, 0, 400 * mb},
		"images 7 of 12, 20 MB/s, 10 s left": {7, 12, 200 * mb, 0, 200 * mb, 400 * mb},
		"images 7 of 12, 10 MB/s, 10 s left": {7, 12, 100 * mb, 200 * mb, 300 * mb, 400 * mb},
		"images 1 of 12, 2 MB/s, 3 min left": {1, 12, 20 * mb, 0, 20 * mb, 400 * mb},
		"images 12 of 12, 40 MB/s":           {12, 12, 400 * mb, 0, 400 * mb, 400 * mb},
		"images 12 of 12":                    {12, 12, 0, 400 * mb, 400 * mb, 400 * mb},
	} {
		if got := describeProgress(p[0], p[1], p[2], p[3], p[4], p[5], 10*time.Second); got != want {
			t.Errorf("progress of %v = %q, want %q", p, got, want)
		}
	}
}
