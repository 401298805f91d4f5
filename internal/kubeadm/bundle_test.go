// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// program is the start of an ELF file for arch, with text behind it.
func program(arch, text string) string {
	machine := map[string]uint16{"amd64": 62, "arm64": 183}[arch]
	head := make([]byte, 64)
	copy(head, "\x7fELF\x02\x01\x01")
	binary.LittleEndian.PutUint16(head[18:], machine)
	return string(head) + text
}

// bundleFiles is a whole binaries ISO of a version.
func bundleFiles(t testing.TB, version string) map[string]string {
	return map[string]string{
		"k8s/kubeadm": program(runtime.GOARCH, "kubeadm "+version),
		"k8s/kubelet": program(runtime.GOARCH, "kubelet"),
		"k8s/kubectl": program(runtime.GOARCH, "kubectl"),
		"cni/cni-plugins-" + runtime.GOARCH + ".tgz":           tarGz(t, map[string]string{"./bridge": "bridge", "./LICENSE": "free"}),
		"cri-tools/crictl-linux-" + runtime.GOARCH + ".tar.gz": tarGz(t, map[string]string{"crictl": "crictl"}),
		"docker/pause:3.10.tar":                                "pause",
		"kubelet.service":                                      "[Service]\nExecStart=/usr/bin/kubelet\n",
		"10-kubeadm.conf":                                      "[Service]\nExecStart=\nExecStart=/usr/bin/kubelet $KUBELET_EXTRA_ARGS\n",
		"network.yaml":                                         "kind: DaemonSet\n",
		"autoscaler.yaml":                                      "kind: Deployment\n",
		"provider.yaml":                                        "kind: Service\n",
		"snapshot-crds.yaml":                                   "kind: CRD\n",
		"manifest.yaml":                                        "kind: CSI\n",
	}
}

// testMachine can run the ISO's kubeadm.
func testMachine(t testing.TB) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: "kubelet.service"})
	m.AddUnit(host.Unit{Name: "containerd.service", ActiveState: "active"})
	if err := os.MkdirAll(m.Path("/sys/class/block"), 0o755); err != nil {
		t.Fatal(err)
	}
	m.Program(Kubeadm, func(command host.Command) (string, error) {
		if strings.Join(command.Args, " ") != "version -o short" {
			return "", fmt.Errorf("unexpected arguments %q", command.Args)
		}
		_, version, _ := strings.Cut(m.Read(Kubeadm), "kubeadm ")
		return version + "\n", nil
	})
	return m
}

// addDevice makes a block device; files nil means that no medium is in it.
func addDevice(t testing.TB, m *hosttest.Machine, name, label string, files map[string]string) {
	t.Helper()
	m.Write("/sys/class/block/"+name+"/size", "2048\n")
	if files == nil {
		return
	}
	folder := filepath.Join(t.TempDir(), name)
	for file, text := range files {
		path := filepath.Join(folder, file)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	m.Write("/dev/"+name, isoImage(label))
	m.AddMedium("/dev/"+name, folder)
}

func isoImage(label string) string {
	image := make([]byte, descriptorOffset+descriptorBytes)
	descriptor := image[descriptorOffset:]
	copy(descriptor, "\x01CD001\x01")
	copy(descriptor[labelOffset:], label+strings.Repeat(" ", labelBytes-len(label)))
	return string(image)
}

func discard(string, ...any) {}

// C12, C15: the ISO is known by its content, under any label, beside others.
func TestFindISOByContent(t *testing.T) {
	t.Parallel()
	for _, label := range []string{"CDROM", "ISOIMAGE", ""} {
		t.Run("label "+label, func(t *testing.T) {
			t.Parallel()
			m := testMachine(t)
			addDevice(t, m, "sr0", "config-2", map[string]string{"openstack/latest/user_data": "x"})
			addDevice(t, m, "sr1", label, bundleFiles(t, "v1.34.4"))
			addDevice(t, m, "sr2", "systemvm", map[string]string{"cloud-scripts.tgz": "x"})
			m.Write("/sys/class/block/vda/size", "1000\n")
			m.Write("/dev/vda", "too small to be one")
			bundle, err := findISO(t.Context(), m.Host(), "1.34.4", nil, nil, discard)
			if err != nil {
				t.Fatal(err)
			}
			if bundle.Device != "/dev/sr1" || bundle.Label != label || bundle.Version != "v1.34.4" || len(bundle.Images) != 1 {
				t.Errorf("bundle = %+v, want that of /dev/sr1", bundle)
			}
			if got := m.String(); !strings.Contains(got, "mount /dev/sr1 on "+isoFolder) || strings.Count(got, "mount ") != 1 {
				t.Errorf("machine is\n%s, want only the ISO mounted", got)
			}
			if err := bundle.Release(m.Host(), false); err != nil || strings.Contains(m.String(), "mount ") {
				t.Errorf("after Release (%v) the machine is\n%s", err, m)
			}
		})
	}
}

// C12: a binaries ISO that lacks files is refused with all of them named.
func TestFindISONamesAllMissingFiles(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	files := bundleFiles(t, "v1.34.4")
	delete(files, "k8s/kubectl")
	delete(files, "docker/pause:3.10.tar")
	files["k8s/kubelet"] = ""
	addDevice(t, m, "sr0", "CDROM", files)
	_, err := findISO(t.Context(), m.Host(), "", nil, nil, discard)
	if got := fault.As(err); err == nil || got.Code != fault.ISOIncomplete {
		t.Fatalf("error = %v, want %s", err, fault.ISOIncomplete)
	}
	for _, want := range []string{"k8s/kubectl", "docker/*.tar", "k8s/kubelet (empty)", "/dev/sr0", "CDROM"} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q does not name %s", err, want)
		}
	}
	if strings.Contains(m.String(), "mount ") {
		t.Errorf("the refused ISO is still mounted:\n%s", m)
	}
}

