// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/platforms"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/iso9660"
)

// ISOContents is what is on a binaries ISO, or in a folder that is to become one, as
// `nodeagent iso check -o json` prints it. Keys are only ever added.
type ISOContents struct {
	Path         string       `json:"path"`
	Kind         ISOKind      `json:"kind"`
	Label        string       `json:"label,omitempty"` // of the volume
	Bytes        int64        `json:"bytes"`           // of the image or the device; of a folder's files
	Complete     bool         `json:"complete"`
	Version      string       `json:"version,omitempty"`      // of Kubernetes: v1.34.4
	Architecture string       `json:"architecture,omitempty"` // amd64
	Programs     []string     `json:"programs"`
	Archives     []ISOArchive `json:"archives"`
	Images       []ISOImage   `json:"images"`
	// MissingImages are those of kubeadm's that are not there, without registry and
	// tag, which only the ISO's kubeadm knows.
	MissingImages []string     `json:"missingImages"`
	AddOns        ISOAddOns    `json:"addOns"`
	Manifest      ISOManifest  `json:"manifest"`
	Problems      []ISOProblem `json:"problems"` // with any, the ISO is not complete
	Warnings      []ISOProblem `json:"warnings"`
}

// ISOKind is what an ISO was looked at as.
type ISOKind string

// The kinds.
const (
	ISOImageFile ISOKind = "image"
	ISODevice    ISOKind = "device"
	ISOFolder    ISOKind = "folder"
)

// ISOArchive is an archive of programs.
type ISOArchive struct {
	File    string `json:"file"`
	Version string `json:"version,omitempty"` // where the file's name has it
	Files   int    `json:"files"`             // in it
}

// ISOImage is an archive of container images.
type ISOImage struct {
	File  string   `json:"file"`
	Bytes int64    `json:"bytes"`
	Names []string `json:"names"`
}

// ISOAddOns says which manifests for a cluster there are.
type ISOAddOns struct {
	Network    bool `json:"network"`
	Dashboard  bool `json:"dashboard"`
	Headlamp   bool `json:"headlamp"`
	Autoscaler bool `json:"autoscaler"`
	Provider   bool `json:"provider"`
	CSI        bool `json:"csi"`
}

// ISOManifest is what became of SumsFile.
type ISOManifest struct {
	Present  bool `json:"present"`
	Files    int  `json:"files"`
	Verified bool `json:"verified"` // every file was read, and is as listed
}

// ISOProblem is something wrong with an ISO.
type ISOProblem struct {
	Code    fault.Code `json:"code"`
	Message string     `json:"message"`
}

// neededImages are the images of kubeadm, by the last part of their names; the first
// ones have the cluster's version for a tag.
var neededImages = [...]string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "kube-proxy", "coredns", "etcd", "pause"}

const versionedImages = 4 // of neededImages

// InspectISO looks at an ISO image, a device that holds one, or a folder that is to
// become one. It needs no root beyond what reading takes, mounts nothing and runs
// nothing of it. It reads all of it, so it takes as long as the medium does, and ends
// with ctx or when the medium does not answer. The error is that nothing could be
// looked at; all that is wrong with what was is in the result.
func InspectISO(ctx context.Context, name string) (*ISOContents, error) {
	c := &ISOContents{Path: name, Programs: []string{}, Archives: []ISOArchive{}, Images: []ISOImage{},
		MissingImages: []string{}, Problems: []ISOProblem{}, Warnings: []ISOProblem{}}
	info, err := bounded(ctx, stallLimit, func() (fs.FileInfo, error) { return os.Stat(name) })
	if err != nil {
		return nil, err
	}
	var files *isoFiles
	switch {
	case info.IsDir():
		c.Kind = ISOFolder
		files, err = openISOFiles(ctx, name, name, 0)
	case info.Mode().IsRegular() || info.Mode()&fs.ModeDevice != 0:
		c.Kind = ISOImageFile
		if info.Mode()&fs.ModeDevice != 0 {
			c.Kind = ISODevice
		}
		files, err = c.openImage(ctx, name)
	default:
		err = fmt.Errorf("cannot look at %s: neither a file, a device nor a folder", name)
	}
	if err != nil {
		return nil, err
	}
	if files != nil {
		defer files.Close()
		i := &inspector{ISOContents: c, files: files, damaged: map[string]bool{}}
		i.inspect()
		if err := context.Cause(ctx); err != nil {
			return nil, err
		}
	}
	c.Complete = len(c.Problems) == 0
	return c, nil
}

