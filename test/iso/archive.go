// SPDX-License-Identifier: Apache-2.0

package iso

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"path"
	"slices"
	"time"
)

// entry is one file: of a layer, of a tar, or of the ISO.
type entry struct {
	name    string // relative, with slashes
	mode    int64
	content []byte
	source  string // a file on disk that has the content instead
	link    string // makes it a symbolic link instead
}

func (e entry) open() (io.ReadCloser, int64, error) {
	if e.source == "" {
		return io.NopCloser(bytes.NewReader(e.content)), int64(len(e.content)), nil
	}
	file, err := os.Open(e.source)
	if err != nil {
		return nil, 0, err
	}
	info, err := file.Stat()
	if err != nil {
		file.Close()
		return nil, 0, err
	}
	return file, info.Size(), nil
}

// image is a container image of one layer.
type image struct {
	name        string // with registry and tag
	entrypoint  []string
	environment []string // beside PATH
	files       []entry
}

const imagePath = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// imageConfig is the part of an image's configuration that is set here: see
// the OCI image specification, config.md.
type imageConfig struct {
	Created      time.Time `json:"created"`
	Architecture string    `json:"architecture"`
	OS           string    `json:"os"`
	Config       struct {
		Env        []string
		Entrypoint []string
		WorkingDir string
	} `json:"config"`
	RootFS struct {
		Type    string   `json:"type"`
		DiffIDs []string `json:"diff_ids"`
	} `json:"rootfs"`
	History []imageHistory `json:"history"`
}

type imageHistory struct {
	Created   time.Time `json:"created"`
	CreatedBy string    `json:"created_by"`
}

// archiveManifest is an element of manifest.json in the archive that `docker
// save` writes.
type archiveManifest struct {
	Config   string
	RepoTags []string
	Layers   []string
}

// writeImage writes the image to file as a docker-archive, the same bytes for
// the same image.
func writeImage(file string, img image) (err error) {
	defer func() {
		if err != nil {
			err = fmt.Errorf("cannot write image %s: %w", img.name, err)
		}
	}()
	layer := file + ".layer"
	defer os.Remove(layer)
	digest := sha256.New()
	if err := createFile(layer, func(w io.Writer) error { return writeTar(io.MultiWriter(w, digest), img.files) }); err != nil {
		return err
	}
	layerID := hex.EncodeToString(digest.Sum(nil))

	epoch := time.Unix(0, 0).UTC()
	config := imageConfig{Created: epoch, Architecture: "amd64", OS: "linux"}
	config.Config.Env = append([]string{imagePath}, img.environment...)
	config.Config.Entrypoint = img.entrypoint
	config.Config.WorkingDir = "/"
	config.RootFS.Type = "layers"
	config.RootFS.DiffIDs = []string{"sha256:" + layerID}
	config.History = []imageHistory{{Created: epoch, CreatedBy: "nodeagent/test/iso"}}
	configJSON, err := json.Marshal(config)
	if err != nil {
		return err
	}
	configSum := sha256.Sum256(configJSON)
	configName := hex.EncodeToString(configSum[:]) + ".json"
	layerName := layerID + "/layer.tar"
	manifest, err := json.Marshal([]archiveManifest{{Config: configName, RepoTags: []string{img.name}, Layers: []string{layerName}}})
	if err != nil {
		return err
	}
	return createFile(file, func(w io.Writer) error {
		return writeTar(w, []entry{
			{name: "manifest.json", mode: 0o644, content: manifest},
			{name: configName, mode: 0o644, content: configJSON},
			{name: layerName, mode: 0o644, source: layer},
		})
	})
}

// writeTar writes the entries, and the folders they are in, owned by root and
// dated 1970.
func writeTar(w io.Writer, entries []entry) error {
	archive := tar.NewWriter(w)
	folders := map[string]bool{".": true}
	for _, e := range entries {
		for _, folder := range missingFolders(folders, path.Dir(e.name)) {
			mode := int64(0o755)
			if folder == "tmp" {
				mode = 0o1777
			}
			header := &tar.Header{Typeflag: tar.TypeDir, Name: folder + "/", Mode: mode, ModTime: time.Unix(0, 0)}
			if err := archive.WriteHeader(header); err != nil {
				return err
			}
		}
		if err := writeEntry(archive, e); err != nil {
			return err
		}
	}
	return archive.Close()
}

// missingFolders returns folder and its parents, outermost first, as far as
// they are not in seen, and adds them to it.
func missingFolders(seen map[string]bool, folder string) []string {
	var missing []string
	for ; !seen[folder]; folder = path.Dir(folder) {
		seen[folder] = true
		missing = append(missing, folder)
	}
	slices.Reverse(missing)
	return missing
}

func writeEntry(archive *tar.Writer, e entry) error {
	header := &tar.Header{Name: e.name, Mode: e.mode, ModTime: time.Unix(0, 0)}
	if e.link != "" {
		header.Typeflag, header.Linkname, header.Mode = tar.TypeSymlink, e.link, 0o777
		return archive.WriteHeader(header)
	}
	content, size, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	header.Typeflag, header.Size = tar.TypeReg, size
	if err := archive.WriteHeader(header); err != nil {
		return err
	}
	_, err = io.Copy(archive, content)
	return err
}

// writeTarGz writes a compressed tar of the entries.
func writeTarGz(file string, entries []entry) error {
	return createFile(file, func(w io.Writer) error {
		compressed := gzip.NewWriter(w)
		if err := writeTar(compressed, entries); err != nil {
			return err
		}
		return compressed.Close()
	})
}

// createFile makes a file with what write writes.
func createFile(name string, write func(io.Writer) error) error {
	file, err := os.Create(name)
	if err != nil {
		return err
	}
	if err := write(file); err != nil {
		file.Close()
		return err
	}
	return file.Close()
}
