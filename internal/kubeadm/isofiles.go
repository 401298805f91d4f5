// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"io/fs"
	"os"
	"sync"
	"sync/atomic"
	"time"

	"nodeagent/internal/fault"
)

// readLimit is how long one read of the ISO may take. The storage behind it may
// hang, and a read of it then sleeps in the kernel where nothing wakes it (pain-point
// C14); storage that comes back within this time does no harm.
const readLimit = 2 * time.Minute

// isoFiles are the files of a binaries ISO, as an fs.FS whose every call ends: when
// ctx does, or with fault.ISOStalled; what the call waits for is left behind. Where
// the ISO has a manifest a file is hashed while it is read, and its end is an error,
// fault.ISOChecksum, unless it is the file that the manifest lists: what is made of a
// file takes effect only after its end. It is safe for concurrent use.
type isoFiles struct {
	ctx     context.Context // of whoever reads
	files   fs.FS
	where   string         // "the binaries ISO in /dev/sr0"
	sums    map[string]sum // of its manifest, nil for none
	limit   time.Duration  // of one call
	buffers sync.Pool
	stalled atomic.Bool // a call did not end: no other is tried
	closer  io.Closer   // what the files are in
}

// openISOFiles opens the folder that an ISO is mounted at, or one that is to become
// an ISO. limit 0 is readLimit.
func openISOFiles(ctx context.Context, folder, where string, limit time.Duration) (*isoFiles, error) {
	f := &isoFiles{ctx: ctx, where: where, limit: cmp.Or(limit, readLimit)}
	root, err := bounded(ctx, f.limit, func() (*os.Root, error) { return os.OpenRoot(folder) })
	if err != nil {
		return nil, f.failed("the root", err)
	}
	f.files, f.closer = root.FS(), root
	return f, nil
}

// Close closes what the files are in.
func (f *isoFiles) Close() error { return f.closer.Close() }

// bounded returns what call does, or an error when it does not end within the limit.
func bounded[T any](ctx context.Context, limit time.Duration, call func() (T, error)) (T, error) {
	type result struct {
		value T
		err   error
	}
	var none T
	if ctx.Err() != nil {
		return none, context.Cause(ctx)
	}
	done := make(chan result, 1)
	go func() {
		value, err := call()
		done <- result{value, err}
	}()
	timer := time.NewTimer(limit)
	defer timer.Stop()
	select {
	case r := <-done:
		return r.value, r.err
	case <-ctx.Done():
		return none, context.Cause(ctx)
	case <-timer.C:
		return none, fault.New(fault.ISOStalled, "no answer for %v", limit)
	}
}

// ask makes a call for a file.
func ask[T any](f *isoFiles, name string, call func() (T, error)) (value T, err error) {
	if f.stalled.Load() {
		return value, f.failed(name, fault.New(fault.ISOStalled, "no answer to an earlier read"))
	}
	value, err = bounded(f.ctx, f.limit, call)
	if isStalled(err) {
		f.stalled.Store(true)
	}
	return value, f.failed(name, err)
}

// failed explains an error of reading a file.
func (f *isoFiles) failed(name string, err error) error {
	if err == nil || errors.Is(err, io.EOF) || errors.Is(err, fs.ErrNotExist) {
		return err
	}
	var plain *fs.PathError // says the name again, below the mount point
	if errors.As(err, &plain) {
		err = plain.Err
	}
	if f.ctx.Err() != nil { // no fault of the medium's
		return fmt.Errorf("cannot read %s of %s: %w", name, f.where, err)
	}
	return withCode(fault.ISOUnreadable, err, "cannot read %s of %s", name, f.where)
}

// Open implements fs.FS.
func (f *isoFiles) Open(name string) (fs.File, error) {
	file, err := ask(f, name, func() (fs.File, error) { return f.files.Open(name) })
	if err != nil {
		return nil, err
	}
	opened := &isoFile{File: file, name: name, of: f}
	if f.sums != nil {
		if _, ok := f.sums[name]; !ok { // it was not there when the ISO was chosen
			file.Close()
			return nil, fault.New(fault.ISOChecksum, "%s does not list %s of %s", SumsFile, name, f.where)
		}
		opened.hash = sha256.New()
	}
	return opened, nil
}