// openImage opens an ISO without mounting it. It returns nil where there is none.
func (c *ISOContents) openImage(ctx context.Context, name string) (*isoFiles, error) {
	type opened struct {
		device *os.File
		volume *iso9660.Volume
		bytes  int64
	}
	image, err := bounded(ctx, readLimit, func() (o opened, err error) {
		if o.device, err = os.Open(name); err != nil {
			return o, err
		}
		if o.bytes, err = o.device.Seek(0, io.SeekEnd); err == nil {
			o.volume, err = iso9660.Open(o.device)
		}
		return o, err
	})
	if err != nil {
		return nil, withCode(fault.ISOUnreadable, err, "cannot read %s", name)
	}
	c.Bytes = image.bytes
	if image.volume == nil {
		image.device.Close()
		c.problem(fault.ISOInvalid, "%s is no ISO 9660 image", name)
		return nil, nil
	}
	c.Label = image.volume.Label
	if image.volume.Bytes > image.bytes {
		c.problem(fault.ISOTruncated, "it is cut off: %d of %d bytes are there", image.bytes, image.volume.Bytes)
	}
	return &isoFiles{ctx: ctx, files: image.volume, where: name, limit: readLimit, closer: image.device}, nil
}

func (c *ISOContents) problem(code fault.Code, format string, args ...any) {
	if code == fault.ISOStalled && slices.ContainsFunc(c.Problems, func(p ISOProblem) bool { return p.Code == code }) {
		return // it is said once; no file can be read any more
	}
	c.Problems = append(c.Problems, ISOProblem{code, fmt.Sprintf(format, args...)})
}

func (c *ISOContents) warn(code fault.Code, format string, args ...any) {
	c.Warnings = append(c.Warnings, ISOProblem{code, fmt.Sprintf(format, args...)})
}

// inspector looks at the files of an ISO.
type inspector struct {
	*ISOContents
	files   *isoFiles
	damaged map[string]bool // files that are not what the manifest lists: named already
	cutOff  []string        // files that the medium ends before
}

// fail records an error of a file, or one that names its file, under its own code
// where it has one. What is cut off is one problem, however many files it takes.
func (i *inspector) fail(name string, err error) {
	if errors.Is(err, iso9660.ErrCutOff) {
		if !slices.Contains(i.cutOff, name) {
			i.cutOff = append(i.cutOff, name)
		}
		return
	}
	message := err.Error()
	if !strings.Contains(message, name) {
		message = name + ": " + message
	}
	i.problem(withCode(fault.ISOInvalid, err, "").Code, "%s", message)
}

func (i *inspector) inspect() {
	i.look()
	if len(i.cutOff) > 0 {
		i.problem(fault.ISOTruncated, "the medium ends before the end of %s", listed(i.cutOff))
	}
}

func (i *inspector) look() {
	kind, missing, archives, err := judge(i.files)
	switch {
	case err != nil:
		i.fail("its folders", err)
		return
	case kind == mediumOther:
		i.problem(fault.ISOIncomplete, "it is no binaries ISO: it has no folders k8s and docker")
		return
	}
	for _, name := range missing {
		i.problem(fault.ISOIncomplete, "it lacks %s", name)
	}
	i.verify()
	programs := i.programs()
	i.images(archives)
	i.versions(programs)
	i.archives()
	i.texts()
}

