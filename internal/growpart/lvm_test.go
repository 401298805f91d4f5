// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	fakeGroup   = "3Uv13d-sTcw-wc8g-Vo0Q-21O5-0Ho9-wvCyjw"
	fakeVolume  = "1AIeQe-QOd9-r4zZ-E1vP-FmZx-HdfW-RnXWiP"
	lvmPath     = "/usr/sbin/lvm"
	lvmExtent   = 4 * mib
	lvmPVStart  = mib
	swapExtents = 10
)

// dmUUID is the name LVM gives the device of a volume.
func dmUUID(group, volume string) string {
	return "LVM-" + strings.ReplaceAll(group+volume, "-", "")
}

// fakeLVM plays the lvm of a machine whose partition 6 is a PV, full with the
// volumes root and swap. It changes the kernel's device together with its
// metadata.
type fakeLVM struct {
	vm            *vm
	pvExtents     int64
	extents       int64 // of root
	lies          bool  // lvextend reports success and does nothing
	vgAttributes  string
	resizePVFails error
	resizingPV    func() // called by pvresize
}

func newFakeLVM(v *vm) *fakeLVM {
	l := &fakeLVM{vm: v, vgAttributes: "wz--n-"}
	l.pvExtents = (v.root.size - lvmPVStart) / lvmExtent
	l.extents = l.pvExtents - swapExtents
	v.device("253:0", "virtual/block/dm-0", map[string]string{"dm/name": "vg-root", "dm/uuid": dmUUID(fakeGroup, fakeVolume)})
	v.link("../../../../"+vdaPath+"/vda6", "/sys/devices/virtual/block/dm-0/slaves/vda6")
	l.kernelSize()
	v.Write(lvmPath, "")
	v.Program(lvmPath, l.run)
	return l
}

func (l *fakeLVM) size() int64 { return l.extents * lvmExtent }

func (l *fakeLVM) kernelSize() {
	l.vm.Write("/sys/devices/virtual/block/dm-0/size", strconv.FormatInt(l.size()/sysSector, 10)+"\n")
}

func (l *fakeLVM) run(command host.Command) (string, error) {
	out, err := l.answer(command.Args)
	if err != nil {
		return "", &host.CommandError{Command: command.String(), ExitCode: 5, Tail: []string{"last line of lvm"}, Err: err}
	}
	return out, nil
}

func (l *fakeLVM) answer(args []string) (string, error) {
	switch {
	case args[0] == "pvs" && args[len(args)-1] == "/dev/vda6":
		return l.report(), nil
	case slices.Equal(args, []string{"pvresize", "/dev/vda6"}):
		if err := l.vm.step(); err != nil {
			return "", err
		}
		if l.resizePVFails != nil {
			return "", l.resizePVFails
		}
		if l.resizingPV != nil {
			l.resizingPV()
		}
		l.pvExtents = (l.vm.root.size - lvmPVStart) / lvmExtent
		return "", nil
	case len(args) == 5 && args[0] == "lvextend" && args[1] == "--extents" && args[3] == "vg/root" && args[4] == "/dev/vda6":
		extents, err := strconv.ParseInt(args[2], 10, 64)
		if err != nil || extents <= l.extents || extents > l.pvExtents-swapExtents {
			return "", fmt.Errorf("root has %d extents, the PV %d, want %s", l.extents, l.pvExtents, args[2])
		}
		if err := l.vm.step(); err != nil {
			return "", err
		}
		if !l.lies {
			l.extents = extents
			l.kernelSize()
		}
		return "", nil
	}
	return "", fmt.Errorf("unexpected arguments %q", args)
}

