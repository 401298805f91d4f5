// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"compress/gzip"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
	"nodeagent/test/cloud"
)

const machineID = "4a6f3c1e-0000-4000-8000-00000000c051"

// nodeDrive is the config drive of a machine as CloudStack makes it.
func nodeDrive(name, raw string) cloud.ConfigDrive {
	drive := cloud.ConfigDrive{Metadata: map[string]string{
		"instance-id": machineID, "vm-id": machineID, "local-hostname": name, "public-keys": "ssh-rsa A\nssh-rsa B\n",
		"availability-zone": "zone1", "service-offering": "CKS Node", "public-hostname": "", "AS_NUMBER": "64512",
	}, Password: "geheim77"}
	if raw != "" {
		drive.Userdata = []byte(raw)
	}
	return drive
}

// buildDrive returns an image of a config drive.
func buildDrive(t testing.TB, drive cloud.ConfigDrive) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "drive.iso")
	if err := drive.Build(context.Background(), path); err != nil {
		t.Fatal(err)
	}
	return path
}

// attach puts a device with an image on the machine; without one it is a drive
// without a medium.
func attach(t testing.TB, m *hosttest.Machine, name, image string) {
	t.Helper()
	m.Write("/sys/class/block/"+name+"/size", "2048\n")
	if image != "" {
		m.Write("/dev/"+name, string(contents(t, image)))
	}
}

func seedImage(t testing.TB, raw string) string {
	return isoImage(t, "CIDATA", map[string]string{"user-data": raw, "meta-data": "instance-id: lab-1\n"}, "-J", "-R")
}

func bootArg(t testing.TB, raw string) string {
	t.Helper()
	var packed bytes.Buffer
	w := gzip.NewWriter(&packed)
	if _, err := w.Write([]byte(raw)); err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	return base64.StdEncoding.EncodeToString(packed.Bytes())
}

// nowhere is a server that is not there.
func nowhere() []string { return []string{"http://127.0.0.1:1"} }

// C6: a config drive is found on any block device, beside whatever else is
// attached, and no network is needed then.
func TestFetchFromConfigDrive(t *testing.T) {
	t.Parallel()
	drive := buildDrive(t, nodeDrive("n1", "#cloud-config\n"))
	fat := fatImage(t, "CONFIG-2", 16, map[string]string{"openstack/latest/user_data": "#cloud-config\n",
		"openstack/latest/meta_data.json": `{"uuid": "` + machineID + `", "hostname": "n1", "public_keys": {"b": "ssh-rsa B", "a": "ssh-rsa A\n"}}`})
	binaries := isoImage(t, "CDROM", map[string]string{"k8s/kubeadm": "x", "docker/pause.tar": "x"}, "-J", "-R")
	systemvm := isoImage(t, "systemvm", map[string]string{"cloud-scripts.tgz": "x", "authorized_keys": "x"}, "-J", "-R")
	ext4 := filepath.Join(t.TempDir(), "root")
	if err := os.WriteFile(ext4, make([]byte, 1<<20), 0o644); err != nil {
		t.Fatal(err)
	}
	runTool(t, "mkfs.ext4", "-q", ext4)
	for _, device := range []string{"sr0", "sr1", "vdb", "xvdd", "vdb1", "nvme0n1p3", "cciss!c0d1"} {
		for label, image := range map[string]string{"config-2": drive, "CONFIG-2": fat} {
			t.Run(device+" "+label, func(t *testing.T) {
				t.Parallel()
				m := bare(t)
				for i, other := range []string{binaries, systemvm, "", ext4} {
					name := []string{"sr0", "sr1", "sr2", "vda1"}[i]
					if name != device {
						attach(t, m, name, other)
					}
				}
				attach(t, m, "ram0", drive) // never looked at
				attach(t, m, device, "")
				m.Write("/dev/"+strings.ReplaceAll(device, "!", "/"), string(contents(t, image)))
				got, err := Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: nowhere()}, quiet)
				if err != nil {
					t.Fatal(err)
				}
				if want := "config drive /dev/" + strings.ReplaceAll(device, "!", "/") + " (label " + label + ")"; got.Source != want {
					t.Errorf("source %q, want %q", got.Source, want)
				}
				if string(got.Raw) != "#cloud-config\n" || got.Meta["instance-id"] != machineID || got.Meta["local-hostname"] != "n1" ||
					got.Meta["public-keys"] != "ssh-rsa A\nssh-rsa B" {
					t.Errorf("got %q with %v, want the drive's", got.Raw, got.Meta)
				}
				if text := fmt.Sprint(got.Meta); strings.Contains(text, "geheim77") {
					t.Errorf("the password is in the metadata: %s", text)
				}
				if done := m.Actions(); len(done) > 0 {
					t.Errorf("reading changed the machine: %q", done)
				}
			})
		}
	}
}

