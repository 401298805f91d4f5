// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/http"
	"net/http/httptest"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

var built = time.Date(2026, 9, 11, 7, 3, 0, 0, time.UTC)

// isoRouter is a virtual router that serves the files of an ISO.
type isoRouter struct {
	*httptest.Server
	form string // of its listings

	mu    sync.Mutex
	files map[string]string
	built time.Time
	// odd answers in place of the router where it returns true.
	odd   func(w http.ResponseWriter, r *http.Request, name string) bool
	asked []string // "GET k8s/kubeadm bytes=5-"
}

func newISORouter(t testing.TB, files map[string]string) *isoRouter {
	r := &isoRouter{form: "apache, fancy, table", files: files, built: built}
	r.Server = httptest.NewServer(r)
	t.Cleanup(r.Close)
	return r
}

func (r *isoRouter) ServeHTTP(w http.ResponseWriter, request *http.Request) {
	name, ok := strings.CutPrefix(request.URL.Path, "/cks-iso/")
	r.mu.Lock()
	r.asked = append(r.asked, strings.TrimSpace(request.Method+" "+name+" "+request.Header.Get("Range")))
	files, built, odd := maps.Clone(r.files), r.built, r.odd
	r.mu.Unlock()
	if odd != nil && odd(w, request, name) {
		return
	}
	text, found := files[name]
	switch {
	case ok && found:
		http.ServeContent(w, request, name, built, strings.NewReader(text))
	case ok && (name == "" || strings.HasSuffix(name, "/")):
		entries := map[string]bool{}
		for file := range files {
			if file, in := strings.CutPrefix(file, name); in {
				first, _, folder := strings.Cut(file, "/")
				if folder {
					first += "/"
				}
				entries[first] = true
			}
		}
		fmt.Fprint(w, listings[r.form](slices.Sorted(maps.Keys(entries))))
	default:
		http.NotFound(w, request)
	}
}

// gets returns the files that were fetched, in order, and forgets them.
func (r *isoRouter) gets() (names []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for _, request := range r.asked {
		if name, ok := strings.CutPrefix(request, "GET "); ok && name != SumsFile && name != "" && !strings.HasSuffix(name, "/") {
			names = append(names, name)
		}
	}
	r.asked = nil
	return names
}

func (r *isoRouter) address() string { return r.Listener.Addr().String() }

func (r *isoRouter) set(change func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	change()
}

// source is the router as a node sees it.
func (r *isoRouter) source(t testing.TB, h *host.Host) *routerISO {
	t.Helper()
	source, err := newRouterISO(h, r.address())
	if err != nil {
		t.Fatal(err)
	}
	source.pace, source.patience = time.Millisecond, time.Minute
	source.free = func() (int64, error) { return 1 << 40, nil }
	return source
}

func (r *isoRouter) find(t testing.TB, m *hosttest.Machine, want string) (*Bundle, error) {
	t.Helper()
	return findISO(t.Context(), m.Host(), want, r.source(t, m.Host()), nil, discard)
}

// fetched lists the files below a folder of the machine.
func fetched(t testing.TB, m *hosttest.Machine, folder string) (names []string) {
	t.Helper()
	for _, pattern := range []string{"*", "*/*"} {
		found, err := filepath.Glob(m.Path(path.Join(folder, pattern)))
		if err != nil {
			t.Fatal(err)
		}
		for _, name := range found {
			if info, err := os.Lstat(name); err == nil && !info.IsDir() {
				names = append(names, strings.TrimPrefix(name, m.Path(folder)+"/"))
			}
		}
	}
	slices.Sort(names)
	return names
}

