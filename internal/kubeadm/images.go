// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"path"
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/defaults"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sync/errgroup"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	imageNamespace = "k8s.io" // where the CRI plugin keeps its images
	dialLimit      = 30 * time.Second
	sendBytes      = 1 << 20 // one message to containerd
)

// ImportImages gives containerd the ISO's images, unpacked and under the names
// the kubelet asks for: several archives at a time, the largest first. Images
// that are there whole are passed over, so a repeated call does what is left, and so
// are those of leave. Where the ISO has a manifest no image gets a name before the
// archive it is in is known to be the one listed. Then it looks whether all images of
// want (see Images) are there. Errors are fault.ImageImportFailed, or those of Install
// where the ISO is to blame, which name every archive that failed, and
// fault.ImageMissing, which names every image.
func ImportImages(ctx context.Context, h *host.Host, bundle *Bundle, want, leave []string, report host.Report) error {
	return importImages(ctx, h, bundle, want, leave, say(report), h.Path(CRISocket), defaults.DefaultSnapshotter)
}

func importImages(ctx context.Context, h *host.Host, bundle *Bundle, want, leave []string, report host.Report, socket, snapshotter string) error {
	client, err := containerd.New(socket, containerd.WithDefaultNamespace(imageNamespace), containerd.WithTimeout(dialLimit))
	if err != nil {
		return fault.Wrap(fault.ImageImportFailed, err, "cannot reach containerd over %s", socket)
	}
	defer client.Close()
	iso, err := bundle.open(ctx, h)
	if err != nil {
		return withCode(fault.ImageImportFailed, err, "cannot read the binaries ISO")
	}
	defer iso.Close()

	files := slices.SortedFunc(slices.Values(bundle.Images), func(a, b ImageFile) int { return cmp.Compare(b.Bytes, a.Bytes) })
	i := &importer{client: client, leave: leave, snapshotter: snapshotter, platform: platforms.Default(), progress: newProgress(files)}
	stop := i.progress.tell(report)
	// The work is done in containerd: one stream per processor keeps it busy.
	var group errgroup.Group
	group.SetLimit(min(max(runtime.NumCPU(), 2), 8))
	problems := make([]error, len(files))
	for at, file := range files {
		group.Go(func() error {
			if problems[at] = i.importFile(ctx, iso, file); problems[at] != nil {
				problems[at] = fmt.Errorf("docker/%s: %w", file.Name, problems[at])
			}
			return nil
		})
	}
	_ = group.Wait() // the files' errors are in problems
	stop()
	if err := context.Cause(ctx); err != nil {
		return fault.Wrap(fault.ImageImportFailed, err, "cannot import the images of the binaries ISO: %s", i.progress)
	}
	if err = errors.Join(problems...); err != nil {
		err = fault.Join(fault.ImageImportFailed, problems)
	}
	if err := bundle.checkMedium(ctx, h, err); err != nil {
		return err
	}
	return i.checkImages(ctx, want)
}

// checkImages says which images are not there.
func (i *importer) checkImages(ctx context.Context, want []string) error {
	present, err := i.client.ImageService().List(ctx)
	if err != nil {
		return fault.Wrap(fault.ImageImportFailed, err, "cannot list the images in containerd")
	}
	missing := missingImages(want, present)
	if len(missing) > 0 {
		return fault.New(fault.ImageMissing, "the binaries ISO lacks the images %s", strings.Join(missing, ", "))
	}
	return nil
}

func missingImages(want []string, present []images.Image) []string {
	return slices.DeleteFunc(slices.Clone(want), func(name string) bool {
		return slices.ContainsFunc(present, func(image images.Image) bool { return image.Name == name })
	})
}

// ForWorker parts kubeadm's images in those that a worker runs and those of the
// control plane, which no worker ever does.
func ForWorker(all []string) (worker, controlPlane []string) {
	for _, image := range all {
		name, _, _ := strings.Cut(path.Base(image), ":")
		if slices.Contains([]string{"kube-apiserver", "kube-controller-manager", "kube-scheduler", "etcd"}, name) {
			controlPlane = append(controlPlane, image)
		} else {
			worker = append(worker, image)
		}
	}
	return worker, controlPlane
}

type importer struct {
	client      *containerd.Client
	leave       []string // images not to import
	snapshotter string
	platform    platforms.MatchComparer
	progress    *progress
	blobs       keyedMutex // equal layers of several archives
}

