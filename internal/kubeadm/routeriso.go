// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"slices"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// CloudStack 4.21 and later can mount the binaries ISO in the network's virtual router
// (cks_iso.sh), whose web server then lists and serves its files to external nodes:
// http://ROUTER/cks-iso/.

const (
	// downloads is where the files of a router's ISO are kept until they are installed.
	// What is there whole is not fetched again: a file that has the size and the time
	// the router says, under its own name.
	downloads = "/var/lib/nodeagent/cks-iso"
	// suspect is what downloads becomes when something of it could not be used: the
	// next run begins anew.
	suspect = downloads + ".suspect"

	maxRouterFile = 16 << 30 // bytes
)

// takenFiles are what a node takes of a binaries ISO.
var takenFiles = append(neededFiles[:], "*.yaml", "etcd/etcd*.tar.gz", SumsFile)

// inBundle says whether a node takes the file of that name.
func inBundle(name string) bool {
	return slices.ContainsFunc(takenFiles, func(pattern string) bool { ok, _ := path.Match(pattern, name); return ok })
}

// routerISO is the binaries ISO of a virtual router, which comes late, as media do.
type routerISO struct {
	h      *host.Host
	router string // as the userdata name it
	base   *url.URL
	client *http.Client

	pace     time.Duration // of the first tries; each pause is longer than the one before
	patience time.Duration // without a byte of a file
	free     func() (int64, error)

	news chan news // the latest, of a search that runs
	stop func()    // ends it, and waits
}

// news is what a search in the router has to say.
type news struct {
	text string
	done bool  // all files are there, or err says why they never will
	err  error // not nil only when done
}

const (
	slowestPace  = 15 * time.Second
	stallTimeout = 30 * time.Second // storage that comes back within tries times this does no harm
	tries        = 4                // of a file, in a row, that bring nothing
)

// newRouterISO returns the ISO of the router of that name or address, perhaps with a
// port. Nothing is asked yet.
func newRouterISO(h *host.Host, router string) (*routerISO, error) {
	address := router
	if ip, err := netip.ParseAddr(router); err == nil && ip.Is6() {
		address = "[" + router + "]"
	}
	base, err := url.Parse("http://" + address + "/cks-iso/")
	if err != nil || base.Host != address || address == "" {
		return nil, fault.New(fault.UserdataInvalid, "%.100q is no address of a virtual router", router)
	}
	dialer := &net.Dialer{Timeout: 10 * time.Second}
	return &routerISO{h: h, router: router, base: base, pace: time.Second, patience: stallTimeout,
		free: func() (int64, error) { return freeSpace(h.Path(downloads)) },
		client: &http.Client{
			// As in userdata: no proxy, nothing unpacked, no redirect to elsewhere.
			Transport: &http.Transport{DialContext: dialer.DialContext, ResponseHeaderTimeout: stallTimeout,
				MaxResponseHeaderBytes: 64 << 10, DisableCompression: true, MaxIdleConns: 1, IdleConnTimeout: stallTimeout},
			CheckRedirect: func(next *http.Request, before []*http.Request) error {
				if len(before) > 3 || next.URL.Host != base.Host || next.URL.Scheme != base.Scheme {
					return errors.New("redirected to elsewhere, which is not followed")
				}
				return nil
			},
		}}, nil
}

// start begins to look for the ISO, unless it has begun: news says what becomes of it.
func (r *routerISO) start(ctx context.Context) {
	if r == nil || r.news != nil {
		return
	}
	r.news = make(chan news, 1)
	searching, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		r.search(searching)
	}()
	r.stop = func() {
		cancel()
		<-ended
		r.client.CloseIdleConnections()
	}
}

// end ends what start has begun.
func (r *routerISO) end() {
	if r != nil && r.stop != nil {
		r.stop()
	}
}

// heard returns where news come, never for no router.
func (r *routerISO) heard() <-chan news {
	if r == nil {
		return nil
	}
	return r.news
}

// tell puts news in the place of older ones. There is one who tells.
func (r *routerISO) tell(n news) {
	select {
	case <-r.news:
	default:
	}
	r.news <- n
}

