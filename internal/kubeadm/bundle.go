// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// isoFolder is where the ISO is mounted. CloudStack's scripts use /mnt/k8sdisk,
// which stays free for them.
const isoFolder = "/run/nodeagent/iso"

// Bundle is a binaries ISO that has all a node needs: a mounted one, or what was fetched
// of a virtual router's.
type Bundle struct {
	Device  string // /dev/sr0, or http://10.1.1.1/cks-iso/
	Label   string // the ISO's volume label; anything, also ""
	Dir     string // where it is mounted, or was fetched to
	Version string // of its kubeadm: v1.34.4
	Images  []ImageFile

	sums       map[string]sum // of its manifest, nil for none
	descriptor []byte         // of the volume that was chosen
	readLimit  time.Duration  // of one read; 0 is readLimit
}

// Verification says whether what is read from the ISO is checked.
func (b *Bundle) Verification() string {
	if b.sums == nil {
		return "not verified"
	}
	return "checked against " + SumsFile
}

// Source says where the ISO is: /dev/sr0 (label "CDROM").
func (b *Bundle) Source() string {
	if b.Dir == downloads {
		return b.Device
	}
	return fmt.Sprintf("%s (label %q)", b.Device, b.Label)
}

// ImageFile is an archive of container images in the ISO's docker folder.
type ImageFile struct {
	Name  string // without a folder
	Bytes int64
}

// ImageBytes is how large all image archives are.
func (b *Bundle) ImageBytes() (bytes int64) {
	for _, image := range b.Images {
		bytes += image.Bytes
	}
	return bytes
}

// medium is what was found in one block device.
type medium struct {
	device  string
	label   string
	kind    mediumKind
	missing []string // of an incomplete bundle
	cutOff  string   // how much of a truncated medium there is
	images  []ImageFile
	err     error // of an unreadable medium
	stalled bool  // its mount, or what came after

	descriptor []byte
}

type mediumKind int

const (
	mediumNone       mediumKind = iota // no medium in the drive
	mediumOther                        // an ISO, not a binaries ISO
	mediumIncomplete                   // a binaries ISO that lacks files, or its end
	mediumBundle                       // a binaries ISO
	mediumUnreadable
)

func (m medium) String() string {
	name := strings.TrimPrefix(m.device, "/dev/")
	switch m.kind {
	case mediumNone:
		return "no medium in " + name
	case mediumOther:
		return fmt.Sprintf("medium present in %s, not ours (label %s)", name, label(m.label))
	case mediumUnreadable:
		return fmt.Sprintf("medium in %s cannot be read: %v", name, m.err)
	}
	return fmt.Sprintf("binaries ISO in %s (label %s)", name, label(m.label))
}

// label shows a volume label that may be empty.
func label(text string) string {
	if text == "" {
		return "none"
	}
	return text
}

// FindISO waits until a binaries ISO is in some drive or disk of the machine and
// mounts it. An ISO is known by what it holds, not by its label (pain-points C12
// and C15). want is the Kubernetes version asked for, with or without the v, or
// "" for any; it decides between several ISOs. The ISO's kubeadm is installed on
// the way, because only running it tells its version and the mount is not
// executable.
//
// router is the address of a virtual router that may serve the files of such an ISO, or
// "": when the first look at the drives shows none it is asked too, and the first that
// has a whole one is taken. Its files are fetched to the disk, where a run that is cut
// short leaves them for the next one.
//
// It waits for the kernel's device events, without polling, until ctx ends (for the
// router, with growing pauses); then the error is fault.ISOMissing and says which media were seen. A binaries ISO
// that lacks files (fault.ISOIncomplete) or its end (fault.ISOTruncated), holds others
// than its manifest says (fault.ISOChecksum), or is of another version
// (fault.ISOInvalid) fails at once, and so does one whose storage stops answering
// (fault.ISOStalled), or for which the disk has no room (fault.DiskSpaceLow).
func FindISO(ctx context.Context, h *host.Host, want, router string, report host.Report) (*Bundle, error) {
	var source *routerISO
	if router != "" {
		var err error
		if source, err = newRouterISO(h, router); err != nil {
			return nil, err
		}
	}
	// The watch comes before the first look, or a medium between the two would go
	// unseen.
	watch, err := host.WatchBlock()
	if err != nil {
		return nil, err
	}
	defer watch.Close()
	return findISO(ctx, h, want, source, watch.Changed, say(report))
}