// importFile imports the images of one archive.
func (i *importer) importFile(ctx context.Context, iso *isoFiles, file ImageFile) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	name := path.Join("docker", file.Name)
	opened, err := iso.Open(name)
	if err != nil {
		return err
	}
	defer opened.Close()
	verified := sync.OnceValue(func() error { return iso.verify(name) })
	err = i.importArchive(ctx, opened.(*isoFile), file, verified)
	if err != nil && ctx.Err() == nil && !isStalled(err) {
		// That the archive is not the one listed explains all else.
		err = cmp.Or(verified(), err)
	}
	return err
}

func (i *importer) importArchive(ctx context.Context, tarball io.ReaderAt, file ImageFile, verified func() error) error {
	found, err := readArchive(tarball, file.Bytes, i.platform)
	if err != nil {
		return withCode(fault.ISOInvalid, err, "cannot use it")
	}
	transferred := int64(0)
	for _, image := range found {
		if image.isOneOf(i.leave) {
			continue
		}
		complete, err := i.complete(ctx, image)
		if err != nil {
			return err
		}
		if complete {
			continue
		}
		go verified() // while it is sent
		sent, err := i.importImage(ctx, image, verified)
		transferred += sent
		if err != nil {
			return fmt.Errorf("image %s: %w", image.names[0], err)
		}
	}
	i.progress.finish(file.Bytes, transferred)
	return nil
}

// complete says whether the image is there under all its names, with all blobs,
// unpacked.
func (i *importer) complete(ctx context.Context, image archivedImage) (bool, error) {
	for _, name := range image.names {
		known, err := i.client.ImageService().Get(ctx, name)
		if errdefs.IsNotFound(err) || (err == nil && known.Target.Digest != image.target.Digest) {
			return false, nil
		}
		if err != nil {
			return false, err
		}
	}
	for _, blob := range image.blobs {
		if _, err := i.client.ContentStore().Info(ctx, blob.Digest); err != nil {
			return false, ignoreNotFound(err)
		}
	}
	unpacked, err := i.imageOf(image).IsUnpacked(ctx, i.snapshotter)
	return unpacked, ignoreNotFound(err)
}

func ignoreNotFound(err error) error {
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

func (i *importer) imageOf(image archivedImage) containerd.Image {
	return containerd.NewImageWithPlatform(i.client, images.Image{Name: image.names[0], Target: image.target}, i.platform)
}

// importImage returns how many bytes of blobs it sent. The image gets its names when
// verified has returned nil.
func (i *importer) importImage(ctx context.Context, image archivedImage, verified func() error) (sent int64, err error) {
	// Until the image refers to them, the lease keeps the blobs from containerd's
	// garbage collector; one left by a kill expires by itself.
	ctx, done, err := i.client.WithLease(ctx)
	if err != nil {
		return 0, err
	}
	defer func() { err = errors.Join(err, done(context.WithoutCancel(ctx))) }()

	store := i.client.ContentStore()
	for _, blob := range image.blobs {
		n, err := i.send(ctx, store, blob)
		sent += n
		if err != nil {
			return sent, fmt.Errorf("cannot send %s: %w", blob.Digest, err)
		}
	}
	children := func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		found, err := images.Children(ctx, store, desc)
		if errdefs.IsNotFound(err) {
			return nil, images.ErrSkipDesc // of another platform
		}
		return found, err
	}
	labelled := images.SetChildrenLabels(store, images.FilterPlatforms(images.HandlerFunc(children), i.platform))
	if err := images.Walk(ctx, labelled, image.target); err != nil {
		return sent, fmt.Errorf("cannot tie its parts together: %w", err)
	}
	if err := verified(); err != nil {
		return sent, err
	}
	for _, name := range image.names {
		if err := i.name(ctx, name, image.target); err != nil {
			return sent, fmt.Errorf("cannot name it %s: %w", name, err)
		}
	}
	if err := i.imageOf(image).Unpack(ctx, i.snapshotter); err != nil {
		return sent, fmt.Errorf("cannot unpack it: %w", err)
	}
	return sent, nil
}

// name makes an image's name point to target.
func (i *importer) name(ctx context.Context, name string, target ocispec.Descriptor) error {
	image := images.Image{Name: name, Target: target}
	_, err := i.client.ImageService().Update(ctx, image, "target")
	if errdefs.IsNotFound(err) {
		_, err = i.client.ImageService().Create(ctx, image)
	}
	return err
}

