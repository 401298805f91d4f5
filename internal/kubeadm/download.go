// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// remoteFile is a file of a router's ISO.
type remoteFile struct {
	name     string
	bytes    int64
	modified string    // as the router writes it; "" where it says nothing
	time     time.Time // the same
	sum      *sum      // of the manifest, nil for none
}

// part is where a file is kept until it is whole. It has the file's time in its name:
// of another ISO's file of the same name nothing is gone on with.
func (f remoteFile) part() string { return fmt.Sprintf("%s.%d.part", f.name, f.time.Unix()) }

// ask asks the router for a file's size and time.
func (r *routerISO) ask(ctx context.Context, name string) (remoteFile, error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	response, err := r.request(ctx, http.MethodHead, name, nil)
	if err != nil {
		return remoteFile{}, err
	}
	response.Body.Close()
	if response.ContentLength < 0 || response.ContentLength > maxRouterFile {
		return remoteFile{}, fault.New(fault.ISOInvalid, "%s%s says that it has %d bytes; 0 to %d were expected", r.base, name, response.ContentLength, int64(maxRouterFile))
	}
	f := remoteFile{name: name, bytes: response.ContentLength, time: time.Unix(0, 0)}
	modified := response.Header.Get("Last-Modified")
	if at, err := http.ParseTime(modified); err == nil {
		f.modified, f.time = modified, at
	}
	return f, nil
}

// download fetches files, one after the other.
type download struct {
	*routerISO
	files []remoteFile
	total int64 // their bytes

	done, came int64 // bytes that are there, and those that this run fetched
	began      time.Time
	told       time.Time
}

func (d *download) path(name string) string { return filepath.Join(d.h.Path(downloads), name) }

func (d *download) run(ctx context.Context) error {
	if err := d.clear(); err != nil {
		return fault.Wrap(fault.InstallFailed, err, "cannot keep the binaries ISO in %s", d.base)
	}
	free, err := d.free()
	if need := d.total - d.done + freeBeside; err == nil && free < need {
		return fault.New(fault.DiskSpaceLow, "%s has %d MiB free; fetching the binaries ISO from %s needs %d MiB (%d of its %d MiB, and 2 GiB beside)",
			downloads, free>>20, d.base, need>>20, (d.total-d.done)>>20, d.total>>20)
	}
	if err != nil {
		return fault.Wrap(fault.InstallFailed, err, "cannot tell the free space of %s", downloads)
	}
	for _, file := range d.files {
		if err := d.get(ctx, file); err != nil {
			return err
		}
	}
	return nil
}

// clear removes what is none of the files, and counts what there is of them.
func (d *download) clear() error {
	keep := map[string]int64{d.path(SumsFile): -1} // the most bytes of it
	for _, file := range d.files {
		if !d.has(file) {
			if file.modified == "" { // nothing tells whether a part is of it
				continue
			}
			keep[d.path(file.part())] = file.bytes
			continue
		}
		keep[d.path(file.name)] = file.bytes
	}
	return filepath.WalkDir(d.h.Path(downloads), func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		most, ok := keep[name]
		if !ok {
			return os.Remove(name)
		}
		if info, err := entry.Info(); err == nil && most >= 0 {
			d.done += min(info.Size(), most)
		}
		return nil
	})
}

// has says whether a file is there whole.
func (d *download) has(f remoteFile) bool {
	info, err := os.Lstat(d.path(f.name))
	return err == nil && info.Mode().IsRegular() && info.Size() == f.bytes && info.ModTime().Equal(f.time)
}

// get fetches a file, or what is left of it. Where there is a manifest it gets its name
// only when it is the file listed: else it is fetched once more.
func (d *download) get(ctx context.Context, f remoteFile) error {
	if d.has(f) {
		return nil
	}
	if err := os.MkdirAll(filepath.Dir(d.path(f.name)), 0o700); err != nil {
		return d.cannotKeep(f, err)
	}
	for again := false; ; again = true {
		if err := d.complete(ctx, f); err != nil {
			return err
		}
		if f.sum == nil {
			break
		}
		got, _, err := hashFile(os.DirFS(d.h.Path(downloads)), f.part())
		if err != nil {
			return d.cannotKeep(f, err)
		}
		if got == *f.sum {
			break
		}
		if err := os.Remove(d.path(f.part())); err != nil {
			return d.cannotKeep(f, err)
		}
		d.done -= f.bytes
		if again {
			return fault.New(fault.ISOChecksum, "%s of the binaries ISO in %s is not the file that %s lists: its sum is %x, want %x", f.name, d.base, SumsFile, got, *f.sum)
		}
	}
	err := os.Chtimes(d.path(f.part()), f.time, f.time)
	if err == nil {
		err = os.Rename(d.path(f.part()), d.path(f.name))
	}
	if err == nil {
		err = host.SyncDir(filepath.Dir(d.path(f.name)))
	}
	if err != nil {
		return d.cannotKeep(f, err)
	}
	return nil
}

