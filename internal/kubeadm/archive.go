// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"archive/tar"
	"bytes"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"path"
	"slices"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// archivedImage is a container image in an archive and the blobs it is made of.
type archivedImage struct {
	names  []string // whole: registry.k8s.io/pause:3.10
	target ocispec.Descriptor
	blobs  []archivedBlob // what they refer to first
}

// isOneOf says that the image has no name but those.
func (a archivedImage) isOneOf(names []string) bool {
	return !slices.ContainsFunc(a.names, func(name string) bool { return !slices.Contains(names, name) })
}

type archivedBlob struct {
	ocispec.Descriptor
	content *io.SectionReader
}

// Bounds of what an archive's tables may be.
const (
	maxArchiveEntries = 20000
	maxArchiveJSON    = 4 << 20
	maxManifestDepth  = 4
)

// imageArchive is an archive's table of contents.
type imageArchive struct {
	file    io.ReaderAt
	entries map[string]*io.SectionReader
	links   map[string]string
}

// readArchive lists the images of an archive: an OCI image layout in a tar
// (image-spec, image-layout.md), as `ctr image export` writes it, or what `docker
// save` writes (moby's image/spec/v1.2.md). It reads headers and manifests, not
// layers, so that it costs little to learn that an image is there already. Of an
// image for several platforms it lists the blobs that platform needs.
//
// Knowing the digests beforehand spares hashing the layers here: containerd hashes
// what it is sent and compares.
func readArchive(file io.ReaderAt, size int64, platform platforms.MatchComparer) ([]archivedImage, error) {
	archive, err := scanArchive(file, size)
	if err != nil {
		return nil, err
	}
	var found []archivedImage
	switch {
	case archive.entries[ocispec.ImageIndexFile] != nil:
		found, err = archive.ociImages(platform)
	case archive.entries["manifest.json"] != nil:
		found, err = archive.dockerImages()
	default:
		err = errors.New("it has neither index.json nor manifest.json")
	}
	if err != nil {
		return nil, fmt.Errorf("cannot read the image archive: %w", err)
	}
	return found, nil
}

func scanArchive(file io.ReaderAt, size int64) (*imageArchive, error) {
	archive := &imageArchive{file: file, entries: map[string]*io.SectionReader{}, links: map[string]string{}}
	whole := io.NewSectionReader(file, 0, size)
	entries := tar.NewReader(whole)
	for count := 0; ; count++ {
		entry, err := entries.Next()
		if errors.Is(err, io.EOF) {
			return archive, nil
		}
		if err != nil {
			return nil, fmt.Errorf("cannot read the image archive: %w", err)
		}
		if count >= maxArchiveEntries {
			return nil, fmt.Errorf("cannot read the image archive: more than %d entries", maxArchiveEntries)
		}
		name := path.Clean(entry.Name)
		switch entry.Typeflag {
		case tar.TypeReg:
			// The reader stands at the entry's first byte.
			start, err := whole.Seek(0, io.SeekCurrent)
			if err != nil {
				return nil, err
			}
			if entry.Size < 0 || entry.Size > size-start {
				return nil, fmt.Errorf("cannot read the image archive: %q is cut off", name)
			}
			archive.entries[name] = io.NewSectionReader(file, start, entry.Size)
		case tar.TypeSymlink, tar.TypeLink: // equal layers, in older archives
			target := entry.Linkname
			if entry.Typeflag == tar.TypeSymlink {
				target = path.Join(path.Dir(name), target)
			}
			archive.links[name] = path.Clean(target)
		}
	}
}

// open returns a file of the archive.
func (a *imageArchive) open(name string) (*io.SectionReader, error) {
	entry := a.entries[path.Clean(name)]
	if target, ok := a.links[path.Clean(name)]; ok {
		entry = a.entries[target]
	}
	if entry == nil {
		return nil, fmt.Errorf("it lacks %q", name)
	}
	return entry, nil
}

func (a *imageArchive) readSmall(name string) ([]byte, error) {
	entry, err := a.open(name)
	if err != nil {
		return nil, err
	}
	if entry.Size() > maxArchiveJSON {
		return nil, fmt.Errorf("%q is larger than %d bytes", name, maxArchiveJSON)
	}
	data := make([]byte, entry.Size())
	if _, err := entry.ReadAt(data, 0); err != nil && !errors.Is(err, io.EOF) {
		return nil, fmt.Errorf("cannot read %q: %w", name, err)
	}
	return data, nil
}