// verify reads every file and compares it with the manifest.
func (i *inspector) verify() {
	found, err := isoNames(i.files)
	if err != nil {
		i.fail("its folders", err)
		return
	}
	if i.Kind == ISOFolder {
		for _, entry := range found {
			if info, err := entry.Info(); err == nil {
				i.Bytes += info.Size()
			}
		}
	}
	_, i.Manifest.Present = found[SumsFile]
	sums, err := readSums(i.files)
	if err != nil {
		i.fail(SumsFile, err)
		return
	}
	i.Manifest.Files, i.files.sums = len(sums), sums
	for _, name := range slices.Sorted(maps.Keys(sums)) {
		if err := i.files.verify(name); err != nil {
			i.damaged[name] = true
			i.fail(name, err)
		}
	}
	i.files.sums = nil // from here on files are read as they are
	i.Manifest.Verified = i.Manifest.Present && len(i.damaged) == 0
}

// programs reads the architecture, and returns the programs that are some.
func (i *inspector) programs() (programs []string) {
	byArch := map[string][]string{}
	for _, name := range []string{"kubeadm", "kubelet", "kubectl"} {
		file, err := i.files.Open("k8s/" + name)
		if err != nil || i.damaged["k8s/"+name] {
			continue // named before
		}
		head := make([]byte, 64)
		n, err := io.ReadFull(file, head)
		file.Close()
		if n == 0 && errors.Is(err, io.EOF) {
			continue // empty: named before
		}
		if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
			i.fail("k8s/"+name, err)
			continue
		}
		arch, err := programArch(head[:n])
		if err != nil {
			i.problem(fault.ISOInvalid, "k8s/%s: %v", name, err)
			continue
		}
		i.Programs = append(i.Programs, name)
		byArch[arch] = append(byArch[arch], name)
	}
	var built []string
	for _, arch := range slices.Sorted(maps.Keys(byArch)) {
		i.Architecture = arch
		built = append(built, strings.Join(byArch[arch], " and ")+" for "+arch)
	}
	if len(built) > 1 {
		i.Architecture = ""
		i.problem(fault.ISOInvalid, "its programs are not of one architecture: %s", strings.Join(built, ", "))
	}
	return i.Programs
}

// images reads the image archives and checks every blob against its digest.
func (i *inspector) images(archives []ImageFile) {
	arch := cmp.Or(i.Architecture, runtime.GOARCH)
	platform := platforms.OnlyStrict(ocispec.Platform{OS: "linux", Architecture: arch})
	for _, archive := range archives {
		name := path.Join("docker", archive.Name)
		image := ISOImage{File: name, Bytes: archive.Bytes, Names: []string{}}
		if !i.damaged[name] {
			names, err := i.archive(name, archive.Bytes, platform, arch)
			image.Names = append(image.Names, names...)
			if err != nil {
				i.fail(name, err)
			}
		}
		i.Images = append(i.Images, image)
	}
}

func (i *inspector) archive(name string, size int64, platform platforms.MatchComparer, arch string) (names []string, err error) {
	opened, err := i.files.Open(name)
	if err != nil {
		return nil, err
	}
	defer opened.Close()
	found, err := readArchive(opened.(*isoFile), size, platform)
	if err != nil {
		return nil, err
	}
	for _, image := range found {
		names = append(names, image.names...)
		for _, blob := range image.blobs {
			verifier := blob.Digest.Verifier()
			if _, err := io.Copy(verifier, io.NewSectionReader(blob.content, 0, blob.Size)); err != nil {
				return names, err
			}
			if !verifier.Verified() {
				return names, fmt.Errorf("image %s is damaged: its part %s is another", image.names[0], blob.Digest)
			}
			if !images.IsConfigType(blob.MediaType) || blob.Size > maxArchiveJSON {
				continue
			}
			var config ocispec.Image
			text, err := io.ReadAll(io.NewSectionReader(blob.content, 0, blob.Size))
			if err != nil {
				return names, err
			}
			if err := json.Unmarshal(text, &config); err == nil && config.Architecture != "" && config.Architecture != arch {
				return names, fmt.Errorf("image %s is built for %s, the programs for %s", image.names[0], config.Architecture, arch)
			}
		}
	}
	return names, nil
}