func (d *download) cannotKeep(f remoteFile, err error) error {
	return fault.Wrap(fault.InstallFailed, err, "cannot keep %s of the binaries ISO in %s", f.name, d.base)
}

// complete fetches what is left of a file's part. A file that always ends before its
// end is fault.ISOTruncated, one that stands still fault.ISOStalled.
func (d *download) complete(ctx context.Context, f remoteFile) error {
	pause, most := d.pace, int64(0)
	for try := 1; ; try++ {
		has, err := d.append(ctx, f)
		if err == nil || ctx.Err() != nil {
			return err
		}
		var known *fault.Error
		if has > most {
			try, pause, most = 1, d.pace, has
		}
		if !errors.As(err, &known) || known.Code == fault.InstallFailed || try >= tries {
			return err
		}
		d.say("%v; trying again", err)
		if !sleep(ctx, pause) {
			return context.Cause(ctx)
		}
		pause *= 2
	}
}

// append asks once for what is left of a file, and returns how many bytes of it there
// are.
func (d *download) append(ctx context.Context, f remoteFile) (has int64, err error) {
	file, err := os.OpenFile(d.path(f.part()), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		return 0, d.cannotKeep(f, err)
	}
	defer file.Close()
	has, err = file.Seek(0, io.SeekEnd)
	if err == nil && has > f.bytes {
		has, err = 0, file.Truncate(0)
	}
	if err != nil {
		return 0, d.cannotKeep(f, err)
	}
	if has < f.bytes {
		if has, err = d.receive(ctx, f, file, has); err != nil {
			return has, err
		}
	}
	if err := file.Sync(); err != nil {
		return has, d.cannotKeep(f, err)
	}
	return has, nil
}

// receive writes what is left of a file behind the bytes that it has, and returns how
// many it has then.
func (d *download) receive(ctx context.Context, f remoteFile, file *os.File, has int64) (int64, error) {
	header := http.Header{}
	if has > 0 && f.modified != "" {
		header.Set("Range", fmt.Sprintf("bytes=%d-", has))
		header.Set("If-Range", f.modified)
	}
	// The watchdog ends a transfer that stands still, not one that is slow.
	stalled := fault.New(fault.ISOStalled, "%s%s: no byte for %v", d.base, f.name, d.patience)
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	watchdog := time.AfterFunc(d.patience, func() { cancel(stalled) })
	defer watchdog.Stop()
	response, err := d.request(ctx, http.MethodGet, f.name, header)
	if err != nil {
		return has, cmp.Or(context.Cause(ctx), err)
	}
	defer response.Body.Close()
	if from := fmt.Sprintf("bytes %d-%d/%d", has, f.bytes-1, f.bytes); response.StatusCode != http.StatusPartialContent || response.Header.Get("Content-Range") != from {
		if response.StatusCode == http.StatusPartialContent {
			return has, fmt.Errorf("offers another %s now: %.100q in place of %q", f.name, response.Header.Get("Content-Range"), from)
		}
		if err := file.Truncate(0); err != nil {
			return has, d.cannotKeep(f, err)
		}
		d.done -= has
		has = 0
	}
	if length := response.ContentLength; length >= 0 && length != f.bytes-has {
		return has, fmt.Errorf("offers another %s now, of %d bytes in place of %d", f.name, has+length, f.bytes)
	}
	body := io.LimitReader(response.Body, f.bytes-has)
	for buffer := make([]byte, 256<<10); has < f.bytes; {
		n, err := body.Read(buffer)
		watchdog.Reset(d.patience)
		if n > 0 {
			if _, err := file.Write(buffer[:n]); err != nil {
				return has, d.cannotKeep(f, err)
			}
			has += int64(n)
			d.progress(int64(n))
		}
		switch {
		case err == nil || has == f.bytes:
		case context.Cause(ctx) != nil:
			return has, context.Cause(ctx)
		default:
			return has, fault.New(fault.ISOTruncated, "%s of the binaries ISO in %s is cut off: %d of %d bytes came (%s)", f.name, d.base, has, f.bytes,
				strings.ToLower(plain(err).Error()))
		}
	}
	return has, nil
}

// progress counts bytes, and tells once a second.
func (d *download) progress(bytes int64) {
	d.done += bytes
	d.came += bytes
	now := time.Now()
	if now.Sub(d.told) < time.Second && d.done < d.total {
		return
	}
	d.told = now
	d.say("sends it: %s", describeDownload(d.done, d.total, d.came, now.Sub(d.began)))
}

// describeDownload says "120 of 694 MB, 35 MB/s, 16 s left".
func describeDownload(done, total, came int64, elapsed time.Duration) string {
	text := fmt.Sprintf("%d of %d MB", done/1e6, total/1e6)
	seconds := elapsed.Seconds()
	if came <= 0 || seconds < 1 {
		return text
	}
	text += fmt.Sprintf(", %.1f MB/s", float64(came)/seconds/1e6)
	if left := float64(total-done) / float64(came) * seconds; left >= 1 {
		text += fmt.Sprintf(", %.0f s left", left)
	}
	return text
}