// C12: of two ISOs the one of the version asked for is taken; none fits, or none
// is asked for, is an error that names both.
func TestFindISOOfSeveral(t *testing.T) {
	t.Parallel()
	for _, test := range []struct{ want, device string }{{"v1.34.4", "/dev/sr1"}, {"1.33.1", "/dev/sr0"}, {"1.32.0", ""}, {"", ""}} {
		t.Run("want "+test.want, func(t *testing.T) {
			t.Parallel()
			m := testMachine(t)
			addDevice(t, m, "sr0", "CDROM", bundleFiles(t, "v1.33.1"))
			addDevice(t, m, "sr1", "CDROM", bundleFiles(t, "v1.34.4"))
			bundle, err := findISO(t.Context(), m.Host(), test.want, nil, nil, discard)
			if test.device != "" {
				if err != nil || bundle.Device != test.device {
					t.Fatalf("bundle = %+v, %v; want %s", bundle, err, test.device)
				}
				return
			}
			if err == nil || fault.As(err).Code != fault.ISOInvalid {
				t.Fatalf("error = %v, want %s", err, fault.ISOInvalid)
			}
			for _, want := range []string{"v1.33.1", "v1.34.4", "/dev/sr0", "/dev/sr1"} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %s", err, want)
				}
			}
		})
	}
}

// C13: media come late, by an event; no medium and a foreign medium read
// differently.
func TestFindISOWaitsForEvents(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	m.Write("/sys/module/block/parameters/events_dfl_poll_msecs", "0\n")
	addDevice(t, m, "sr0", "config-2", map[string]string{"openstack/x": "x"})
	addDevice(t, m, "sr1", "", nil)
	changed := make(chan struct{}, 1)
	var reports []string
	bundle, err := findISO(t.Context(), m.Host(), "", nil, changed, func(format string, args ...any) {
		reports = append(reports, fmt.Sprintf(format, args...))
		if len(reports) == 2 {
			addDevice(t, m, "sr1", "CDROM", bundleFiles(t, "v1.34.4"))
		}
		changed <- struct{}{}
	})
	if err != nil || bundle.Device != "/dev/sr1" {
		t.Fatalf("bundle = %+v, %v; want /dev/sr1", bundle, err)
	}
	want := "waiting for the binaries ISO: medium present in sr0, not ours (label config-2), no medium in sr1"
	if len(reports) != 2 || reports[0] != want {
		t.Errorf("reports = %q, want two of %q", reports, want)
	}
	if got := m.Read("/sys/module/block/parameters/events_dfl_poll_msecs"); got != "2000" {
		t.Errorf("media are looked for every %q ms, want 2000", got)
	}
}

func TestFindISOGivesUpSayingWhatItSaw(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	addDevice(t, m, "sr0", "", nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	_, err := findISO(ctx, m.Host(), "", nil, nil, discard)
	if err == nil || fault.As(err).Code != fault.ISOMissing || !strings.Contains(err.Error(), "no medium in sr0") {
		t.Errorf("error = %v, want %s with what was seen", err, fault.ISOMissing)
	}
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error %v hides that the time was up", err)
	}
}

// A run that was killed leaves its ISO mounted.
func TestFindISOAgainWithTheISOMounted(t *testing.T) {
	t.Parallel()
	m := testMachine(t)
	addDevice(t, m, "sr0", "CDROM", bundleFiles(t, "v1.34.4"))
	for range 2 {
		bundle, err := findISO(t.Context(), m.Host(), "", nil, nil, discard)
		if err != nil || bundle.Device != "/dev/sr0" {
			t.Fatalf("bundle = %+v, %v; want /dev/sr0", bundle, err)
		}
	}
}

func TestJudge(t *testing.T) {
	t.Parallel()
	if kind, _, _, _ := judge(fstest.MapFS{"k8s": &fstest.MapFile{Data: []byte("a file")}}); kind != mediumOther {
		t.Errorf("an ISO with a file k8s is of kind %d, want other", kind)
	}
	kind, missing, _, _ := judge(fstest.MapFS{"docker/a.tar": &fstest.MapFile{Data: []byte("x")}})
	if kind != mediumIncomplete || len(missing) != len(neededFiles)-1 {
		t.Errorf("an ISO with images only is of kind %d and lacks %q, want all but those", kind, missing)
	}
}

func FuzzParseDescriptor(f *testing.F) {
	f.Add([]byte(isoImage("CDROM")[descriptorOffset:]))
	f.Add([]byte("\x01CD001"))
	f.Fuzz(func(t *testing.T, data []byte) {
		label, ok := parseDescriptor(data)
		if !ok && label != "" {
			t.Errorf("label %q of no ISO", label)
		}
		if bytes.ContainsAny([]byte(label), "\n\x1b\x00") {
			t.Errorf("label %q could upset a terminal", label)
		}
	})
}