// The real table of a real disk: the drive is in its partition and nowhere else.
func TestFetchFromPartition(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "disk")
	if err := nodeDrive("n1", "#cloud-config\n").BuildPartition(t.Context(), path); err != nil {
		t.Fatal(err)
	}
	m := bare(t)
	attach(t, m, "vdb", path)
	attach(t, m, "vdb1", "")
	m.Write("/dev/vdb1", string(contents(t, path)[1<<20:]))
	got, err := Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: nowhere()}, quiet)
	if err != nil || got.Source != "config drive /dev/vdb1 (label config-2)" {
		t.Errorf("got source %q, %v; want /dev/vdb1", got.Source, err)
	}
}

// A config drive comes before the boot arg, that before a NoCloud drive, that
// before a seed folder, and all before the router, which answers here at once.
func TestFetchPriority(t *testing.T) {
	t.Parallel()
	server := router(t, "from the router")
	steps := []struct {
		source string
		take   func(*hosttest.Machine, *FetchOptions)
	}{
		{server.URL + " (given address)", func(*hosttest.Machine, *FetchOptions) {}},
		{"NoCloud seed /var/lib/cloud/seed/nocloud-net", func(m *hosttest.Machine, _ *FetchOptions) {
			m.Write(labSeedFolder+"/user-data", "from the seed")
			m.Write(labSeedFolder+"/meta-data", "")
		}},
		{"NoCloud drive /dev/vdb (label CIDATA)", func(m *hosttest.Machine, _ *FetchOptions) { attach(t, m, "vdb", seedImage(t, "from the drive")) }},
		{"boot arg userdata=", func(_ *hosttest.Machine, o *FetchOptions) { o.BootArg = bootArg(t, "from the boot arg") }},
		{"config drive /dev/vdc (label config-2)", func(m *hosttest.Machine, _ *FetchOptions) {
			attach(t, m, "vdc", buildDrive(t, nodeDrive("n1", "from the config drive")))
		}},
	}
	m, options := bare(t), FetchOptions{Name: "n1", BaseURLs: []string{server.URL}}
	for _, step := range steps {
		step.take(m, &options)
		got, err := Fetch(t.Context(), m.Host(), options, quiet)
		if err != nil || got.Source != step.source || got.Meta["instance-id"] == "" {
			t.Errorf("got %q with %v, %v; want %q", got.Source, got.Meta, err, step.source)
		}
	}
}

// transport plays a network with a router that answers at once.
type transport map[string]string

func (t transport) RoundTrip(r *http.Request) (*http.Response, error) {
	body, ok := t[r.URL.Path]
	recorder := httptest.NewRecorder()
	if !ok {
		recorder.Code = http.StatusNotFound
	}
	recorder.Body.WriteString(body)
	return recorder.Result(), nil
}

// The router's answer waits until the drives have been looked at.
func TestFetchWaitsForTheFirstLook(t *testing.T) {
	t.Parallel()
	m := bare(t)
	attach(t, m, "sr1", buildDrive(t, nodeDrive("n1", "from the drive")))
	synctest.Test(t, func(t *testing.T) {
		local := newFinder(m.Host(), FetchOptions{})
		local.read = func(path, device string) medium {
			synctest.Wait() // until the router's answer is there and waits
			return readMedium(path, device)
		}
		network := transport{"/latest/user-data": "from the router", "/latest/meta-data/instance-id": "u-1"}
		r := &race{client: &http.Client{Transport: network}, report: quiet}
		got, err := r.run(t.Context(), local, FetchOptions{BaseURLs: []string{"http://router"}}.candidates())
		if err != nil || string(got.Raw) != "from the drive" {
			t.Errorf("got %q, %v; want the userdata of the slower drive", got.Raw, err)
		}
	})
}