func (a *imageArchive) readJSON(name string, into any) error {
	data, err := a.readSmall(name)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(data, into); err != nil {
		return fmt.Errorf("cannot read %q: %w", name, err)
	}
	return nil
}

// ociImages reads an OCI image layout.
func (a *imageArchive) ociImages(platform platforms.MatchComparer) ([]archivedImage, error) {
	var index ocispec.Index
	if err := a.readJSON(ocispec.ImageIndexFile, &index); err != nil {
		return nil, err
	}
	var found []archivedImage
	for _, manifest := range index.Manifests {
		name := manifest.Annotations[images.AnnotationImageName]
		if name == "" {
			name = manifest.Annotations[ocispec.AnnotationRefName]
		}
		if name == "" {
			continue // attestations and the like
		}
		name, err := wholeName(name)
		if err != nil {
			return nil, err
		}
		target := manifest
		target.Annotations = nil
		if i := slices.IndexFunc(found, func(f archivedImage) bool { return f.target.Digest == target.Digest }); i >= 0 {
			found[i].names = append(found[i].names, name)
			continue
		}
		blobs, err := a.ociBlobs(target, platform, 0)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", name, err)
		}
		found = append(found, archivedImage{names: []string{name}, target: target, blobs: blobs})
	}
	if len(found) == 0 {
		return nil, errors.New("no image in it has a name")
	}
	return found, nil
}

// ociBlobs returns a manifest or index and what it refers to.
func (a *imageArchive) ociBlobs(desc ocispec.Descriptor, platform platforms.MatchComparer, depth int) ([]archivedBlob, error) {
	if err := desc.Digest.Validate(); err != nil {
		return nil, err
	}
	if depth >= maxManifestDepth {
		return nil, errors.New("its indexes are nested too deeply")
	}
	if !images.IsIndexType(desc.MediaType) && !images.IsManifestType(desc.MediaType) {
		return nil, fmt.Errorf("cannot use the media type %q", desc.MediaType)
	}
	name := blobName(desc.Digest)
	content, err := a.open(name)
	if err != nil {
		return nil, err
	}
	var manifest struct { // an index has manifests, a manifest the others
		Manifests []ocispec.Descriptor
		Config    ocispec.Descriptor
		Layers    []ocispec.Descriptor
	}
	if err := a.readJSON(name, &manifest); err != nil {
		return nil, err
	}
	if content.Size() != desc.Size {
		return nil, fmt.Errorf("%s has %d bytes, its index says %d", desc.Digest, content.Size(), desc.Size)
	}
	var blobs []archivedBlob
	if images.IsIndexType(desc.MediaType) {
		for _, child := range manifest.Manifests {
			if child.Platform != nil && !platform.Match(*child.Platform) {
				continue
			}
			below, err := a.ociBlobs(child, platform, depth+1)
			if err != nil {
				return nil, err
			}
			blobs = append(blobs, below...)
		}
		if len(blobs) == 0 {
			return nil, errors.New("it has nothing for this machine's platform")
		}
	} else {
		for _, child := range append([]ocispec.Descriptor{manifest.Config}, manifest.Layers...) {
			if err := child.Digest.Validate(); err != nil {
				return nil, err
			}
			content, err := a.open(blobName(child.Digest))
			if err != nil {
				return nil, err
			}
			if content.Size() != child.Size {
				return nil, fmt.Errorf("%s has %d bytes, its manifest says %d", child.Digest, content.Size(), child.Size)
			}
			blobs = append(blobs, archivedBlob{child, content})
		}
	}
	return append(blobs, archivedBlob{desc, content}), nil
}

func blobName(d digest.Digest) string {
	return path.Join(ocispec.ImageBlobsDir, d.Algorithm().String(), d.Encoded())
}