// versions reads the cluster's version off the images and looks whether the programs
// can be of it.
func (i *inspector) versions(programs []string) {
	tags := map[string][]string{} // of kubeadm's images, by tag
	present := map[string]bool{}
	for _, image := range i.Images {
		for _, name := range image.Names {
			last, tag, _ := strings.Cut(path.Base(name), ":")
			present[last] = true
			if slices.Contains(neededImages[:versionedImages], last) {
				tags[tag] = append(tags[tag], last)
			}
		}
	}
	for _, name := range neededImages {
		if !present[name] {
			i.MissingImages = append(i.MissingImages, name)
		}
	}
	if len(i.MissingImages) > 0 {
		i.problem(fault.ImageMissing, "no archive in docker/ has the images %s that kubeadm needs", strings.Join(i.MissingImages, ", "))
	}
	if len(tags) > 1 {
		var texts []string
		for _, tag := range slices.Sorted(maps.Keys(tags)) {
			texts = append(texts, fmt.Sprintf("%s (%s)", tag, strings.Join(tags[tag], ", ")))
		}
		i.problem(fault.ISOInvalid, "its images are not of one version: %s", strings.Join(texts, ", "))
		return
	}
	for tag := range tags {
		if _, _, err := minorVersion(tag); err != nil {
			i.problem(fault.ISOInvalid, "its images have no version for a tag: %v", err)
			return
		}
		i.Version = tag
	}
	if i.Version == "" {
		return
	}
	// A program that was linked as a version has it in it.
	for _, name := range programs {
		file, err := i.files.Open("k8s/" + name)
		if err != nil {
			i.fail("k8s/"+name, err)
			continue
		}
		found, err := holds(file, i.Version)
		file.Close()
		if err != nil {
			i.fail("k8s/"+name, err)
		} else if !found {
			i.problem(fault.ISOInvalid, "k8s/%s is of another version than the images, %s: it does not have that in it", name, i.Version)
		}
	}
}