func (r *routerISO) say(format string, args ...any) {
	r.tell(news{text: "virtual router " + r.router + " " + fmt.Sprintf(format, args...)})
}

// search fetches the ISO's files until all are there. That they are not, or not yet, is
// tried again, of which no event tells; only what has a fault's code ends it.
func (r *routerISO) search(ctx context.Context) {
	for pause := r.pace; ; pause = min(2*pause, slowestPace) {
		err := r.fetch(ctx)
		var known *fault.Error
		switch {
		case ctx.Err() != nil:
			return
		case err == nil || errors.As(err, &known):
			r.tell(news{done: true, err: err})
			return
		}
		r.say("%v", err)
		if !sleep(ctx, pause) {
			return
		}
	}
}

// fetch fetches what is not there yet.
func (r *routerISO) fetch(ctx context.Context) error {
	names, err := r.list(ctx)
	if err != nil {
		return err
	}
	if err := os.RemoveAll(r.h.Path(suspect)); err != nil {
		return fault.Wrap(fault.InstallFailed, err, "cannot begin to fetch the binaries ISO")
	}
	if err := os.MkdirAll(r.h.Path(downloads), 0o700); err != nil {
		return fault.Wrap(fault.InstallFailed, err, "cannot begin to fetch the binaries ISO")
	}
	sums, err := r.sums(ctx, names)
	if err != nil {
		return err
	}
	d := &download{routerISO: r, began: time.Now()}
	for _, name := range slices.Sorted(maps.Keys(names)) {
		if name == SumsFile {
			continue
		}
		file, err := r.ask(ctx, name)
		if err != nil {
			return err
		}
		if listed, ok := sums[name]; ok {
			file.sum = &listed
		}
		d.files = append(d.files, file)
		d.total += file.bytes
	}
	return d.run(ctx)
}

// list returns the names of the ISO's files that a node takes. An ISO that lacks files
// is fault.ISOIncomplete.
func (r *routerISO) list(ctx context.Context) (names map[string]bool, err error) {
	files, folders, err := r.folder(ctx, "")
	if err != nil {
		return nil, err
	}
	if !folders["k8s"] && !folders["docker"] {
		return nil, errors.New("offers no binaries ISO: its cks-iso has no folders k8s and docker")
	}
	names = map[string]bool{}
	add := func(folder string, files map[string]bool) {
		for name := range files {
			if name = path.Join(folder, name); inBundle(name) {
				names[name] = true
			}
		}
	}
	add("", files)
	for _, folder := range []string{"k8s", "cni", "cri-tools", "docker", "etcd"} {
		if folders[folder] {
			if files, _, err = r.folder(ctx, folder+"/"); err != nil {
				return nil, err
			}
			add(folder, files)
		}
	}
	var missing []string
	for _, pattern := range neededFiles {
		matches := func(name string) bool { ok, _ := path.Match(pattern, name); return ok }
		if !slices.ContainsFunc(slices.Collect(maps.Keys(names)), matches) {
			missing = append(missing, pattern)
		}
	}
	if len(missing) > 0 {
		return nil, fault.New(fault.ISOIncomplete, "the binaries ISO in %s lacks %s", r.base, strings.Join(missing, ", "))
	}
	return names, nil
}

// folder reads the listing of a folder of the ISO.
func (r *routerISO) folder(ctx context.Context, name string) (files, folders map[string]bool, err error) {
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	response, err := r.request(ctx, http.MethodGet, name, nil)
	if err != nil {
		return nil, nil, err
	}
	defer response.Body.Close()
	if files, folders, err = parseListing(response.Body); err != nil {
		return nil, nil, fmt.Errorf("offers no binaries ISO: cks-iso/%s: %v", name, plain(err))
	}
	return files, folders, nil
}

