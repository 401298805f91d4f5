// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/fstest"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// deadFS is storage that does not answer once dead is closed.
type deadFS struct {
	fs.FS
	dead    <-chan struct{} // closed: reads block
	release <-chan struct{} // until this is closed
}

func (d deadFS) wait() {
	select {
	case <-d.dead:
		<-d.release
	default:
	}
}

func (d deadFS) Open(name string) (fs.File, error) {
	d.wait()
	file, err := d.FS.Open(name)
	return deadFile{file, d}, err
}

func (d deadFS) ReadDir(name string) ([]fs.DirEntry, error) {
	d.wait()
	return fs.ReadDir(d.FS, name)
}

type deadFile struct {
	fs.File
	of deadFS
}

func (f deadFile) Read(p []byte) (int, error) {
	f.of.wait()
	return f.File.Read(p)
}

// C14: storage that stops answering is an error that names the file and the medium,
// and so is the end of the step's time; what still reads cannot harm who has gone.
func TestStalledReadsEnd(t *testing.T) {
	t.Parallel()
	for title, test := range map[string]struct {
		patience time.Duration // of the step
		code     fault.Code
		want     string
	}{
		"stalled":   {time.Hour, fault.ISOStalled, "cannot read k8s/kubeadm of the binaries ISO in /dev/sr0: no answer for 2m0s"},
		"timed out": {time.Minute, fault.Internal, "cannot read k8s/kubeadm of the binaries ISO in /dev/sr0: context deadline exceeded"},
	} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), test.patience)
			defer cancel()
			dead, release := make(chan struct{}), make(chan struct{})
			files := &isoFiles{ctx: ctx, where: "the binaries ISO in /dev/sr0", limit: readLimit,
				files: deadFS{fstest.MapFS{"k8s/kubeadm": {Data: []byte("0123456789")}}, dead, release}}
			file, err := files.Open("k8s/kubeadm")
			if err != nil {
				t.Fatal(err)
			}
			defer file.Close()
			buffer := make([]byte, 5)
			if n, err := io.ReadFull(file, buffer); n != 5 || err != nil {
				t.Fatalf("the first read: %d, %v", n, err)
			}
			close(dead)
			n, err := file.Read(buffer)
			if n != 0 || err == nil || err.Error() != test.want || fault.As(err).Code != test.code {
				t.Errorf("%s: %d, %v; want %s %q", title, n, err, test.code, test.want)
			}
			if _, err := files.Open("k8s/kubeadm"); err == nil {
				t.Errorf("%s: Open did not fail", title)
			}
			close(release)
			synctest.Wait()
			if string(buffer) != "01234" {
				t.Errorf("%s: a read that was left behind wrote %q", title, buffer)
			}
		})
	}
}

// stalledKernel waits for storage when it mounts.
type stalledKernel struct {
	host.Kernel
	release <-chan struct{}
}

func (k stalledKernel) MountReadOnly(device, target, fstype string) error {
	<-k.release
	return k.Kernel.MountReadOnly(device, target, fstype)
}

// C14: a mount that hangs ends the search: it may yet come, over what is used then.
func TestFindISOStalledMount(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		m := testMachine(t)
		addDevice(t, m, "sr0", "CDROM", bundleFiles(t, "v1.34.4"))
		h, release := m.Host(), make(chan struct{})
		h.Kernel = stalledKernel{h.Kernel, release}
		_, err := findISO(t.Context(), h, "", nil, nil, discard)
		if want := "cannot look into /dev/sr0: no answer for 2m0s"; err == nil || fault.As(err).Code != fault.ISOStalled || err.Error() != want {
			t.Errorf("error %v, want %q", err, want)
		}
		close(release)
		synctest.Wait()
	})
}

// C14: the same for a file in use: a pipe nobody writes to stands for the storage.
func TestInstallFromStalledMedium(t *testing.T) {
	t.Parallel()
	m, bundle := mounted(t, bundleFiles(t, "v1.34.4"))
	stall := m.Path(isoFolder + "/k8s/kubelet")
	if err := errors.Join(os.Remove(stall), unix.Mkfifo(stall, 0o644)); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // lets go of the reader
		if pipe, err := os.OpenFile(stall, os.O_RDWR, 0); err == nil {
			pipe.Close()
		}
	})
	bundle.readLimit = 200 * time.Millisecond
	_, err := Install(t.Context(), m.Host(), bundle)
	if err == nil || fault.As(err).Code != fault.ISOStalled || !strings.Contains(err.Error(), "cannot read k8s/kubelet of the binaries ISO in /dev/sr0: no answer for 200ms") {
		t.Errorf("error %v, want %s", err, fault.ISOStalled)
	}
}

// errorFS fails to read some files.
type errorFS struct {
	fs.FS
	name string
}

func (e errorFS) Open(name string) (fs.File, error) {
	if name == e.name {
		return nil, &fs.PathError{Op: "open", Path: "/run/nodeagent/iso/" + name, Err: unix.EIO}
	}
	return e.FS.Open(name)
}