// report is as lvm 2.03.16 writes it (testdata/lvm/plain.json).
func (l *fakeLVM) report() string {
	row := func(volume, uuid, attributes string, size int64, segment string, extents int64) string {
		return fmt.Sprintf(`{"pv_attr":"a--", "pv_mda_count":"1", "pe_start":"%d", "pv_pe_count":"%d", "pv_pe_alloc_count":"%d", `+
			`"vg_name":"vg", "vg_uuid":"%s", "vg_attr":"%s", "vg_extent_size":"%d", `+
			`"lv_name":"%s", "lv_uuid":"%s", "lv_attr":"%s", "lv_size":"%d", "segtype":"%s", "pvseg_size":"%d"}`,
			lvmPVStart, l.pvExtents, l.extents+swapExtents, fakeGroup, l.vgAttributes, lvmExtent, volume, uuid, attributes, size, segment, extents)
	}
	return `{"report": [{"pv": [` + strings.Join([]string{
		row("root", fakeVolume, "-wi-ao----", l.size(), "linear", l.extents-1),
		row("swap", "CbPDuG-Mn2n-fvCw-v4Tv-Pq2j-8bBf-HzKbMR", "-wi-a-----", swapExtents*lvmExtent, "linear", swapExtents),
		row("root", fakeVolume, "-wi-ao----", l.size(), "linear", 1),
		row("", "", "", 0, "free", l.pvExtents-l.extents-swapExtents),
	}, ", ") + `]}]}`
}