// Contract 5.5: the ISO's files come from the virtual router, whatever its listings look
// like; what a node does not take is left there. They install as a mounted ISO's do, and
// are gone afterwards.
func TestRouterISO(t *testing.T) {
	t.Parallel()
	for form := range listings {
		t.Run(form, func(t *testing.T) {
			t.Parallel()
			files := withSums(bundleFiles(t, "v1.34.4"))
			if form == "nginx" {
				delete(files, SumsFile)
			}
			wanted := slices.Sorted(maps.Keys(files))
			files["docs/notes.yaml"], files["notes.txt"], files["docker/notes.txt"] = "x", "x", "x"
			if form != "nginx" {
				files[SumsFile] += sumLine("notes.txt", "x")
			}
			r := newISORouter(t, files)
			r.form = form
			m := testMachine(t)
			addDevice(t, m, "sr0", "", nil)
			bundle, err := r.find(t, m, "1.34.4")
			if err != nil {
				t.Fatal(err)
			}
			verification := "checked against SHA256SUMS"
			if form == "nginx" {
				verification = "not verified"
			}
			if bundle.Source() != "http://"+r.address()+"/cks-iso/" || bundle.Version != "v1.34.4" || len(bundle.Images) != 1 || bundle.Images[0].Name != "pause:3.10.tar" || bundle.Verification() != verification {
				t.Errorf("bundle = %+v, %s", bundle, bundle.Verification())
			}
			if got := fetched(t, m, downloads); !slices.Equal(got, wanted) {
				t.Errorf("kept %q, want %q", got, wanted)
			}
			if changed, err := Install(t.Context(), m.Host(), bundle); err != nil || !changed || m.Read("/opt/bin/kubelet") != files["k8s/kubelet"] {
				t.Errorf("Install = %v, %v", changed, err)
			}
			if err := bundle.Release(m.Host(), true); err != nil || m.Host().Exists(downloads) {
				t.Errorf("after Release (%v) %q is left", err, fetched(t, m, downloads))
			}
		})
	}
}

// A drive that has the ISO at the first look is taken and the router not asked; so is one
// that has it before the router's is whole. What was fetched is gone then.
func TestRouterISODriveFirst(t *testing.T) {
	t.Parallel()
	for _, late := range []bool{false, true} {
		m := testMachine(t)
		m.Write(downloads+"/k8s/kubelet", "of an earlier run")
		addDevice(t, m, "sr0", "", nil)
		changed, release := make(chan struct{}, 1), make(chan struct{})
		r := newISORouter(t, bundleFiles(t, "v1.33.1"))
		put := sync.OnceFunc(func() {
			addDevice(t, m, "sr0", "CDROM", bundleFiles(t, "v1.34.4"))
			changed <- struct{}{}
		})
		r.odd = func(_ http.ResponseWriter, request *http.Request, name string) bool {
			if request.Method == http.MethodGet && name == "k8s/kubelet" {
				put()
				select {
				case <-release:
				case <-request.Context().Done():
				}
			}
			return false
		}
		if !late {
			put()
		}
		bundle, err := findISO(t.Context(), m.Host(), "", r.source(t, m.Host()), changed, discard)
		close(release)
		if err != nil || bundle.Source() != `/dev/sr0 (label "CDROM")` || bundle.Version != "v1.34.4" {
			t.Fatalf("late %v: bundle %+v, %v; want the drive's", late, bundle, err)
		}
		if asked := r.gets(); !late && len(asked) > 0 {
			t.Errorf("the router was asked for %q", asked)
		}
		if m.Host().Exists(downloads) {
			t.Errorf("late %v: %q is left", late, fetched(t, m, downloads))
		}
	}
}

// C13: that the router has nothing, or not yet, is told beside what the drives have.
func TestRouterISOComesLate(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	addDevice(t, m, "sr0", "", nil)
	r := newISORouter(t, nil)
	r.odd = func(w http.ResponseWriter, request *http.Request, name string) bool {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.files == nil {
			http.NotFound(w, request)
		}
		return r.files == nil
	}
	var reports []string
	bundle, err := findISO(t.Context(), m.Host(), "", r.source(t, m.Host()), nil, func(format string, args ...any) {
		text := fmt.Sprintf(format, args...)
		reports = append(reports, text)
		switch {
		case strings.HasSuffix(text, "offers no cks-iso (404)"):
			r.set(func() { r.files = map[string]string{"nothing.txt": "x"} })
		case strings.Contains(text, "has no folders k8s and docker"):
			r.set(func() { r.files = bundleFiles(t, "v1.34.4") })
		}
	})
	if err != nil || bundle.Version != "v1.34.4" {
		t.Fatalf("bundle = %+v, %v", bundle, err)
	}
	for _, want := range []string{
		"waiting for the binaries ISO: no medium in sr0",
		"waiting for the binaries ISO: no medium in sr0; virtual router " + r.address() + " offers no cks-iso (404)",
		"waiting for the binaries ISO: no medium in sr0; virtual router " + r.address() + " offers no binaries ISO: its cks-iso has no folders k8s and docker",
	} {
		if !slices.Contains(reports, want) {
			t.Errorf("reports %q lack %q", reports, want)
		}
	}
}