// holds says whether a text is somewhere in what r reads.
func holds(r io.Reader, text string) (bool, error) {
	buffer := make([]byte, 256<<10)
	kept := 0 // bytes that may be the beginning of text
	for {
		n, err := io.ReadFull(r, buffer[kept:])
		if bytes.Contains(buffer[:kept+n], []byte(text)) {
			return true, nil
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
		kept = copy(buffer, buffer[kept+n-len(text)+1:kept+n])
	}
}

var versionInName = regexp.MustCompile(`v?[0-9]+\.[0-9]+\.[0-9]+`)

// archives unpacks the archives of programs, to nowhere.
func (i *inspector) archives() {
	for _, kind := range []struct{ pattern, needed string }{
		{"cni/cni-plugins-*.tgz", "loopback"}, {"cri-tools/crictl-linux-*.tar.gz", "crictl"}, {"etcd/*.tar.gz", "etcd"},
	} {
		names, err := matching(i.files, kind.pattern)
		if err != nil {
			i.fail(kind.pattern, err)
		}
		for _, name := range names {
			file, err := i.files.Open(name)
			if err != nil || i.damaged[name] {
				continue
			}
			archive := ISOArchive{File: name, Version: versionInName.FindString(path.Base(name))}
			whole := false
			err = untar(file, func(entry string, _ fs.FileMode, content []byte) error {
				archive.Files++
				whole = whole || path.Base(entry) == kind.needed
				if built, err := programArch(content); err == nil && i.Architecture != "" && built != i.Architecture {
					return fmt.Errorf("%s is built for %s, the programs in k8s for %s", entry, built, i.Architecture)
				}
				return nil
			})
			file.Close()
			if err == nil && !whole {
				err = fault.New(fault.ISOIncomplete, "it lacks %s", kind.needed)
			}
			if err != nil {
				i.fail(name, err)
			}
			i.Archives = append(i.Archives, archive)
		}
	}
}

// texts reads the units and the manifests: what a download that went wrong leaves in
// their place is a page for people.
func (i *inspector) texts() {
	for _, name := range []string{"kubelet.service", "10-kubeadm.conf"} {
		if text, ok := i.text(name); ok && !bytes.Contains(text, []byte("[Service]")) {
			i.problem(fault.ISOInvalid, "%s is no unit file: it begins with %q", name, text[:min(len(text), 20)])
		}
	}
	names, err := matching(i.files, "*.yaml")
	if err != nil {
		i.fail("*.yaml", err)
	}
	for _, name := range names {
		text, ok := i.text(name)
		if !ok {
			continue
		}
		if err := checkManifest(text); err != nil {
			i.problem(fault.ISOInvalid, "%s is no Kubernetes manifest: %v", name, err)
			continue
		}
		if absent := i.absentImages(text); len(absent) > 0 {
			i.warn(fault.ImageMissing, "%s uses images that are not on the ISO; nodes would have to fetch them: %s", name, listed(absent))
		}
	}
	has := func(name string) bool { return slices.Contains(names, name) }
	i.AddOns = ISOAddOns{Network: has("network.yaml"), Dashboard: has("dashboard.yaml"), Headlamp: has("headlamp.yaml"),
		Autoscaler: has("autoscaler.yaml"), Provider: has("provider.yaml"), CSI: has("manifest.yaml") && has("snapshot-crds.yaml")}
	if !i.AddOns.Network {
		i.warn(fault.AddOnFailed, "without network.yaml nodes are not Ready until a network plugin comes from elsewhere")
	}
	if !i.AddOns.Dashboard && !i.AddOns.Headlamp {
		i.warn(fault.AddOnFailed, "without headlamp.yaml or dashboard.yaml CloudStack's server waits for a dashboard in vain")
	}
	if has("manifest.yaml") != has("snapshot-crds.yaml") {
		i.warn(fault.ISOIncomplete, "the CSI driver takes both manifest.yaml and snapshot-crds.yaml")
	}
}

func (i *inspector) text(name string) (text []byte, ok bool) {
	if i.damaged[name] {
		return nil, false
	}
	text, err := readBounded(i.files, name, host.MaxFile)
	if err != nil {
		if !errors.Is(err, fs.ErrNotExist) { // else named before
			i.fail(name, err)
		}
		return nil, false
	}
	return text, len(text) > 0
}

// checkManifest says what is wrong with a manifest as such.
func checkManifest(text []byte) error {
	documents := yaml.NewDecoder(bytes.NewReader(text))
	for objects := 0; ; {
		var object struct {
			APIVersion string `yaml:"apiVersion"`
			Kind       string
		}
		var node yaml.Node
		err := documents.Decode(&node)
		if errors.Is(err, io.EOF) && objects > 0 {
			return nil
		}
		if errors.Is(err, io.EOF) {
			return errors.New("it holds no object")
		}
		if err != nil {
			return err
		}
		if node.IsZero() || (len(node.Content) == 1 && node.Content[0].Tag == "!!null") {
			continue // nothing but comments
		}
		if err := node.Decode(&object); err != nil || object.APIVersion == "" || object.Kind == "" {
			return fmt.Errorf("what begins in line %d has no apiVersion and kind", node.Line)
		}
		objects++
	}
}

var imageLine = regexp.MustCompile(`(?m)^[ \t-]*image:[ \t]*["']?([^\s"'#{}<>]+)["']?[ \t]*(?:#.*)?$`)

// absentImages returns the images that a manifest uses and the ISO does not have.
func (i *inspector) absentImages(manifest []byte) []string {
	var absent []string
	for _, match := range imageLine.FindAllSubmatch(manifest, -1) {
		name, err := wholeName(string(match[1]))
		if err != nil || slices.Contains(absent, name) {
			continue
		}
		if !slices.ContainsFunc(i.Images, func(image ISOImage) bool { return slices.Contains(image.Names, name) }) {
			absent = append(absent, name)
		}
	}
	return absent
}