// A drive on a dead storage holds the router's answer up for the stall limit only,
// and is not read once more while it hangs (C14).
func TestFetchWhileADriveHangs(t *testing.T) {
	t.Parallel()
	m := bare(t)
	attach(t, m, "sr1", "")
	var looks atomic.Int32
	hang := make(chan struct{})
	defer close(hang)
	local := newFinder(m.Host(), FetchOptions{})
	local.stall, local.reread = 5*time.Millisecond, time.Millisecond
	local.read = func(string, string) medium {
		looks.Add(1)
		<-hang
		return medium{}
	}
	got, err := fetch(t.Context(), local, FetchOptions{BaseURLs: []string{router(t, "from the router").URL}}, nil, quiet)
	if err != nil || string(got.Raw) != "from the router" {
		t.Errorf("got %q, %v; want the router's userdata", got.Raw, err)
	}
	_, err = fetch(t.Context(), local, FetchOptions{BaseURLs: nowhere(), Timeout: time.Second}, nil, quiet)
	if err == nil || !strings.Contains(err.Error(), "/dev/sr1: cannot be read: no answer for 5ms") {
		t.Errorf("error %v, want the drive that does not answer in it", err)
	}
	if looks.Load() != 1 {
		t.Errorf("the drive was read %d times side by side, want once", looks.Load())
	}
}

// C13: a config drive that is attached after the first look is seen by the
// kernel's event.
func TestFetchLateConfigDrive(t *testing.T) {
	t.Parallel()
	m := bare(t)
	attach(t, m, "sr0", "")
	image := buildDrive(t, nodeDrive("n1", "#cloud-config\n"))
	changed := make(chan struct{}, 1)
	attached := false
	options := FetchOptions{BaseURLs: nowhere()}
	got, err := fetch(t.Context(), newFinder(m.Host(), options), options, changed, func(format string, args ...any) {
		if !attached && strings.Contains(fmt.Sprintf(format, args...), "no userdata yet: /dev/sr0: no medium") {
			attach(t, m, "sr0", image)
			attached = true
			changed <- struct{}{}
		}
	})
	if err != nil || got.Source != "config drive /dev/sr0 (label config-2)" {
		t.Fatalf("got %q, %v; want the late drive", got.Source, err)
	}
}

// A medium that cannot be read is read again without any event; the message tells
// it from one that is not there.
func TestFetchBrokenMedium(t *testing.T) {
	t.Parallel()
	m := bare(t)
	attach(t, m, "sr0", buildDrive(t, nodeDrive("n1", "#cloud-config\n")))
	options := FetchOptions{BaseURLs: nowhere()}
	local := newFinder(m.Host(), options)
	local.reread = time.Millisecond
	var looks atomic.Int32
	local.read = func(path, device string) medium {
		if looks.Add(1) < 3 {
			return medium{device: device, kind: mediumUnreadable, err: unix.EIO}
		}
		return readMedium(path, device)
	}
	var reports []string
	got, err := fetch(t.Context(), local, options, nil, func(format string, args ...any) {
		reports = append(reports, fmt.Sprintf(format, args...))
	})
	if err != nil || got.Raw == nil || looks.Load() != 3 {
		t.Errorf("got %v, %v after %d looks; want success with the third", got, err, looks.Load())
	}
	if !strings.Contains(strings.Join(reports, "\n"), "/dev/sr0: cannot be read: input/output error") {
		t.Errorf("reports %q, want the error of /dev/sr0", reports)
	}

	// One that is cut off in its middle has its label still.
	image := contents(t, buildDrive(t, nodeDrive("n1", strings.Repeat("#cloud-config\n", 9000))))
	m = bare(t)
	attach(t, m, "sr0", "")
	m.Write("/dev/sr0", string(image[:30*2048]))
	_, err = Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: nowhere(), Timeout: time.Second}, quiet)
	if err == nil || !strings.Contains(err.Error(), "config drive /dev/sr0 (label config-2): cannot be read: the medium ends too early") {
		t.Errorf("error %v, want that the config drive cannot be read", err)
	}
}

// A drive without userdata leaves the word to the router; nobody having any, all
// are named.
func TestFetchConfigDriveWithoutUserdata(t *testing.T) {
	t.Parallel()
	for name, drive := range map[string]cloud.ConfigDrive{
		"no userdata": nodeDrive("n1", ""), "blank userdata": nodeDrive("n1", " \n"), "network data only": {},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			m := bare(t)
			attach(t, m, "sr1", buildDrive(t, drive))
			got, err := Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: []string{router(t, "from the router").URL}}, quiet)
			if err != nil || string(got.Raw) != "from the router" {
				t.Errorf("got %q, %v; want the router's", got.Raw, err)
			}
			_, err = Fetch(t.Context(), m.Host(), FetchOptions{BaseURLs: nowhere(), Timeout: time.Second}, quiet)
			if err == nil || fault.As(err).Code != fault.UserdataUnreachable ||
				!strings.Contains(err.Error(), "config drive /dev/sr1 (label config-2): it has no userdata; given address http://127.0.0.1:1: dial") {
				t.Errorf("error %v, want the drive without userdata and the router named", err)
			}
		})
	}
}