func TestRouterISONeverComes(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	r := newISORouter(t, nil)
	r.Close()
	ctx, cancel := context.WithCancelCause(t.Context())
	_, err := findISO(ctx, m.Host(), "", r.source(t, m.Host()), nil, func(format string, args ...any) {
		if strings.Contains(fmt.Sprintf(format, args...), "refused") {
			cancel(context.DeadlineExceeded)
		}
	})
	want := "the binaries ISO did not come (no drive or disk has an ISO; virtual router " + r.address() + " does not answer: "
	if err == nil || fault.As(err).Code != fault.ISOMissing || !strings.Contains(err.Error(), want) || !strings.Contains(err.Error(), "connection refused") {
		t.Errorf("error %v, want %s with %q", err, fault.ISOMissing, want)
	}
}

// C12, C14: what is wrong with the router's ISO has the codes of one in a drive, and
// leaves nothing behind that would be taken for right.
func TestRouterISOFails(t *testing.T) {
	t.Parallel()
	// short sends the beginning of what it said it would.
	short := func(w http.ResponseWriter, request *http.Request, name string) bool {
		if request.Method == http.MethodHead || name != "k8s/kubelet" {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(program(runtime.GOARCH, "kubelet"))))
		if request.Header.Get("Range") == "" {
			fmt.Fprint(w, "\x7fELF")
		}
		_ = http.NewResponseController(w).Flush()
		panic(http.ErrAbortHandler)
	}
	for title, test := range map[string]struct {
		change func(r *isoRouter, source *routerISO)
		code   fault.Code
		want   string
	}{
		"lacks files": {func(r *isoRouter, _ *routerISO) { delete(r.files, "k8s/kubectl"); delete(r.files, "kubelet.service") },
			fault.ISOIncomplete, "/cks-iso/ lacks k8s/kubectl, kubelet.service"},
		"an empty file": {func(r *isoRouter, _ *routerISO) { r.files["k8s/kubectl"] = "" }, fault.ISOIncomplete, "lacks k8s/kubectl (empty)"},
		"cut off":       {func(r *isoRouter, _ *routerISO) { r.odd = short }, fault.ISOTruncated, "k8s/kubelet of the binaries ISO in http://"},
		"stands still": {func(r *isoRouter, source *routerISO) {
			source.patience = 100 * time.Millisecond
			r.odd = func(w http.ResponseWriter, request *http.Request, name string) bool {
				if request.Method != http.MethodGet || name != "k8s/kubelet" {
					return false
				}
				_ = http.NewResponseController(w).Flush()
				<-request.Context().Done()
				return true
			}
		}, fault.ISOStalled, "k8s/kubelet: no byte for 100ms"},
		"another file": {func(r *isoRouter, _ *routerISO) {
			r.files = withSums(r.files)
			r.files["k8s/kubelet"] = program(runtime.GOARCH, "Kubelet")
		}, fault.ISOChecksum, "is not the file that SHA256SUMS lists"},
		"not listed":     {func(r *isoRouter, _ *routerISO) { r.files = withSums(r.files); r.files["new.yaml"] = "x" }, fault.ISOChecksum, `does not list "new.yaml"`},
		"listed, gone":   {func(r *isoRouter, _ *routerISO) { r.files = withSums(r.files); delete(r.files, "provider.yaml") }, fault.ISOChecksum, `not there: "provider.yaml"`},
		"large manifest": {func(r *isoRouter, _ *routerISO) { r.files[SumsFile] = strings.Repeat("x", maxSumsBytes+1) }, fault.ISOChecksum, "larger than 1048576 bytes"},
		"no room": {func(_ *isoRouter, source *routerISO) { source.free = func() (int64, error) { return 1 << 30, nil } },
			fault.DiskSpaceLow, downloads + " has 1024 MiB free; fetching the binaries ISO from http://"},
		"too large": {func(r *isoRouter, _ *routerISO) {
			r.odd = func(w http.ResponseWriter, request *http.Request, name string) bool {
				if request.Method != http.MethodHead {
					return false
				}
				w.Header().Set("Content-Length", fmt.Sprint(int64(maxRouterFile)+1))
				return true
			}
		}, fault.ISOInvalid, "0 to 17179869184 were expected"},
		"another version": {func(r *isoRouter, _ *routerISO) {
			r.files["k8s/kubeadm"] = program(runtime.GOARCH, "kubeadm v1.33.1")
		}, fault.ISOInvalid, "holds Kubernetes v1.33.1; v1.34.4 is asked for"},
		"another machine's": {func(r *isoRouter, _ *routerISO) {
			r.files["k8s/kubeadm"] = program(map[bool]string{true: "arm64", false: "amd64"}[runtime.GOARCH == "amd64"], "x")
		}, fault.ISOInvalid, "it is built for"},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			m := testMachine(t)
			r := newISORouter(t, bundleFiles(t, "v1.34.4"))
			source := r.source(t, m.Host())
			test.change(r, source)
			_, err := findISO(t.Context(), m.Host(), "1.34.4", source, nil, discard)
			if err == nil || fault.As(err).Code != test.code || !strings.Contains(err.Error(), test.want) {
				t.Fatalf("error %v (%s), want %s with %q", err, fault.As(err).Code, test.code, test.want)
			}
			// The next run has the right ISO, with other files of the same size and time.
			r.set(func() { r.files, r.odd = withSums(bundleFiles(t, "v1.34.4")), nil })
			bundle, err := r.find(t, m, "1.34.4")
			if err != nil {
				t.Fatal(err)
			}
			if _, err := Install(t.Context(), m.Host(), bundle); err != nil {
				t.Error(err)
			}
		})
	}
}