// A folder that cannot be read is no ISO that lacks files.
func TestJudgeUnreadable(t *testing.T) {
	t.Parallel()
	for _, name := range []string{".", "docker", "k8s/kubelet"} {
		whole := fstest.MapFS{}
		for file, text := range bundleFiles(t, "v1.34.4") {
			whole[file] = &fstest.MapFile{Data: []byte(text)}
		}
		files := &isoFiles{ctx: t.Context(), files: errorFS{whole, name}, where: "the ISO in /dev/sr0", limit: readLimit}
		_, _, _, err := judge(files)
		if want := "cannot read " + name + " of the ISO in /dev/sr0: input/output error"; err == nil || err.Error() != want || fault.As(err).Code != fault.ISOUnreadable {
			t.Errorf("error %v, want %q", err, want)
		}
	}
}

// truncated is an ISO's start that says there is more of it than there is.
func truncated(label string) string {
	image := []byte(isoImage(label))
	copy(image[descriptorOffset+80:], []byte{0, 1, 0, 0}) // sectors
	copy(image[descriptorOffset+128:], []byte{0, 8})      // bytes of one
	return string(image)
}

// A download that was cut off is said to be one, with what it lacks.
func TestFindISOTruncated(t *testing.T) {
	t.Parallel()
	for want, lacks := range map[string]string{
		"the binaries ISO in /dev/sr0 (label CDROM) is cut off: 34816 of 524288 bytes are there":                       "",
		"the binaries ISO in /dev/sr0 (label CDROM) is cut off: 34816 of 524288 bytes are there; it lacks k8s/kubectl": "k8s/kubectl",
	} {
		m := testMachine(t)
		files := bundleFiles(t, "v1.34.4")
		delete(files, lacks)
		addDevice(t, m, "sr0", "CDROM", files)
		m.Write("/dev/sr0", truncated("CDROM"))
		_, err := findISO(t.Context(), m.Host(), "", nil, nil, discard)
		if err == nil || fault.As(err).Code != fault.ISOTruncated || err.Error() != want {
			t.Errorf("error %v, want %s %q", err, fault.ISOTruncated, want)
		}
	}
}

// A foreign medium that is cut off stops nobody.
func TestFindISOBesideTruncatedMedium(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	addDevice(t, m, "sr0", "config-2", map[string]string{"openstack/x": "x"})
	m.Write("/dev/sr0", truncated("config-2"))
	addDevice(t, m, "sr1", "CDROM", bundleFiles(t, "v1.34.4"))
	if bundle, err := findISO(t.Context(), m.Host(), "", nil, nil, discard); err != nil || bundle.Device != "/dev/sr1" {
		t.Errorf("bundle %+v, %v", bundle, err)
	}
}

// A medium that is exchanged while it is read is found out: when a read fails and,
// as then nothing need have failed, at the end.
func TestInstallFromChangedMedium(t *testing.T) {
	t.Parallel()
	for title, test := range map[string]struct {
		files map[string]string // of the medium that comes; nil for the same
		start string
		want  string
	}{
		"another ISO":     {bundleFiles(t, "v1.33.1"), isoImage("OTHER"), "another ISO (label OTHER) took the binaries ISO's place in /dev/sr0"},
		"a config drive":  {map[string]string{"x": "x"}, isoImage("config-2"), "another ISO (label config-2) took the binaries ISO's place in /dev/sr0"},
		"a disk":          {map[string]string{"x": "x"}, "too small", "a medium that is no ISO took the binaries ISO's place in /dev/sr0"},
		"nothing changed": {nil, isoImage("CDROM"), ""},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			m, bundle := mounted(t, bundleFiles(t, "v1.34.4"))
			if test.files != nil {
				folder := t.TempDir()
				for name, text := range test.files {
					writeFile(t, filepath.Join(folder, name), text)
				}
				if err := errors.Join(os.Remove(m.Path(isoFolder)), os.Symlink(folder, m.Path(isoFolder))); err != nil {
					t.Fatal(err)
				}
			}
			m.Write("/dev/sr0", test.start)
			_, err := Install(t.Context(), m.Host(), bundle)
			if test.want == "" {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || fault.As(err).Code != fault.ISOChanged || !strings.Contains(err.Error(), test.want) {
				t.Errorf("error %v, want %s with %q", err, fault.ISOChanged, test.want)
			}
		})
	}
}