// rereadInterval is when a medium that could not be read is tried again: of that
// the kernel sends no event.
const rereadInterval = 5 * time.Second

func findISO(ctx context.Context, h *host.Host, want string, router *routerISO, changed <-chan struct{}, report host.Report) (*Bundle, error) {
	bundle, err := awaitBundle(ctx, h, router, changed, report, func(media []medium) (*Bundle, error) { return chooseBundle(ctx, h, media, want, Kubeadm) })
	switch {
	case err == nil && bundle == nil:
		return router.bundle(ctx, want, Kubeadm)
	case err == nil: // what was fetched meanwhile is not needed
		if err := Forget(h); err != nil {
			report("%v", err)
		}
	}
	return bundle, err
}

// awaitBundle looks at the media until choose has mounted one of them. It returns
// nothing when the router's ISO, where router is not nil, is there first.
func awaitBundle(ctx context.Context, h *host.Host, router *routerISO, changed <-chan struct{}, report host.Report, choose func([]medium) (*Bundle, error)) (*Bundle, error) {
	defer router.end()
	if err := h.EnableMediaEvents(); err != nil {
		report("%v", err)
	}
	heard := "" // of the router
	for {
		media, err := scanMedia(ctx, h)
		if err != nil {
			return nil, err
		}
		bundle, err := choose(media)
		if bundle != nil || err != nil {
			return bundle, err
		}
		router.start(ctx)
		var reread <-chan time.Time
		if slices.ContainsFunc(media, func(m medium) bool { return m.kind == mediumUnreadable }) {
			reread = time.After(rereadInterval)
		}
		for look := false; !look; {
			seen := describe(media)
			if heard != "" {
				seen += "; " + heard
			}
			report("waiting for the binaries ISO: %s", seen)
			select {
			case <-changed:
				look = true
			case <-reread:
				look = true
			case n := <-router.heard():
				if n.done {
					return nil, n.err
				}
				heard = n.text
			case <-ctx.Done():
				return nil, fault.Wrap(fault.ISOMissing, context.Cause(ctx), "the binaries ISO did not come (%s)", seen)
			}
		}
	}
}

func describe(media []medium) string {
	if len(media) == 0 {
		return "no drive or disk has an ISO"
	}
	var texts []string
	for _, m := range media {
		texts = append(texts, m.String())
	}
	return strings.Join(texts, ", ")
}

// chooseBundle mounts the medium to use and installs its kubeadm as program. It
// returns nil when there is none yet.
func chooseBundle(ctx context.Context, h *host.Host, media []medium, want, program string) (*Bundle, error) {
	var bundles, incomplete []medium
	for _, m := range media {
		switch m.kind {
		case mediumBundle:
			bundles = append(bundles, m)
		case mediumIncomplete:
			incomplete = append(incomplete, m)
		}
	}
	if len(bundles) == 0 && len(incomplete) > 0 {
		return nil, incomplete[0].incomplete()
	}
	var others []string // what the other bundles are
	for _, m := range bundles {
		bundle, err := openBundle(ctx, h, m, program)
		if err != nil {
			return nil, err
		}
		if bundle.Version == WithV(want) || (want == "" && len(bundles) == 1) {
			return bundle, nil
		}
		others = append(others, fmt.Sprintf("%s (label %s) holds Kubernetes %s", m.device, label(m.label), bundle.Version))
		if err := bundle.Release(h, false); err != nil {
			return nil, err
		}
	}
	if len(others) == 0 {
		return nil, nil
	}
	return nil, wrongVersion(others, want)
}