// request asks for a file or folder of the ISO. Any answer but the file, or a part of it
// where that is asked for, is an error without a code.
func (r *routerISO) request(ctx context.Context, method, name string, header http.Header) (*http.Response, error) {
	at := *r.base
	at.Path += name
	request, err := http.NewRequestWithContext(ctx, method, at.String(), nil)
	if err != nil {
		return nil, err
	}
	maps.Copy(request.Header, header)
	response, err := r.client.Do(request)
	if err != nil {
		return nil, fmt.Errorf("does not answer: %v", plain(err))
	}
	if response.StatusCode != http.StatusOK && (response.StatusCode != http.StatusPartialContent || header == nil) {
		response.Body.Close()
		return nil, fmt.Errorf("offers no %s (%d)", path.Join("cks-iso", name), response.StatusCode)
	}
	return response, nil
}

// plain takes the URL out of an HTTP client's error: it is told already.
func plain(err error) error {
	var wrapped *url.Error
	if errors.As(err, &wrapped) {
		err = wrapped.Err
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return errors.New("no answer in time")
	}
	return err
}

// sums reads the manifest, nil for none, and keeps of it what a node takes: then it
// lists what is fetched, no more and no fewer.
func (r *routerISO) sums(ctx context.Context, names map[string]bool) (map[string]sum, error) {
	if !names[SumsFile] {
		_, err := r.h.Remove(path.Join(downloads, SumsFile))
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, r.patience)
	defer cancel()
	response, err := r.request(ctx, http.MethodGet, SumsFile, nil)
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(io.LimitReader(response.Body, maxSumsBytes+1))
	if err != nil {
		return nil, fmt.Errorf("broke off %s: %v", SumsFile, plain(err))
	}
	sums, err := parseSums(text)
	if len(text) > maxSumsBytes {
		err = fmt.Errorf("%s is larger than %d bytes", SumsFile, maxSumsBytes)
	}
	if err == nil {
		maps.DeleteFunc(sums, func(name string, _ sum) bool { return !inBundle(name) })
		err = compareSums(sums, names)
	}
	if err != nil {
		return nil, withCode(fault.ISOChecksum, err, "cannot use the binaries ISO in %s", r.base)
	}
	if _, err := r.h.WriteFile(path.Join(downloads, SumsFile), formatSums(sums), 0o600); err != nil {
		return nil, fault.Wrap(fault.InstallFailed, err, "cannot keep the binaries ISO in %s", r.base)
	}
	return sums, nil
}

// bundle is what was fetched.
func (r *routerISO) bundle(ctx context.Context, want, program string) (*Bundle, error) {
	bundle := &Bundle{Device: r.base.String(), Dir: downloads}
	if err := bundle.judge(ctx, r.h); err != nil {
		return nil, err
	}
	if err := bundle.use(ctx, r.h, program); err != nil {
		return nil, err
	}
	if want != "" && bundle.Version != WithV(want) {
		return nil, distrust(r.h, wrongVersion([]string{bundle.Device + " holds Kubernetes " + bundle.Version}, want))
	}
	return bundle, nil
}

// judge looks at the files as at those of a medium.
func (b *Bundle) judge(ctx context.Context, h *host.Host) error {
	files, err := b.open(ctx, h)
	if err != nil {
		return withCode(fault.InstallFailed, err, "cannot use the binaries ISO in %s", b.Device)
	}
	defer files.Close()
	_, missing, images, err := judge(files)
	if err == nil && len(missing) > 0 {
		err = fault.New(fault.ISOIncomplete, "the binaries ISO in %s lacks %s", b.Device, strings.Join(missing, ", "))
	}
	b.Images = images
	return b.checkMedium(ctx, h, err)
}

// distrust has the next run fetch all anew: something of what was fetched cannot be
// used, which err says. Who still reads it goes on, in the folder that he has open.
func distrust(h *host.Host, err error) error {
	failed := os.RemoveAll(h.Path(suspect))
	if failed == nil {
		failed = os.Rename(h.Path(downloads), h.Path(suspect))
	}
	if errors.Is(failed, fs.ErrNotExist) { // it was done before
		return err
	}
	return errors.Join(err, failed)
}

// Forget removes what was fetched of a router's ISO. Nothing there is no error.
func Forget(h *host.Host) error {
	return errors.Join(os.RemoveAll(h.Path(downloads)), os.RemoveAll(h.Path(suspect)))
}