// ReadDir implements fs.ReadDirFS.
func (f *isoFiles) ReadDir(name string) ([]fs.DirEntry, error) {
	return ask(f, name, func() ([]fs.DirEntry, error) { return fs.ReadDir(f.files, name) })
}

// Stat implements fs.StatFS.
func (f *isoFiles) Stat(name string) (fs.FileInfo, error) {
	return ask(f, name, func() (fs.FileInfo, error) { return fs.Stat(f.files, name) })
}

// verify reads a file to its end, which is an error if it is not the file that the
// manifest lists. Without a manifest it reads nothing.
func (f *isoFiles) verify(name string) error {
	if f.sums == nil {
		return nil
	}
	file, err := f.Open(name)
	if err != nil {
		return err
	}
	defer file.Close()
	_, err = io.Copy(io.Discard, file)
	return err
}

// isoFile is an open file of an ISO.
type isoFile struct {
	fs.File
	name string
	of   *isoFiles
	hash hash.Hash // of what was read so far; nil when there is nothing to compare with
}

// Read implements io.Reader.
func (f *isoFile) Read(p []byte) (int, error) {
	n, err := f.read(p, f.File.Read)
	if f.hash != nil {
		f.hash.Write(p[:n])
		if errors.Is(err, io.EOF) {
			if got := sum(f.hash.Sum(nil)); got != f.of.sums[f.name] {
				return n, fault.New(fault.ISOChecksum, "%s of %s is not the file that %s lists: its sum is %x, want %x",
					f.name, f.of.where, SumsFile, got, f.of.sums[f.name])
			}
		}
	}
	return n, err
}

// ReadAt implements io.ReaderAt. What it reads is not compared with the manifest.
func (f *isoFile) ReadAt(p []byte, offset int64) (int, error) {
	file, ok := f.File.(io.ReaderAt)
	if !ok {
		return 0, fmt.Errorf("cannot read %s at an offset", f.name)
	}
	return f.read(p, func(p []byte) (int, error) { return file.ReadAt(p, offset) })
}

// read reads into a buffer of its own: a call left behind may still write to it.
func (f *isoFile) read(p []byte, call func([]byte) (int, error)) (int, error) {
	pooled, _ := f.of.buffers.Get().(*[]byte)
	if pooled == nil || len(*pooled) < len(p) {
		fresh := make([]byte, len(p))
		pooled = &fresh
	}
	buffer := (*pooled)[:len(p)]
	type read struct {
		n   int
		err error
	}
	r, err := ask(f.of, f.name, func() (read, error) {
		n, err := call(buffer)
		return read{n, err}, nil
	})
	if err != nil { // it has not ended: the buffer is its own
		return 0, err
	}
	copy(p, buffer[:r.n])
	f.of.buffers.Put(pooled)
	return r.n, f.of.failed(f.name, r.err)
}

// isStalled says that the medium does not answer: asking it more takes long.
func isStalled(err error) bool { return err != nil && fault.As(err).Code == fault.ISOStalled }

// withCode wraps an error under its own code, or under code where it has none.
func withCode(code fault.Code, err error, format string, args ...any) *fault.Error {
	var known *fault.Error
	if errors.As(err, &known) {
		code = known.Code
	}
	return fault.Wrap(code, err, format, args...)
}

// readBounded reads a file of at most most bytes.
func readBounded(files fs.FS, name string, most int) ([]byte, error) {
	file, err := files.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	content, err := io.ReadAll(io.LimitReader(file, int64(most)+1))
	if err != nil {
		return nil, err
	}
	if len(content) > most {
		return nil, fault.New(fault.ISOInvalid, "%s is larger than %d bytes", name, most)
	}
	return content, nil
}