func TestChooseConfigDrive(t *testing.T) {
	t.Parallel()
	drive := func(device, label, hostname, id, raw string) medium {
		return medium{device: device, label: label, kind: mediumConfigDrive,
			held: Userdata{Raw: []byte(raw), Meta: map[string]string{"local-hostname": hostname, "instance-id": id}}}
	}
	broken := drive("/dev/sr9", "config-2", "n1", "id-1", "x")
	broken.err = errors.New("broken")
	for _, test := range []struct {
		name    string
		media   []medium
		options FetchOptions
		want    string // the device; "": none; "error"
	}{
		{"none", nil, FetchOptions{Name: "n1"}, ""},
		{"one, of whatever name", []medium{drive("/dev/sr0", "config-2", "other", "id-2", "x")}, FetchOptions{Name: "n1"}, "/dev/sr0"},
		{"twice the same", []medium{drive("/dev/sr0", "config-2", "n1", "id-1", "x"), drive("/dev/sr1", "config-2", "n1", "id-1", "x")}, FetchOptions{Name: "n1"}, "/dev/sr0"},
		{"by host name", []medium{drive("/dev/sr0", "config-2", "n2", "id-2", "y"), drive("/dev/sr1", "config-2", "N1", "id-1", "x")}, FetchOptions{Name: "n1"}, "/dev/sr1"},
		{"by instance", []medium{drive("/dev/sr0", "config-2", "n1", "id-1", "x"), drive("/dev/sr1", "config-2", "n1", "id-2", "y")}, FetchOptions{Name: "n1", Instance: "id-2"}, "/dev/sr1"},
		{"host name before instance", []medium{drive("/dev/sr0", "config-2", "n1", "id-1", "x"), drive("/dev/sr1", "config-2", "old", "id-2", "y")}, FetchOptions{Name: "n1", Instance: "id-2"}, "/dev/sr0"},
		{"nobody's", []medium{drive("/dev/sr0", "config-2", "n2", "id-2", "x"), drive("/dev/sr1", "config-2", "n3", "id-3", "y")}, FetchOptions{Name: "n1"}, "error"},
		{"both its own", []medium{drive("/dev/sr0", "config-2", "n1", "id-1", "x"), drive("/dev/sr1", "config-2", "n1", "id-1", "y")}, FetchOptions{Name: "n1", Instance: "id-1"}, "error"},
		{"a broken one does not count", []medium{broken, drive("/dev/sr0", "config-2", "n2", "id-2", "x")}, FetchOptions{Name: "n1"}, "/dev/sr0"},
		{"labelled before others", []medium{drive("/dev/sr0", "mine", "n1", "id-1", "x"), drive("/dev/sr1", "CONFIG-2", "n2", "id-2", "y")}, FetchOptions{Name: "n1"}, "/dev/sr1"},
		{"another label, its own", []medium{drive("/dev/sr0", "mine", "n1", "id-1", "x")}, FetchOptions{Name: "n1"}, "/dev/sr0"},
		{"another label, not its own", []medium{drive("/dev/sr0", "mine", "n2", "id-1", "x")}, FetchOptions{Name: "n1"}, ""},
		{"another label, no name known", []medium{drive("/dev/sr0", "mine", "", "id-1", "x")}, FetchOptions{}, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			for range 2 {
				got, err := chooseConfigDrive(test.media, test.options)
				switch {
				case test.want == "error":
					if err == nil || fault.As(err).Code != fault.UserdataInvalid || !strings.Contains(err.Error(), "/dev/sr0 (label config-2) is for") || !strings.Contains(err.Error(), "/dev/sr1 (label config-2) is for") {
						t.Errorf("error %v, want %s with both drives", err, fault.UserdataInvalid)
					}
				case err != nil || (got == nil) != (test.want == "") || got != nil && !strings.HasPrefix(got.Source, "config drive "+test.want+" "):
					t.Errorf("got %v, %v; want %q", got, err, test.want)
				}
				slices.Reverse(test.media) // the order of the devices decides between equal ones only
				if test.name == "twice the same" {
					break
				}
			}
		})
	}
}