// wrongVersion is what it is when none of the ISOs is the one to use.
func wrongVersion(others []string, want string) error {
	asked := "no version is asked for"
	if want != "" {
		asked = WithV(want) + " is asked for"
	}
	return fault.New(fault.ISOInvalid, "cannot choose a binaries ISO: %s; %s", strings.Join(others, ", "), asked).
		WithHint("Attach the ISO of the cluster's Kubernetes version and detach the others.")
}

// incomplete says what a binaries ISO lacks.
func (m medium) incomplete() error {
	name := fmt.Sprintf("the binaries ISO in %s (label %s)", m.device, label(m.label))
	lacks := "lacks " + strings.Join(m.missing, ", ")
	switch {
	case m.cutOff == "":
		return fault.New(fault.ISOIncomplete, "%s %s", name, lacks)
	case len(m.missing) == 0:
		return fault.New(fault.ISOTruncated, "%s is cut off: %s", name, m.cutOff)
	}
	return fault.New(fault.ISOTruncated, "%s is cut off: %s; it %s", name, m.cutOff, lacks)
}

// openBundle mounts a bundle and installs its kubeadm as program to learn the version.
func openBundle(ctx context.Context, h *host.Host, m medium, program string) (*Bundle, error) {
	if err := mountISO(ctx, h, m.device); err != nil {
		return nil, withCode(fault.ISOInvalid, err, "cannot mount the binaries ISO in %s", m.device)
	}
	bundle := &Bundle{Device: m.device, Label: m.label, Dir: isoFolder, Images: m.images, descriptor: m.descriptor}
	if err := bundle.use(ctx, h, program); err != nil {
		return nil, errors.Join(err, bundle.Release(h, false))
	}
	return bundle, nil
}

// use installs the ISO's kubeadm as program to learn the version.
func (b *Bundle) use(ctx context.Context, h *host.Host, program string) error {
	err := func() error {
		files, err := b.open(ctx, h)
		if err != nil {
			return err
		}
		defer files.Close()
		if b.sums, err = readSums(files); err != nil {
			return err
		}
		files.sums = b.sums
		if _, err := installProgram(h, files, "k8s/kubeadm", program); err != nil {
			return err
		}
		b.Version, err = installedVersion(ctx, h, program)
		return err
	}()
	if err != nil {
		return withCode(fault.InstallFailed, b.checkMedium(ctx, h, err), "cannot use the binaries ISO in %s", b.Device)
	}
	return nil
}

// open opens the mounted ISO's files; they are to be closed before Release.
func (b *Bundle) open(ctx context.Context, h *host.Host) (*isoFiles, error) {
	files, err := openISOFiles(ctx, h.Path(b.Dir), "the binaries ISO in "+b.Device, b.readLimit)
	if err == nil {
		files.sums = b.sums
	}
	return files, err
}

// checkMedium is called after the ISO was read. It says so when another medium is in the drive than the one that was
// chosen. err is what came of reading it, nil for nothing; else it is returned.
func (b *Bundle) checkMedium(ctx context.Context, h *host.Host, err error) error {
	if b.Dir == downloads && err != nil && ctx.Err() == nil {
		return distrust(h, err)
	}
	if b.descriptor == nil || ctx.Err() != nil || isStalled(err) {
		return err
	}
	now, failed := readDescriptor(ctx, h.Path(b.Device))
	switch {
	case failed == nil && !bytes.Equal(now.sector, b.descriptor):
		what := "a medium that is no ISO"
		if name, ok := parseDescriptor(now.sector); ok {
			what = fmt.Sprintf("another ISO (label %s)", label(name))
		}
		return fault.Wrap(fault.ISOChanged, err, "%s took the binaries ISO's place in %s while it was read", what, b.Device)
	case err != nil && errors.Is(failed, unix.ENOMEDIUM):
		return fault.Wrap(fault.ISOChanged, err, "the binaries ISO was taken out of %s while it was read", b.Device)
	}
	return err
}