func lvmReport(t *testing.T, name string) []byte {
	t.Helper()
	data, err := os.ReadFile(filepath.Join("testdata/lvm", name+".json"))
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Reports of lvm 2.03.16 are read; all but a plain volume is refused (G7).
func TestParseVolume(t *testing.T) {
	t.Parallel()
	for name, want := range map[string]string{
		"plain":          "",
		"snapshot":       `its volume has the attributes "owi-aos---"`,
		"two-pvs":        "only 687865856 of its 1312817152 bytes are on this partition",
		"two-copies":     "has a copy of the metadata at the end",
		"partial":        `its volume group has the attributes "wz-pn-"`,
		"striped":        `one of its areas is "striped", not linear`,
		"raid1":          "does not know the volume LVM-",
		"contiguous":     `its volume has the attributes "-wc-a-----"`,
		"read-only":      `its volume has the attributes "-rc-a-----"`,
		"not-resizeable": `its volume group has the attributes "w---n-"`,
		"exported":       `its physical volume has the attributes "ax-"`,
	} {
		volumes := map[string]string{"striped": "LUpwUd-ikpu-x9fU-YfdF-B0ax-QT1V-T2XfUD", "raid1": "Nq23GI-cZd9-WACf-gOGS-Cg28-23H0-oSLQGm"}
		for _, one := range []string{"contiguous", "read-only", "not-resizeable", "exported"} {
			volumes[one] = "v3fP5t-jbpl-JtM5-7gia-1eOp-CiO9-XmcjI6"
		}
		uuid := fakeVolume
		if other := volumes[name]; other != "" {
			uuid = other
		}
		got, err := parseVolume(lvmReport(t, name), dmUUID(fakeGroup, uuid))
		switch {
		case want != "" && (err == nil || !strings.Contains(err.Error(), want)):
			t.Errorf("%s: error = %v, want %q", name, err, want)
		case want == "" && err != nil:
			t.Errorf("%s: %v", name, err)
		case want == "":
			plain := volume{name: "vg/root", extents: 105, extent: lvmExtent}
			plain.pv.start, plain.pv.extents, plain.pv.free = mib, 304, 189
			if *got != plain {
				t.Errorf("%s: %+v, want %+v", name, *got, plain)
			}
		}
	}
}

// A report that is not as lvm writes it is refused with what is wrong.
func TestParseVolumeRefuses(t *testing.T) {
	t.Parallel()
	plain := string(lvmReport(t, "plain"))
	for _, test := range []struct{ old, new, want string }{
		{plain, "", "cannot read the report"},
		{plain, "[]", "cannot read the report"},
		{plain, plain + plain, "cannot read the report"},
		{plain, "  WARNING: something\n" + plain, "cannot read the report"},
		{plain, `{"report":[]}`, "gives 0 reports"},
		{plain, `{"report":[{"pv":[]}]}`, "does not know the volume"},
		{`"vg_extent_size"`, `"size"`, `the vg_extent_size as ""`},
		{`"vg_extent_size":"4194304"`, `"vg_extent_size":"0"`, "extents of 0 bytes"},
		{`"vg_extent_size":"4194304"`, `"vg_extent_size":"4611686018427387903"`, "extents of 4611686018427387903 bytes"},
		{`"vg_extent_size":"4194304"`, `"vg_extent_size":"4m"`, `the vg_extent_size as "4m"`},
		{`"pv_pe_count":"304"`, `"pv_pe_count":"-304"`, `the pv_pe_count as "-304"`},
		{`"pv_pe_count":"304"`, `"pv_pe_count":"4294967296"`, `the pv_pe_count as "4294967296"`},
		{`"pv_pe_count":"304"`, `"pv_pe_count":"114"`, "105 of 114 extents"},
		{`"pv_pe_alloc_count":"115"`, `"pv_pe_alloc_count":"104"`, "of which 104 are used"},
		{`"pvseg_size":"100"`, `"pvseg_size":"x"`, `the pvseg_size as "x"`},
		{`"lv_size":"440401920"`, `"lv_size":"440401921"`, "of its 440401921 bytes"},
		{`"pe_start":"1048576"`, `"pe_start":"1048576B"`, `the pe_start as "1048576B"`},
		{`"lv_name":"root"`, `"lv_name":"--yes"`, `the name "--yes"`},
		{`"vg_name":"vg"`, `"vg_name":"v/g"`, `the group "v/g"`},
		{`"vg_name":"vg"`, `"vg_name":""`, `the group ""`},
		{`"-wi-ao----"`, `"-wi-so----"`, `has the attributes "-wi-so----"`},
		{`"-wi-ao----"`, `"-wi"`, `has the attributes "-wi"`},
		{`"vg_attr":"wz--n-"`, `"vg_attr":"wz--ns"`, `has the attributes "wz--ns"`},
		{`"pv_attr":"a--"`, `"pv_attr":"a-m"`, `has the attributes "a-m"`},
	} {
		if !strings.Contains(plain, test.old) {
			t.Errorf("no %q in the report", test.old)
		}
		_, err := parseVolume([]byte(strings.ReplaceAll(plain, test.old, test.new)), dmUUID(fakeGroup, fakeVolume))
		if err == nil || !strings.Contains(err.Error(), test.want) {
			t.Errorf("%q for %q: error = %v, want %q", test.new, test.old, err, test.want)
		}
	}
}

// The volume gets what the PV has free and what it gains, in whole extents.
func TestVolumeFit(t *testing.T) {
	t.Parallel()
	v := volume{extents: 100, extent: lvmExtent}
	v.pv.start, v.pv.extents, v.pv.free = mib, 150, 7
	for partition, want := range map[int64]int64{
		0:                           107,
		mib + 150*lvmExtent:         107,
		mib + 151*lvmExtent - 1:     107,
		mib + 151*lvmExtent:         108,
		mib + 250*lvmExtent + 3*mib: 207,
	} {
		if got := v.fit(partition); got != want*lvmExtent {
			t.Errorf("fit(%d) = %d extents, want %d", partition, got/lvmExtent, want)
		}
	}
}

// A root on LVM grows whole in one run: table, kernel, PV, volume, file system.
// The next one finds nothing to do and writes nothing (G7, G11, G12).
func TestGrowLVM(t *testing.T) {
	t.Parallel()
	v := newVMOn(t, "ext4", true)
	v.image.truncate(t, 10*gib)
	const (
		partitionBefore, partition = 4786176 * 512, 10*gib - 1503232*512
		volumeBefore, volume       = 574 * lvmExtent, 2366 * lvmExtent
	)
	want := Result{Disk: "/dev/vda", Partition: "/dev/vda6", Number: 6, Volume: "vg/root", FilesystemType: "ext4", DiskBytes: 10 * gib,
		PartitionBytes: Change{partitionBefore, partition}, VolumeBytes: Change{volumeBefore, volume}, FilesystemBytes: Change{volumeBefore, volume},
		Changed: true, Note: "would grow 2.2 GiB -> 9.2 GiB"}
	dry, err := v.grow(Options{DryRun: true})
	if err != nil || dry != want || v.steps != 0 {
		t.Errorf("dry run = %+v, %v with %d steps\nwant %+v, nil with none", dry, err, v.steps, want)
	}
	v.Actions()
	got, err := v.grow(Options{})
	want.Note = "grew 2.2 GiB -> 9.2 GiB"
	if err != nil || got != want || v.steps != 7 {
		t.Errorf("grow = %+v, %v with %d steps\nwant %+v, nil with 3 writes and 4 resizes", got, err, v.steps, want)
	}
	var commands []string
	for _, action := range v.Actions() {
		if !strings.Contains(action, " pvs ") {
			commands = append(commands, action)
		}
	}
	if want := []string{"run /usr/sbin/lvm pvresize /dev/vda6", "run /usr/sbin/lvm lvextend --extents 2366 vg/root /dev/vda6"}; !slices.Equal(commands, want) {
		t.Errorf("commands = %q, want %q", commands, want)
	}
	v.image.judge(t)
	v.fsck()

	v.boot()
	v.steps = 0
	again, err := v.grow(Options{})
	want.PartitionBytes, want.VolumeBytes, want.FilesystemBytes = Change{partition, partition}, Change{volume, volume}, Change{volume, volume}
	want.Changed, want.Note = false, "nothing to grow"
	if err != nil || again != want || v.steps != 0 {
		t.Errorf("next boot: grow = %+v, %v with %d steps\nwant %+v, nil with none", again, err, v.steps, want)
	}
}

// Each layer is compared with the one below whatever becomes of that: an extent
// that was freed on the PV goes to the volume, though the partition stays.
func TestGrowLVMVolumeAlone(t *testing.T) {
	t.Parallel()
	v := newVMOn(t, "xfs", true)
	v.lvm.extents--
	v.lvm.kernelSize()
	v.xfs.blocks -= uint64(lvmExtent) / 4096
	got, err := v.grow(Options{RequestedBytes: gib})
	if err != nil || v.steps != 2 || got.VolumeBytes != (Change{573 * lvmExtent, 574 * lvmExtent}) || got.FilesystemBytes != got.VolumeBytes ||
		!strings.HasPrefix(got.Note, "grew 2.2 GiB -> 2.2 GiB; asked for 1.0 GiB") {
		t.Errorf("grow = %+v, %v with %d steps, want an extent more in two steps", got, err, v.steps)
	}
}

// The volume grows by more than MinGain or not at all, as all else does (G12).
func TestVolumeMinGain(t *testing.T) {
	t.Parallel()
	v := newVM(t)
	at, err := locate(v.Host(), v, "/")
	if err != nil {
		t.Fatal(err)
	}
	for free, want := range map[int64]bool{0: false, 2: false, 3: true} {
		lv := &volume{name: "vg/root", extents: 4000, extent: mib / 2}
		lv.pv.start, lv.pv.extents, lv.pv.free = mib, 4672, free
		now := facts{place: at, table: v.image.read(t), volume: lv, filesystem: btrfs{bytes: lv.size(), sector: 4096}, diskBytes: v.image.Size()}
		todo, err := decide(now, Options{})
		if err != nil || todo.empty() == want || todo.volume != want || todo.volumeBytes-lv.size() != map[bool]int64{true: free * lv.extent}[want] {
			t.Errorf("%d extents free: %+v, %v, want growth %v", free, todo, err, want)
		}
	}
}

// LVM is not killed while it changes the root's device, and not started once the
// time is up.
func TestGrowLVMStopsWithContext(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		cancelAt func(v *vm, cancel func())
		steps    int
	}{
		"before the volume": {func(v *vm, cancel func()) {
			v.image.resize = func(size int64) { v.kernelSize(size); cancel() }
		}, 4},
		"between its steps": {func(v *vm, cancel func()) { v.lvm.resizingPV = cancel }, 7},
	} {
		v := newVMOn(t, "xfs", true)
		v.image.truncate(t, 4*gib)
		ctx, cancel := context.WithCancel(context.Background())
		test.cancelAt(v, cancel)
		if _, err := grow(ctx, v.Host(), v, "/", Options{}); !errors.Is(err, context.Canceled) || v.steps != test.steps {
			t.Errorf("%s: error = %v after %d steps, want canceled after %d", name, err, v.steps, test.steps)
		}
		if result, err := v.grow(Options{}); err != nil || result.FilesystemBytes.After != 830*lvmExtent {
			t.Errorf("%s: next run = %+v, %v, want all of the disk", name, result, err)
		}
	}
}