// A kill or a reboot at any moment, and a router that restarts: what is there is kept.
func TestRouterISOResumes(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	r := newISORouter(t, bundleFiles(t, "v1.34.4"))
	ctx, kill := context.WithCancel(t.Context())
	kubelet, network := r.files["k8s/kubelet"], r.files["network.yaml"]
	r.odd = func(w http.ResponseWriter, request *http.Request, name string) bool {
		if request.Method == http.MethodHead || name != "k8s/kubelet" {
			return false
		}
		w.Header().Set("Content-Length", fmt.Sprint(len(kubelet)))
		fmt.Fprint(w, kubelet[:10])
		_ = http.NewResponseController(w).Flush()
		for !bytes.Equal(first(filepath.Glob(m.Path(downloads+"/k8s/kubelet.*.part"))), []byte(kubelet[:10])) {
			runtime.Gosched()
		}
		kill()
		<-request.Context().Done()
		return true
	}
	if _, err := findISO(ctx, m.Host(), "", r.source(t, m.Host()), nil, discard); err == nil || fault.As(err).Code != fault.ISOMissing {
		t.Fatalf("error %v, want %s", err, fault.ISOMissing)
	}
	before := r.gets()
	m.Write(downloads+"/docker/old.tar", "of another ISO")
	dropped := false
	r.set(func() {
		r.odd = func(w http.ResponseWriter, request *http.Request, name string) bool {
			if request.Method == http.MethodHead || name != "network.yaml" || dropped {
				return false
			}
			dropped = true
			w.Header().Set("Content-Length", fmt.Sprint(len(network)))
			fmt.Fprint(w, network[:4])
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		}
	})
	if _, err := r.find(t, m, ""); err != nil {
		t.Fatal(err)
	}
	after := r.gets()
	want := []string{"k8s/kubelet bytes=10-", "kubelet.service", "manifest.yaml", "network.yaml", "network.yaml bytes=4-", "provider.yaml", "snapshot-crds.yaml"}
	if !slices.Equal(after, want) {
		t.Errorf("after %q the second run asked for %q, want %q", before, after, want)
	}
	for name, text := range r.files {
		if got := m.Read(downloads + "/" + name); got != text {
			t.Errorf("%s = %q, want %q", name, got, text)
		}
	}
	if got := fetched(t, m, downloads); len(got) != len(r.files) {
		t.Errorf("kept %q", got)
	}

	// Another ISO in its place: nothing of the old one is gone on with.
	r.set(func() { r.built, r.odd = built.Add(time.Second), nil })
	bundle, err := r.find(t, m, "")
	if err != nil {
		t.Fatal(err)
	}
	if got := r.gets(); len(got) != len(r.files) {
		t.Errorf("of another ISO only %q were fetched", got)
	}

	// What cannot be used is not kept.
	m.Write(downloads+"/k8s/kubelet", "damaged")
	if _, err := Install(t.Context(), m.Host(), bundle); err == nil || m.Host().Exists(downloads) {
		t.Errorf("Install = %v; %q is left", err, fetched(t, m, downloads))
	}
	if _, err = r.find(t, m, ""); err != nil || m.Host().Exists(suspect) || m.Read(downloads+"/k8s/kubelet") != kubelet {
		t.Errorf("the next run: %v", err)
	}
}