// dockerImages reads what docker save writes. It has no manifest of the kind
// registries have; one is made, the same each time.
func (a *imageArchive) dockerImages() ([]archivedImage, error) {
	var manifests []struct {
		Config   string
		RepoTags []string
		Layers   []string
	}
	if err := a.readJSON("manifest.json", &manifests); err != nil {
		return nil, err
	}
	var found []archivedImage
	for _, saved := range manifests {
		if len(saved.RepoTags) == 0 {
			continue
		}
		image, err := a.dockerImage(saved.Config, saved.Layers)
		if err != nil {
			return nil, fmt.Errorf("image %s: %w", saved.RepoTags[0], err)
		}
		for _, tag := range saved.RepoTags {
			name, err := wholeName(tag)
			if err != nil {
				return nil, err
			}
			image.names = append(image.names, name)
		}
		found = append(found, image)
	}
	if len(found) == 0 {
		return nil, errors.New("no image in it has a name")
	}
	return found, nil
}

func (a *imageArchive) dockerImage(configName string, layerNames []string) (archivedImage, error) {
	configJSON, err := a.readSmall(configName)
	if err != nil {
		return archivedImage{}, err
	}
	var config ocispec.Image
	if err := json.Unmarshal(configJSON, &config); err != nil {
		return archivedImage{}, fmt.Errorf("cannot read %q: %w", configName, err)
	}
	if len(config.RootFS.DiffIDs) != len(layerNames) {
		return archivedImage{}, fmt.Errorf("it has %d layers, its configuration says %d", len(layerNames), len(config.RootFS.DiffIDs))
	}
	var blobs []archivedBlob
	for i, name := range layerNames {
		content, err := a.open(name)
		if err != nil {
			return archivedImage{}, err
		}
		layer, err := layerDescriptor(content, config.RootFS.DiffIDs[i])
		if err != nil {
			return archivedImage{}, fmt.Errorf("layer %q: %w", name, err)
		}
		blobs = append(blobs, archivedBlob{layer, content})
	}
	manifest := struct {
		specs.Versioned
		MediaType string               `json:"mediaType"`
		Config    ocispec.Descriptor   `json:"config"`
		Layers    []ocispec.Descriptor `json:"layers"`
	}{Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: images.MediaTypeDockerSchema2Manifest}
	for _, blob := range blobs {
		manifest.Layers = append(manifest.Layers, blob.Descriptor)
	}
	configBlob := memoryBlob(images.MediaTypeDockerSchema2Config, configJSON)
	manifest.Config = configBlob.Descriptor
	manifestJSON, err := json.Marshal(manifest)
	if err != nil {
		return archivedImage{}, err
	}
	target := memoryBlob(images.MediaTypeDockerSchema2Manifest, manifestJSON)
	target.Platform = &ocispec.Platform{OS: config.OS, Architecture: config.Architecture, Variant: config.Variant}
	return archivedImage{target: target.Descriptor, blobs: append(blobs, configBlob, target)}, nil
}

func memoryBlob(mediaType string, data []byte) archivedBlob {
	desc := ocispec.Descriptor{MediaType: mediaType, Digest: digest.FromBytes(data), Size: int64(len(data))}
	return archivedBlob{desc, io.NewSectionReader(bytes.NewReader(data), 0, desc.Size)}
}

// layerDescriptor describes a layer of a docker archive. The digest of a plain
// layer is its diff id; that of a compressed one has to be computed.
func layerDescriptor(content *io.SectionReader, diffID digest.Digest) (ocispec.Descriptor, error) {
	head := make([]byte, 4)
	if _, err := content.ReadAt(head, 0); err != nil && !errors.Is(err, io.EOF) {
		return ocispec.Descriptor{}, err
	}
	layer := ocispec.Descriptor{MediaType: images.MediaTypeDockerSchema2Layer, Digest: diffID, Size: content.Size()}
	switch {
	case bytes.HasPrefix(head, []byte{0x1f, 0x8b}):
		layer.MediaType = images.MediaTypeDockerSchema2LayerGzip
	case bytes.Equal(head, []byte{0x28, 0xb5, 0x2f, 0xfd}):
		layer.MediaType = ocispec.MediaTypeImageLayerZstd
	default:
		return layer, diffID.Validate()
	}
	hash := sha256.New()
	if _, err := io.Copy(hash, io.NewSectionReader(content, 0, content.Size())); err != nil {
		return ocispec.Descriptor{}, err
	}
	layer.Digest = digest.NewDigest(digest.SHA256, hash)
	return layer, nil
}

// wholeName writes an image's name as the kubelet asks for it.
func wholeName(name string) (string, error) {
	named, err := reference.ParseDockerRef(name)
	if err != nil {
		return "", fmt.Errorf("cannot use the image name %q: %w", name, err)
	}
	return named.String(), nil
}