// What is on LVM and cannot be grown is refused before anything is written (G7,
// G8), and what went wrong later is told with LVM's own last lines (G9).
func TestGrowLVMRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		spoil func(*vm)
		want  string
		code  fault.Code
		steps int
	}{
		"no tools": {func(v *vm) { os.Remove(v.Path(lvmPath)) },
			"the file system is on the LVM volume vg-root (dm-0) on vda6, and the lvm tools are not installed (package lvm2)", fault.DiskUnsupported, 0},
		"lvm fails": {func(v *vm) {
			v.Program(lvmPath, func(command host.Command) (string, error) {
				return "", &host.CommandError{Command: "lvm", Tail: []string{"last line of lvm"}, Err: errors.New("exit status 5")}
			})
		}, "cannot learn about the LVM volume vg-root (dm-0) on vda6: `lvm pvs` failed: ", fault.DiskGrowFailed, 0},
		"partial group": {func(v *vm) { v.lvm.vgAttributes = "wz-pn-" },
			`cannot grow the LVM volume vg-root (dm-0) on vda6: its volume group has the attributes "wz-pn-"`, fault.DiskUnsupported, 0},
		"kernel has it otherwise": {func(v *vm) { v.Write("/sys/devices/virtual/block/dm-0/size", "8192\n") },
			"the kernel has the LVM volume vg-root (dm-0) on vda6 with 4194304 bytes, LVM has it with 2407530496", fault.DiskGrowFailed, 0},
		"another file system on it": {func(v *vm) { v.mounts("22 1 253:0 / / rw - xfs /dev/mapper/vg-root rw") },
			"cannot read the file system on vg/root: it is mounted as xfs", fault.DiskUnsupported, 0},
		"read-only mount": {func(v *vm) { v.mounts("22 1 253:0 / / ro - ext4 /dev/mapper/vg-root ro") },
			"cannot grow vg/root: it is mounted read-only", fault.DiskGrowFailed, 0},
		"pvresize fails": {func(v *vm) { v.lvm.resizePVFails = errors.New("exit status 5") },
			"cannot grow the volume vg/root from 2.2 GiB to 3.2 GiB: `lvm pvresize` failed: ", fault.DiskGrowFailed, 5},
		"lvextend does nothing": {func(v *vm) { v.lvm.lies = true },
			"cannot grow the volume vg/root from 2.2 GiB to 3.2 GiB: ", fault.DiskGrowFailed, 6},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVMOn(t, "ext4", true)
			v.image.truncate(t, 4*gib)
			test.spoil(v)
			v.filesystemLies = test.steps > 0
			_, err := v.grow(Options{})
			if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != test.code {
				t.Errorf("error = %v, want %q with code %s", err, test.want, test.code)
			}
			if strings.Contains(test.want, "failed: ") && !slices.Equal(fault.As(err).Log, []string{"last line of lvm"}) {
				t.Errorf("log = %q, want lvm's last line", fault.As(err).Log)
			}
			if v.steps < test.steps || test.steps == 0 && v.steps > 0 {
				t.Errorf("%d steps were done, want %d", v.steps, test.steps)
			}
		})
	}
}