// first reads the first of some files.
func first(names []string, err error) []byte {
	if err != nil || len(names) == 0 {
		return nil
	}
	text, _ := os.ReadFile(names[0]) // or it is not there yet
	return text
}

// A router that sends to elsewhere is not followed.
func TestRouterISORedirect(t *testing.T) {
	t.Parallel()
	elsewhere := newISORouter(t, bundleFiles(t, "v1.34.4"))
	m := testMachine(t)
	r := newISORouter(t, nil)
	r.odd = func(w http.ResponseWriter, request *http.Request, _ string) bool {
		http.Redirect(w, request, elsewhere.URL+request.URL.Path, http.StatusFound)
		return true
	}
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	_, err := findISO(ctx, m.Host(), "", r.source(t, m.Host()), nil, func(format string, args ...any) {
		if strings.Contains(fmt.Sprintf(format, args...), "virtual router") {
			cancel()
		}
	})
	if err == nil || !strings.Contains(err.Error(), "redirected to elsewhere") || len(elsewhere.asked) > 0 {
		t.Errorf("error %v, asked %q", err, elsewhere.asked)
	}
}

func TestNewRouterISO(t *testing.T) {
	t.Parallel()
	for router, want := range map[string]string{
		"10.1.1.1": "http://10.1.1.1/cks-iso/", "10.1.1.1:8080": "http://10.1.1.1:8080/cks-iso/", "fd00::1": "http://[fd00::1]/cks-iso/", "[fd00::1]": "http://[fd00::1]/cks-iso/",
		"r-4-VM": "http://r-4-VM/cks-iso/", "": "", "a/b": "", "bob:pw@10.1.1.1": "", "a?b": "", "a b": "", "10.1.1.1#": "",
	} {
		source, err := newRouterISO(nil, router)
		if got := ""; err == nil {
			if got = source.base.String(); got != want {
				t.Errorf("%q: %q, want %q", router, got, want)
			}
		} else if want != "" || fault.As(err).Code != fault.UserdataInvalid {
			t.Errorf("%q: %v, want %q", router, err, want)
		}
	}
}

func TestDescribeDownload(t *testing.T) {
	t.Parallel()
	for want, got := range map[string]string{
		"0 of 694 MB":                         describeDownload(0, 694e6, 0, time.Minute),
		"320 of 694 MB, 12.0 MB/s, 31 s left": describeDownload(320e6, 694e6, 120e6, 10*time.Second),
		"694 of 694 MB, 35.0 MB/s":            describeDownload(694e6, 694e6, 350e6, 10*time.Second),
	} {
		if got != want {
			t.Errorf("%q, want %q", got, want)
		}
	}
}