// Two drives for other machines end the wait at once, whatever the router has.
func TestFetchTwoConfigDrives(t *testing.T) {
	t.Parallel()
	m := bare(t)
	attach(t, m, "sr0", buildDrive(t, nodeDrive("n2", "two")))
	attach(t, m, "vdb", buildDrive(t, nodeDrive("n3", "three")))
	_, err := Fetch(t.Context(), m.Host(), FetchOptions{Name: "n1", BaseURLs: []string{router(t, "x").URL}}, quiet)
	if err == nil || fault.As(err).Code != fault.UserdataInvalid || !strings.Contains(err.Error(), `"n2"`) || !strings.Contains(err.Error(), `"n3"`) {
		t.Errorf("error %v, want %s naming both", err, fault.UserdataInvalid)
	}
	got, err := Fetch(t.Context(), m.Host(), FetchOptions{Name: "n3", BaseURLs: nowhere()}, quiet)
	if err != nil || string(got.Raw) != "three" {
		t.Errorf("got %q, %v; want that of n3", got.Raw, err)
	}
}

func TestReadConfigDrive(t *testing.T) {
	t.Parallel()
	const meta = "openstack/latest/meta_data.json"
	many := map[string]string{meta: `{"uuid":"u"}`}
	for i := range maxNames + 1 {
		many[fmt.Sprintf("cloudstack/metadata/n%d.txt", i)] = "x"
	}
	for _, test := range []struct {
		name  string
		files map[string]string
		want  string // of raw and metadata, or of the error
	}{
		{"cloud-init's instance id is the uuid", map[string]string{meta: `{"uuid":"u-1","name":"n"}`, "cloudstack/metadata/instance-id.txt": "i-2-3-VM\n", driveUserdata: "x"},
			"x map[availability-zone: instance-id:u-1 local-hostname: public-keys:]"},
		{"CloudStack's files alone", map[string]string{"cloudstack/metadata/instance-id.txt": "u-1\n", "cloudstack/metadata/local-hostname.txt": "n1", driveUserdataSame: "x"},
			"x map[instance-id:u-1 local-hostname:n1]"},
		{"OpenStack's files alone", map[string]string{meta: `{"uuid":"u-1","hostname":"n1","public_keys":{"k":"ssh-rsa A"},"devices":[],"random_seed":"x"}`, driveUserdata: "x"},
			"x map[availability-zone: instance-id:u-1 local-hostname:n1 public-keys:ssh-rsa A]"},
		{"names", map[string]string{meta: `{"uuid":"u"}`, "cloudstack/metadata/seedfrom.txt": "http://x", "cloudstack/metadata/dsmode.txt": "disabled",
			"cloudstack/metadata/a b.txt": "x", "cloudstack/metadata/folder/x.txt": "x", "cloudstack/metadata/note": "x", "cloudstack/metadata/param_1.txt": "y"},
			" map[availability-zone: instance-id:u local-hostname: param_1:y public-keys:]"},
		{"no config drive", map[string]string{"k8s/kubeadm": "x"}, fs.ErrNotExist.Error()},
		{"no instance id", map[string]string{meta: `{"hostname":"n1"}`}, "it names no instance id"},
		{"an instance id that is a path", map[string]string{meta: `{"uuid":"../../etc"}`}, `its instance id "../../etc" is none: want at most 128 letters, digits and . _ : -`},
		{"no JSON", map[string]string{meta: `{"uuid":`}, "cannot read openstack/latest/meta_data.json: unexpected end of JSON input"},
		{"other JSON", map[string]string{meta: `{"uuid":7}`}, "cannot read openstack/latest/meta_data.json: json: cannot unmarshal number"},
		{"too much userdata", map[string]string{meta: `{"uuid":"u"}`, driveUserdata: strings.Repeat("x", MaxUserdata+1)}, "openstack/latest/user_data has 1048577 bytes, 1048576 at most are read"},
		{"too much metadata", map[string]string{meta: `{"uuid":"u"}`, "cloudstack/metadata/x.txt": strings.Repeat("x", maxMetadata+1)}, "cloudstack/metadata/x.txt has 65537 bytes, 65536 at most are read"},
		{"too many metadata", many, "cloudstack/metadata has more than 256 files"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := readConfigDrive(openImage(t, isoImage(t, "config-2", test.files, "-R", "-iso-level", "3")))
			text := string(got.Raw) + " " + fmt.Sprint(got.Meta)
			if err != nil {
				text = err.Error()
			}
			if text != test.want && (err == nil || !strings.Contains(text, test.want)) {
				t.Errorf("got %q, want %q", text, test.want)
			}
		})
	}
}