// send gives containerd a blob it does not have. A blob whose sending a kill cut
// short goes on where it was.
func (i *importer) send(ctx context.Context, store content.Store, blob archivedBlob) (sent int64, err error) {
	defer i.blobs.lock(blob.Digest)()
	if _, err := store.Info(ctx, blob.Digest); err == nil {
		return 0, nil
	} else if !errdefs.IsNotFound(err) {
		return 0, err
	}
	desc := ocispec.Descriptor{MediaType: blob.MediaType, Digest: blob.Digest, Size: blob.Size}
	writer, err := content.OpenWriter(ctx, store, content.WithRef("nodeagent-"+blob.Digest.String()), content.WithDescriptor(desc))
	if errdefs.IsAlreadyExists(err) {
		return 0, nil
	}
	if err != nil {
		return 0, err
	}
	defer writer.Close()
	status, err := writer.Status()
	if err != nil {
		return 0, err
	}
	if status.Offset < 0 || status.Offset > blob.Size {
		return 0, fmt.Errorf("containerd has %d of %d bytes", status.Offset, blob.Size)
	}
	rest := io.NewSectionReader(blob.content, status.Offset, blob.Size-status.Offset)
	for buffer := make([]byte, min(sendBytes, blob.Size)); ; {
		n, err := io.ReadFull(rest, buffer)
		if n > 0 {
			if _, err := writer.Write(buffer[:n]); err != nil {
				return sent, err
			}
			sent += int64(n)
			i.progress.sent.Add(int64(n))
		}
		if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || (err == nil && len(buffer) == 0) {
			break
		}
		if err != nil {
			return sent, err
		}
	}
	err = writer.Commit(ctx, blob.Size, blob.Digest)
	if errdefs.IsAlreadyExists(err) {
		err = nil
	}
	if err != nil {
		// Wrong content must not be gone on with.
		err = errors.Join(err, ignoreNotFound(store.Abort(context.WithoutCancel(ctx), "nodeagent-"+blob.Digest.String())))
	}
	return sent, err
}

// keyedMutex is a lock for each digest. The zero value is ready.
type keyedMutex struct {
	mu    sync.Mutex
	locks map[digest.Digest]*sync.Mutex
}

// lock waits for the key's lock and returns what gives it back.
func (k *keyedMutex) lock(key digest.Digest) (unlock func()) {
	k.mu.Lock()
	if k.locks == nil {
		k.locks = map[digest.Digest]*sync.Mutex{}
	}
	lock := k.locks[key]
	if lock == nil {
		lock = &sync.Mutex{}
		k.locks[key] = lock
	}
	k.mu.Unlock()
	lock.Lock()
	return lock.Unlock
}

// progress counts what is done. An archive counts twice, once sent and once
// unpacked; about as long does each take.
type progress struct {
	files, total int64 // archives, their bytes
	begin        time.Time

	sent     atomic.Int64 // bytes sent to containerd
	finished atomic.Int64 // bytes of archives that are done
	passed   atomic.Int64 // bytes of those that needed no sending
	count    atomic.Int64 // archives that are done
}

func newProgress(files []ImageFile) *progress {
	p := &progress{files: int64(len(files)), begin: time.Now()}
	for _, file := range files {
		p.total += file.Bytes
	}
	return p
}

func (p *progress) finish(bytes, sent int64) {
	p.finished.Add(bytes)
	p.passed.Add(max(bytes-sent, 0))
	p.count.Add(1)
}

func (p *progress) String() string {
	return describeProgress(p.count.Load(), p.files, p.sent.Load(), p.passed.Load(), p.finished.Load(), p.total, time.Since(p.begin))
}

// describeProgress says "images 7 of 12, 43 MB/s, 20 s left".
func describeProgress(count, files, sent, passed, finished, total int64, elapsed time.Duration) string {
	text := fmt.Sprintf("images %d of %d", count, files)
	seconds := elapsed.Seconds()
	if sent <= 0 || seconds < 1 {
		return text
	}
	text += fmt.Sprintf(", %.0f MB/s", float64(sent)/seconds/1e6)
	done, all := sent+finished-passed, 2*(total-passed)
	if left := float64(all-done) / float64(max(done, 1)) * seconds; count < files && left >= 1 {
		text += ", " + sayLeft(left) + " left"
	}
	return text
}

func sayLeft(seconds float64) string {
	if seconds < 120 {
		return fmt.Sprintf("%.0f s", seconds)
	}
	return fmt.Sprintf("%.0f min", seconds/60)
}

// tell reports once a second until the returned function is called.
func (p *progress) tell(report host.Report) (stop func()) {
	quit, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		ticker := time.NewTicker(time.Second)
		defer ticker.Stop()
		for {
			report("%s", p)
			select {
			case <-ticker.C:
			case <-quit:
				report("%s", p)
				return
			}
		}
	}()
	return func() { close(quit); <-ended }
}