// Release unmounts the ISO, or removes what was fetched of it. With eject it also opens the drive, which VMware
// needs to detach it; a drive that cannot be opened is an error only then.
func (b *Bundle) Release(h *host.Host, eject bool) error {
	if b.Dir == downloads {
		return Forget(h)
	}
	if err := h.Kernel.Unmount(h.Path(isoFolder)); err != nil {
		return fmt.Errorf("cannot unmount the binaries ISO: %w", err)
	}
	if !eject {
		return nil
	}
	// O_NONBLOCK opens a drive whatever is in it: Documentation/cdrom.
	fd, err := unix.Open(h.Path(b.Device), unix.O_RDONLY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("cannot eject %s: %w", b.Device, err)
	}
	defer unix.Close(fd)
	const cdromEject = 0x5309 // CDROMEJECT of linux/cdrom.h
	if err := unix.IoctlSetInt(fd, cdromEject, 0); err != nil {
		return fmt.Errorf("cannot eject %s: %w", b.Device, err)
	}
	return nil
}

// mountISO mounts a device at isoFolder in place of what is there: a run that
// was killed may have left an ISO mounted.
func mountISO(ctx context.Context, h *host.Host, device string) error {
	target := h.Path(isoFolder)
	if err := h.Kernel.Unmount(target); err != nil {
		return err
	}
	_, err := bounded(ctx, readLimit, func() (struct{}, error) {
		return struct{}{}, h.Kernel.MountReadOnly(device, target, "iso9660")
	})
	return err
}

// scanMedia looks into every block device.
func scanMedia(ctx context.Context, h *host.Host) ([]medium, error) {
	devices, err := h.BlockDevices()
	if err != nil {
		return nil, err
	}
	var media []medium
	for _, device := range devices {
		m, ok := readMedium(ctx, h, device)
		// What stalled when its descriptor did not may still come and be mounted over
		// what is used in its place.
		if m.stalled {
			return nil, fault.Wrap(fault.ISOStalled, m.err, "cannot look into %s", device)
		}
		if ok || (host.IsOptical(device) && m.kind == mediumNone) {
			media = append(media, m)
		}
	}
	return media, nil
}

// readMedium says what a device holds; ok is false when it is no ISO.
func readMedium(ctx context.Context, h *host.Host, device string) (m medium, ok bool) {
	m = medium{device: device}
	found, err := readDescriptor(ctx, h.Path(device))
	switch {
	case err != nil && (errors.Is(err, unix.ENOMEDIUM) || errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENXIO)):
		return m, false
	case err != nil && host.IsOptical(device):
		m.kind, m.err = mediumUnreadable, err
		return m, true
	case err != nil:
		return medium{device: device, kind: mediumUnreadable, err: err}, false
	}
	if m.label, ok = parseDescriptor(found.sector); !ok {
		m.kind = mediumOther
		return m, false
	}
	m.descriptor = found.sector
	if says := volumeBytes(found.sector); says > found.bytes {
		m.cutOff = fmt.Sprintf("%d of %d bytes are there", found.bytes, says)
	}
	if m.err = m.look(ctx, h); m.err != nil {
		m.kind, m.stalled = mediumUnreadable, isStalled(m.err)
		if m.cutOff != "" {
			m.err = fmt.Errorf("%s: %w", m.cutOff, m.err)
		}
	}
	return m, true
}

// look mounts an ISO to see whether it is a binaries ISO.
func (m *medium) look(ctx context.Context, h *host.Host) error {
	if err := mountISO(ctx, h, m.device); err != nil {
		return err
	}
	files, err := openISOFiles(ctx, h.Path(isoFolder), "the ISO in "+m.device, 0)
	if err == nil {
		m.kind, m.missing, m.images, err = judge(files)
		files.Close()
	}
	if m.kind == mediumBundle && m.cutOff != "" {
		m.kind = mediumIncomplete
	}
	return errors.Join(err, h.Kernel.Unmount(h.Path(isoFolder)))
}

// Where ECMA-119 puts the primary volume descriptor, and what is in it.
const (
	descriptorOffset = 16 * 2048
	descriptorBytes  = 2048
	labelOffset      = 40
	labelBytes       = 32
	stallLimit       = 20 * time.Second
)

// start is the beginning of a device, as far as it tells an ISO.
type start struct {
	sector []byte // the descriptor's
	bytes  int64  // of the whole device
}