// Where there is a manifest nothing takes effect that is not what it lists, and all
// wrong files are named at once.
func TestInstallVerifies(t *testing.T) {
	t.Parallel()
	m, bundle := mounted(t, withSums(bundleFiles(t, "v1.34.4")))
	if got := bundle.Verification(); got != "checked against SHA256SUMS" {
		t.Errorf("Verification = %q", got)
	}
	damaged := map[string]string{
		"k8s/kubelet": program(runtime.GOARCH, "kubelet, damaged"),
		"k8s/kubectl": program(runtime.GOARCH, "Kubectl"), // of the same length
		"cni/cni-plugins-" + runtime.GOARCH + ".tgz":           tarGz(t, map[string]string{"bridge": "damaged", "portmap": "new"}),
		"cri-tools/crictl-linux-" + runtime.GOARCH + ".tar.gz": tarGz(t, map[string]string{"crictl": "damaged"}),
		"network.yaml":    "kind: Damaged\n",
		"kubelet.service": "[Service]\nExecStart=/bin/damaged\n",
	}
	for name, text := range damaged {
		writeFile(t, m.Path(isoFolder+"/"+name), text)
	}
	writeFile(t, m.Path(isoFolder+"/new.yaml"), "kind: New\n")
	_, err := Install(t.Context(), m.Host(), bundle)
	if err == nil || fault.As(err).Code != fault.ISOChecksum {
		t.Fatalf("error %v, want %s", err, fault.ISOChecksum)
	}
	for name := range damaged {
		if want := name + " of the binaries ISO in /dev/sr0 is not the file that SHA256SUMS lists"; !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not say %q", err, want)
		}
	}
	if want := "SHA256SUMS does not list new.yaml of the binaries ISO in /dev/sr0"; !strings.Contains(err.Error(), want) {
		t.Errorf("error %q does not say %q", err, want)
	}
	for _, name := range []string{"/opt/bin/kubelet", "/opt/bin/kubectl", "/opt/bin/crictl", "/opt/cni/bin/bridge", "/opt/cni/bin/portmap",
		Manifests + "/network.yaml", Manifests + "/new.yaml", "/etc/systemd/system/kubelet.service"} {
		if m.Host().Exists(name) {
			t.Errorf("%s was installed", name)
		}
	}
	if left, _ := filepath.Glob(m.Path("/opt/bin/.*")); len(left) > 0 {
		t.Errorf("left behind: %q", left)
	}
}

// With a manifest too, a second run changes nothing; what is installed is compared
// with the manifest, so that the ISO's copy need not be read.
func TestInstallVerifiedTwice(t *testing.T) {
	t.Parallel()
	m, bundle := mounted(t, withSums(bundleFiles(t, "v1.34.4")))
	if changed, err := Install(t.Context(), m.Host(), bundle); err != nil || !changed {
		t.Fatalf("Install = %v, %v", changed, err)
	}
	unread := program(runtime.GOARCH, "KUBELET")
	writeFile(t, m.Path(isoFolder+"/k8s/kubelet"), unread)
	m.Actions()
	if changed, err := Install(t.Context(), m.Host(), bundle); err != nil || changed || len(m.Actions()) > 0 {
		t.Errorf("second Install = %v, %v; want no change", changed, err)
	}
	m.Write("/opt/bin/kubectl", strings.Repeat("x", len(m.Read("/opt/bin/kubectl"))))
	if changed, err := Install(t.Context(), m.Host(), bundle); err != nil || !changed || m.Read("/opt/bin/kubectl") != program(runtime.GOARCH, "kubectl") {
		t.Errorf("Install over another kubectl = %v, %v", changed, err)
	}
}

// A kubeadm that the manifest does not list is not run.
func TestFindISOVerifies(t *testing.T) {
	t.Parallel()
	for title, change := range map[string]func(files map[string]string){
		"k8s/kubeadm of the binaries ISO in /dev/sr0 is not the file that SHA256SUMS lists": func(files map[string]string) {
			files["k8s/kubeadm"] = program(runtime.GOARCH, "kubeadm v1.99.9")
		},
		`SHA256SUMS does not list "docker/new.tar"`:                   func(files map[string]string) { files["docker/new.tar"] = "x" },
		`SHA256SUMS lists files that are not there: "dashboard.yaml"`: func(files map[string]string) { files[SumsFile] += sumLine("dashboard.yaml", "x") },
		`line 1: "/etc/passwd" is no name of another file on the ISO`: func(files map[string]string) { files[SumsFile] = sumLine("/etc/passwd", "x") },
		"SHA256SUMS is larger than 1048576 bytes":                     func(files map[string]string) { files[SumsFile] = strings.Repeat("x", maxSumsBytes+1) },
	} {
		files := withSums(bundleFiles(t, "v1.34.4"))
		change(files)
		m := testMachine(t)
		addDevice(t, m, "sr0", "CDROM", files)
		_, err := findISO(t.Context(), m.Host(), "", nil, nil, discard)
		if err == nil || !strings.Contains(err.Error(), title) || !slices.Contains([]fault.Code{fault.ISOChecksum, fault.ISOInvalid}, fault.As(err).Code) {
			t.Errorf("error %v, want one with %q", err, title)
		}
		if m.Host().Exists(Kubeadm) {
			t.Errorf("%s: kubeadm was installed", title)
		}
	}
}

func TestVerificationWithoutManifest(t *testing.T) {
	t.Parallel()
	if _, bundle := mounted(t, bundleFiles(t, "v1.34.4")); bundle.Verification() != "not verified" {
		t.Errorf("Verification = %q", bundle.Verification())
	}
}