// readDescriptor reads the descriptor's sector. A device that does not answer
// within stallLimit is an error: the host's storage may hang (pain-point C14).
func readDescriptor(ctx context.Context, path string) (start, error) {
	return bounded(ctx, stallLimit, func() (start, error) {
		file, err := os.Open(path)
		if err != nil {
			return start{}, err
		}
		defer file.Close()
		size, err := file.Seek(0, io.SeekEnd)
		if err != nil {
			return start{}, err
		}
		// From the medium, not from what is remembered of it.
		_ = unix.Fadvise(int(file.Fd()), descriptorOffset, descriptorBytes, unix.FADV_DONTNEED)
		sector := make([]byte, descriptorBytes)
		n, err := file.ReadAt(sector, descriptorOffset)
		if errors.Is(err, io.EOF) {
			err = nil // too small for an ISO: what there is tells
		}
		return start{sector[:n], size}, err
	})
}

// volumeBytes is how large a volume says it is: 8.4.8 and 8.4.12 of ECMA-119.
func volumeBytes(descriptor []byte) int64 {
	return int64(binary.LittleEndian.Uint32(descriptor[80:])) * int64(binary.LittleEndian.Uint16(descriptor[128:]))
}

// parseDescriptor reads the volume label of a primary volume descriptor.
func parseDescriptor(data []byte) (label string, ok bool) {
	if len(data) < descriptorBytes || data[0] != 1 || string(data[1:6]) != "CD001" {
		return "", false
	}
	text := bytes.Trim(data[labelOffset:labelOffset+labelBytes], " \x00")
	printable := func(r rune) rune {
		if r < ' ' || r > '~' {
			return '?'
		}
		return r
	}
	return strings.Map(printable, string(text)), true
}

// neededFiles is what an ISO must hold, as patterns.
var neededFiles = [...]string{
	"k8s/kubeadm", "k8s/kubelet", "k8s/kubectl",
	"cni/cni-plugins-*.tgz", "cri-tools/crictl-linux-*.tar.gz", "docker/*.tar",
	"kubelet.service", "10-kubeadm.conf",
}

// judge tells a binaries ISO by its files.
func judge(files fs.FS) (kind mediumKind, missing []string, images []ImageFile, err error) {
	root, err := fs.ReadDir(files, ".")
	if err != nil {
		return mediumUnreadable, nil, nil, err
	}
	if !hasFolder(root, "k8s") && !hasFolder(root, "docker") {
		return mediumOther, nil, nil, nil
	}
	for _, pattern := range neededFiles {
		names, err := matching(files, pattern)
		if err != nil {
			return mediumUnreadable, nil, nil, err
		}
		if len(names) == 0 {
			missing = append(missing, pattern)
		}
		for _, name := range names {
			info, err := fs.Stat(files, name)
			switch {
			case errors.Is(err, fs.ErrNotExist):
				missing = append(missing, name+" (a link to nowhere)")
			case err != nil:
				return mediumUnreadable, nil, nil, err
			case !info.Mode().IsRegular() || info.Size() == 0:
				missing = append(missing, name+" (empty)")
			case pattern == "docker/*.tar":
				images = append(images, ImageFile{Name: path.Base(name), Bytes: info.Size()})
			}
		}
	}
	if len(missing) > 0 {
		return mediumIncomplete, missing, images, nil
	}
	return mediumBundle, nil, slices.Clip(images), nil
}

// matching returns the names that match a pattern with wildcards in its last part
// only. Unlike fs.Glob it does not take what cannot be read for missing.
func matching(files fs.FS, pattern string) ([]string, error) {
	entries, err := fs.ReadDir(files, path.Dir(pattern))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		name := path.Join(path.Dir(pattern), entry.Name())
		if ok, err := path.Match(pattern, name); err != nil {
			return nil, err
		} else if ok {
			names = append(names, name)
		}
	}
	return names, nil
}

func hasFolder(entries []fs.DirEntry, name string) bool {
	return slices.ContainsFunc(entries, func(e fs.DirEntry) bool { return e.Name() == name && e.IsDir() })
}
