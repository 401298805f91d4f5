// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// original returns the growpart of cloud-guest-utils, a shell script.
func original(t testing.TB) string {
	t.Helper()
	path, err := exec.LookPath("growpart")
	if err != nil {
		t.Fatalf("the test needs growpart, from Debian's package cloud-guest-utils: %v", err)
	}
	script, err := os.ReadFile(path)
	if err != nil || !bytes.HasPrefix(script, []byte("#!/bin/sh")) {
		t.Fatalf("%s is not the growpart of Debian's package cloud-guest-utils (%v)", path, err)
	}
	return path
}

// linked builds nodeagent and returns a link to it with the name growpart.
func linked(t testing.TB) string {
	t.Helper()
	folder := t.TempDir()
	tool(t, "", "go", "build", "-o", filepath.Join(folder, "nodeagent"), "nodeagent/cmd/nodeagent")
	link := filepath.Join(folder, "growpart")
	if err := os.Symlink("nodeagent", link); err != nil {
		t.Fatal(err)
	}
	return link
}

// said is what a growpart did.
type said struct {
	line string // on standard output
	code int
}

func callGrowpart(t testing.TB, program string, args ...string) (got said, stderr string) {
	t.Helper()
	var out, errs bytes.Buffer
	cmd := exec.Command(program, args...)
	cmd.Stdout, cmd.Stderr = &out, &errs
	err := cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatal(err)
	}
	return said{strings.TrimSuffix(out.String(), "\n"), cmd.ProcessState.ExitCode()}, errs.String()
}

// formula is growpart's arithmetic, on what sfdisk says of a table. Its sectors
// are the last ones, as growpart counts.
type formula struct {
	number  int
	sectors int64 // of the disk
	sector  int64 // bytes
	fudge   int64 // bytes
	percent int64
	dry     bool
}

// release is whose arithmetic.
type release int

const (
	release33 release = iota // Debian 12: no rounding
	release34
	ours
)

func (f formula) apply(t testing.TB, disk string, by release) said {
	t.Helper()
	parts := partsOf(t, disk)
	p, found := parts[f.number]
	if !found {
		t.Fatalf("sfdisk sees no partition %d: %+v", f.number, parts)
	}
	inContainer := false
	end, last := p.Start+p.Size-1, f.sectors
	for _, q := range parts {
		if q.Start >= end && q.Start < last {
			last = q.Start
		}
		if q.extended() && q.Start <= p.Start && end <= q.Start+q.Size-1 {
			inContainer = true
		}
	}
	last--
	if last > f.sectors-33 {
		last = f.sectors - 34
	}
	align := mib / f.sector
	switch {
	case by == ours && inContainer:
		last = (last+1)/align*align - 1
	case by != release33:
		last = (last+1-p.Start)/align*align + p.Start - 1
	}
	if f.percent > 0 {
		unused := f.sectors / 100 * f.percent
		last -= unused
		if by != release33 {
			last = last/align*align - 1
		}
		if last < end {
			return said{fmt.Sprintf("NOCHANGE: partition %d could not be grown while leaving %d%% (%d sectors) free on device", f.number, f.percent, unused), 1}
		}
	}
	switch {
	case end == last && by == release34:
		return said{fmt.Sprintf("NOCHANGE: partition %d size is %d bytes (%d sectors of %d). it cannot be grown", f.number, p.Size*f.sector, p.Size, f.sector), 1}
	case end == last:
		return said{fmt.Sprintf("NOCHANGE: partition %d is size %d. it cannot be grown", f.number, p.Size), 1}
	case end+f.fudge/f.sector > last:
		return said{fmt.Sprintf("NOCHANGE: partition %d could only be grown by %d [fudge=%d]", f.number, last-end, f.fudge/f.sector), 1}
	}
	word := "CHANGED"
	if f.dry {
		word = "CHANGE"
	}
	return said{fmt.Sprintf("%s: partition=%d start=%d old: size=%d end=%d new: size=%d end=%d",
		word, f.number, p.Start, p.Size, end, last+1-p.Start, last), 0}
}

// part is a partition as sfdisk reads it.
type part struct {
	Node        string
	Start, Size int64
	Type        string
}

func (p part) extended() bool { return slices.Contains([]string{"5", "f", "85"}, p.Type) }

// partsOf returns the partitions by number.
func partsOf(t testing.TB, disk string) map[int]part {
	t.Helper()
	var parsed struct{ PartitionTable struct{ Partitions []part } }
	if err := json.Unmarshal([]byte(tool(t, "", "sfdisk", "--json", disk)), &parsed); err != nil {
		t.Fatal(err)
	}
	parts := map[int]part{}
	for _, p := range parsed.PartitionTable.Partitions {
		number, err := strconv.Atoi(p.Node[len(strings.TrimRight(p.Node, "0123456789")):])
		if err != nil {
			t.Fatal(err)
		}
		parts[number] = p
	}
	return parts
}

// dump returns sfdisk's dump of a disk without what growing changes: the sizes of
// some partitions and the end of the sectors for partitions.
func dump(t testing.TB, disk string, without ...int) string {
	t.Helper()
	size := regexp.MustCompile(`size= *[0-9]+`)
	var lines []string
	for line := range strings.Lines(tool(t, "", "sfdisk", "--dump", disk)) {
		if strings.HasPrefix(line, "device:") || strings.HasPrefix(line, "last-lba:") {
			continue
		}
		line = strings.TrimPrefix(line, disk)
		for _, number := range without {
			if strings.HasPrefix(strings.TrimPrefix(line, "p"), fmt.Sprintf("%d :", number)) {
				line = size.ReplaceAllString(line, "size=*")
			}
		}
		lines = append(lines, line)
	}
	return strings.Join(lines, "")
}

// side is a disk for the original and its twin for ours, both at the same path
// but for the folder.
type side struct {
	original, ours string
	numbers        []int // partitions that may have grown
}

// differences are what docs/growpart.md lists, as far as they show in a call that
// changes a disk. All else is compared.
//
//	| what                        | original 0.33         | ours                                  |
//	|-----------------------------|-----------------------|---------------------------------------|
//	| sizes                       | to the last sector    | whole MiB, as 0.34                    |
//	| extended and logical ones   | as all others         | the end is at a whole MiB             |
//	| logical one, container full | FAILED                | grows the container along             |
//	| what is on standard error   | dumps of sfdisk       | lists of partitions and of writes     |
//
// both runs one call on each side and compares what they say and do.
func (s side) both(t *testing.T, theirs, link string, f formula) {
	t.Helper()
	f.sector = 512
	var args []string
	if f.dry {
		args = append(args, "--dry-run")
	}
	if f.percent > 0 {
		args = append(args, fmt.Sprintf("--free-percent=%d", f.percent))
	}
	if f.fudge > 0 {
		args = append(args, "--fudge", strconv.FormatInt(f.fudge, 10))
	} else {
		f.fudge = mib
	}
	name := strings.Join(append(slices.Clone(args), strconv.Itoa(f.number)), " ")
	wanted := f.apply(t, s.ours, ours)
	candidates := []said{f.apply(t, s.original, release33), f.apply(t, s.original, release34)}
	if f.number > 4 {
		// 0.34 cannot grow a logical one after its container, whose end it rounds
		// differently.
		candidates = append(candidates, said{"FAILED: failed to resize", 2})
	}
	before := dump(t, s.ours, f.number)

	got, errs := callGrowpart(t, link, append(slices.Clone(args), s.ours, strconv.Itoa(f.number))...)
	if got != wanted {
		t.Errorf("%s: %+v, want %+v\n%s", name, got, wanted, errs)
	}
	if now := dump(t, s.ours, f.number); now != before {
		t.Errorf("%s: more changed than a size:\n%s\nwas\n%s", name, now, before)
	}
	want := partsOf(t, s.ours)[f.number]
	if got.code == 0 && !f.dry {
		if line := fmt.Sprintf("new: size=%d end=%d", want.Size, want.Start+want.Size-1); !strings.HasSuffix(got.line, line) {
			t.Errorf("%s: sfdisk sees %q after %q", name, line, got.line)
		}
	}

	got, errs = callGrowpart(t, theirs, append(slices.Clone(args), s.original, strconv.Itoa(f.number))...)
	if !slices.Contains(candidates, got) {
		t.Errorf("%s: the original: %+v, by its formula %+v\n%s", name, got, candidates, errs)
	}
	if a, b := dump(t, s.original, s.numbers...), dump(t, s.ours, s.numbers...); a != b {
		t.Errorf("%s: the original leaves\n%s\nours\n%s", name, a, b)
	}
}

// Called as growpart on the same images, the original of cloud-guest-utils and
// ours say and do the same but for the differences above (C34, C35, G5, G6).
func TestBesideTheOriginal(t *testing.T) {
	t.Parallel()
	theirs, link := original(t), linked(t)
	test := func(name string, disk func(*testing.T) *image, numbers ...int) {
		calls := map[int64][]formula{
			3*gib + mib/2:     {{}},
			9*gib + 12345*512: {{dry: true}, {}, {}},
		}
		if name == "shipped by the installer" || name == "arm64 template" || name == "swap follows" {
			calls[3*gib] = []formula{{}, {percent: 1}}
			calls[3*gib+3*mib] = []formula{{dry: true}, {}}
			calls[20*gib+512] = []formula{{fudge: 20 * gib}, {percent: 99}, {percent: 10, dry: true}, {percent: 7}, {fudge: 100 * mib}, {}}
		}
		for size, calls := range calls {
			// The name is in the disk's path, in which the original takes no comma.
			t.Run(fmt.Sprintf("%s at %d", strings.ReplaceAll(name, ",", ""), size), func(t *testing.T) {
				t.Parallel()
				ours := disk(t)
				ours.truncate(t, size)
				s := side{ours.copy(t).Name(), ours.Name(), numbers}
				for _, number := range numbers {
					for _, f := range calls {
						f.number, f.sectors = number, size/512
						s.both(t, theirs, link, f)
					}
				}
				if size > 3*gib+mib {
					ours.judge(t) // a GPT on a disk that grew is whole again only when a partition grew
				}
			})
		}
	}
	for name, layout := range layouts() {
		numbers := []int{layout.root, 1}
		if layout.root > 4 { // the original needs the extended one to grow first
			numbers = []int{2, layout.root, 1}
			if strings.Contains(name, "third slot") {
				numbers[0] = 3
			}
		}
		test(name, layout.make, numbers...)
	}
	for name, layout := range gptLayouts() {
		if name == "256 entries" {
			continue // the original leaves room for 128, and fails
		}
		test(name, func(t *testing.T) *image { return layout.image(t) }, layout.root)
	}
	test("swap follows", func(t *testing.T) *image {
		return openImage(t, 3*gib, gptHead+"start=2048, size=1000000, type=linux\nstart=4196352, size=2000000, type=swap\n")
	}, 1, 2)
}

// partition grows a partition as GrowPartition does, without a kernel that has it.
func (d *image) partition(t testing.TB, number int, options PartitionOptions) PartitionResult {
	t.Helper()
	result, device, err := growPartition(context.Background(), nil, d, namedDisk{path: "disk"}, strconv.Itoa(number), options)
	if err != nil || device != "" {
		t.Fatalf("partition %d: device %q, error %v", number, device, err)
	}
	if options.DryRun == d.locked {
		t.Errorf("partition %d: locked = %v with %+v", number, d.locked, options)
	}
	d.locked = false
	return result
}

// CloudStack's script grows 2 and then 6; 6 alone comes to the same bytes, and a
// further call of either changes nothing (C34, G6).
func TestExtendedThenLogical(t *testing.T) {
	t.Parallel()
	for name, layout := range layouts() {
		if layout.root < 5 {
			continue
		}
		for _, options := range []PartitionOptions{{MinGain: mib}, {MinGain: mib, FreePercent: 7}, {MinGain: 0}} {
			for _, size := range []int64{9 * gib, 9*gib + 12345*512, 3*gib + 2*mib, 3 * gib, 3000 * gib} {
				t.Run(fmt.Sprintf("%s at %d with %+v", name, size, options), func(t *testing.T) {
					t.Parallel()
					both := layout.make(t)
					both.truncate(t, size)
					extended := 0
					for _, e := range both.read(t).extents() {
						if e.container {
							extended = e.number
						}
					}
					alone := both.copy(t)
					first, then, only := both.partition(t, extended, options), both.partition(t, layout.root, options), alone.partition(t, layout.root, options)
					if first.Changed != only.Changed || then.Limit != only.Limit {
						t.Errorf("%+v, then %+v; alone %+v", first, then, only)
					}
					if differ := alone.changed(t, both.blocks(t)); len(differ) > 0 {
						t.Errorf("%d bytes differ", len(differ))
					}
					if size > 4*gib && (!only.Changed || only.Limit%2048 != 0) {
						t.Errorf("alone: %+v, want growth to a whole MiB", only)
					}
					both.judge(t)
					before := both.blocks(t)
					for _, number := range []int{extended, layout.root, extended} {
						if again := both.partition(t, number, options); again.Changed {
							t.Errorf("a further call for %d: %+v", number, again)
						}
					}
					if len(both.changed(t, before)) > 0 {
						t.Error("bytes changed without a change")
					}
				})
			}
		}
	}
}

// Limits by hand: what 32 bits reach on an MBR, sectors of 4096 bytes, what is
// left free there (G13).
func TestGrowthLimit(t *testing.T) {
	t.Parallel()
	const tib = 1024 * gib
	large := func(t *testing.T) *image {
		disk := openImage(t, 3*gib, "")
		disk.sector = 4096
		byParted("mkpart", "a", "ext4", "1MiB", "101MiB", "mkpart", "b", "ext4", "101MiB", "100%")(t, disk)
		return disk
	}
	for name, test := range map[string]struct {
		make    func(*testing.T) *image
		size    int64
		number  int
		percent int
		limit   int64
		warning fault.Code
	}{
		"MBR of 3 TiB":                     {layouts()["primary root"].make, 3 * tib, 2, 0, 1<<32 - 2048, fault.DiskBlocked},
		"MBR of 3 TiB, logical":            {layouts()["shipped by the installer"].make, 3 * tib, 6, 0, 1<<32 - 2048, fault.DiskBlocked},
		"MBR of 3 TiB, a third is free":    {layouts()["primary root"].make, 3 * tib, 2, 33, 1<<32 - 2*2048, fault.DiskBlocked},
		"MBR of 3 TiB, half of it is free": {layouts()["primary root"].make, 3 * tib, 2, 50, 3*tib/512/2 - 2048, fault.DiskBlocked},
		"MBR, swap follows": {func(t *testing.T) *image {
			return openImage(t, 3*gib, dosHead+"start=2048, size=100000, type=83\nstart=411647, size=1000, type=82\n")
		}, 4 * gib, 1, 0, 2048 + 409599/2048*2048, fault.DiskBlocked},
		"4096, at the end":     {large, 4 * gib, 2, 0, 4*gib/4096 - 256, ""},
		"4096, odd end":        {large, 4*gib + 300*4096, 2, 0, 4*gib/4096 + 256, ""},
		"4096, a tenth free":   {large, 4 * gib, 2, 10, (4*gib/4096 - 257 - 4*gib/4096/100*10) / 256 * 256, ""},
		"4096, blocked by two": {large, 4 * gib, 1, 0, 101 * 256, fault.DiskBlocked},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := test.make(t)
			disk.truncate(t, test.size)
			got := disk.partition(t, test.number, PartitionOptions{MinGain: mib, FreePercent: test.percent, DryRun: true})
			if got.Limit != test.limit || codeOf(got.Warning) != test.warning {
				t.Errorf("limit = %d, warning = %v, want %d and %q", got.Limit, got.Warning, test.limit, test.warning)
			}
			if grows := got.Limit-got.Start-got.Before >= mib/int64(got.SectorSize); got.Changed != grows || grows && got.After != got.Limit-got.Start || grows != (len(got.Steps) > 0) {
				t.Errorf("result = %+v", got)
			}
		})
	}
}

// A table some run left unfinished, or of which a copy is damaged, is repaired
// where nothing can grow, and that is a change (G5).
func TestRepairs(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		number   int
		damage   func(t *testing.T, d *image)
		size     int64
		repaired string
		after    int64
	}{
		"primary header lost, disk grew, blocked": {2, func(t *testing.T, d *image) { put(t, d, 1, make([]byte, 512)) }, 9 * gib, "the primary partition table", 819200},
		"primary entries damaged":                 {4, func(t *testing.T, d *image) { poke(t, d, 2*512+8, 0xff) }, 3 * gib, "the primary partition table", 3842048},
		"backup lost":                             {4, func(t *testing.T, d *image) { put(t, d, 3*gib/512-1, make([]byte, 512)) }, 3 * gib, "the backup partition table", 3842048},
		"primary header lost, disk grew":          {4, func(t *testing.T, d *image) { put(t, d, 1, make([]byte, 512)) }, 9 * gib, "", 16424960},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 3*gib, arm64)
			want, size := dump(t, disk.Name(), test.number), partsOf(t, disk.Name())[test.number].Size
			test.damage(t, disk)
			disk.truncate(t, test.size)
			before := disk.blocks(t)
			for _, dry := range []bool{true, false} {
				got := disk.partition(t, test.number, PartitionOptions{MinGain: mib, DryRun: dry})
				if !got.Changed || got.Before != size || got.After != test.after || got.Repaired != test.repaired {
					t.Errorf("dry run %v: %+v, want %q and a size of %d", dry, got, test.repaired, test.after)
				}
				if dry && len(disk.changed(t, before)) > 0 {
					t.Error("the dry run wrote")
				}
			}
			if test.number == 4 {
				disk.judge(t) // elsewhere the backup stays where the disk used to end
			}
			if now := dump(t, disk.Name(), test.number); now != want {
				t.Errorf("the table is\n%s\nwant\n%s", now, want)
			}
			if again := disk.partition(t, test.number, PartitionOptions{MinGain: mib}); again.Changed {
				t.Errorf("the next call: %+v", again)
			}
		})
	}
}

// Nothing is written if the table would differ in anything but the size asked for.
func TestNewTableIsChecked(t *testing.T) {
	t.Parallel()
	disk := openImage(t, 3*gib, shipped)
	disk.truncate(t, 9*gib)
	before := disk.read(t)
	entry, err := entryOf(before, "disk", "6")
	if err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		spoil func(g *growth)
		want  string
	}{
		"good":            {func(*growth) {}, ""},
		"a patch too few": {func(g *growth) { g.patches = g.patches[:2] }, "partition 6 (Linux) would be 4786176 sectors at 1503232, not 17369088 at 1503232"},
		"one of a neighbour": {func(g *growth) {
			g.patches = append(g.patches, before.resize(before.extents()[0], 2048+400000)...)
		}, "partition 1 (Linux) would be 400000 sectors at 2048, not 497664 at 2048"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			g := planGrowth(before, 9*gib/512, entry, nil, PartitionOptions{})
			test.spoil(&g)
			after, err := readTable(patchedDisk{disk, g.patches}, 512, 9*gib/512)
			if err != nil {
				t.Fatal(err)
			}
			if err := g.check(before, after); (err == nil) != (test.want == "") || err != nil && err.Error() != test.want {
				t.Errorf("error = %v, want %q", err, test.want)
			}
		})
	}
}

// What cannot be read is a failure that says what is wrong and what to do, and
// nothing is written; a disk smaller than its table is one of these (G5).
func TestPartitionRefuses(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		script string
		size   int64
		number string
		want   string
		hint   string
		code   fault.Code
	}{
		"GPT on a smaller disk":   {arm64, 2 * gib, "4", "cannot read the partition table of disk: ", "nothing was written", fault.DiskTableInvalid},
		"MBR on a smaller disk":   {shipped, 2 * gib, "6", "cannot read the partition table of disk: partition 2 (sectors 501758 to 6289407) is not on the disk", "nothing was written", fault.DiskTableInvalid},
		"no table":                {"", gib, "1", "cannot read the partition table of disk: sector 0 has no partition table", "nothing was written", fault.DiskTableInvalid},
		"an empty file":           {"", 0, "1", "cannot read the partition table of disk: cannot read the MBR", "nothing was written", fault.DiskTableInvalid},
		"no such partition":       {shipped, 4 * gib, "7", "failed to get start and end for partition 7 in disk", "Its partitions: 1 2 5 6.", fault.DiskUnsupported},
		"a number too large":      {shipped, 4 * gib, "99999999999999999999", "failed to get start and end for partition 99999999999999999999 in disk", "Its partitions:", fault.DiskUnsupported},
		"a number with a zero":    {shipped, 4 * gib, "06", "failed to get start and end for partition 06 in disk", "Its partitions:", fault.DiskUnsupported},
		"a table of no partition": {gptHead, 4 * gib, "1", "failed to get start and end for partition 1 in disk", "It has no partitions.", fault.DiskUnsupported},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			disk := openImage(t, 3*gib, test.script)
			disk.truncate(t, test.size)
			before := disk.blocks(t)
			result, _, err := growPartition(context.Background(), nil, disk, namedDisk{path: "disk"}, test.number, PartitionOptions{})
			if err == nil || result.Changed {
				t.Fatalf("result = %+v without an error", result)
			}
			if got := fault.As(err); !strings.HasPrefix(got.Message, test.want) || !strings.Contains(got.Hint, test.hint) || got.Code != test.code {
				t.Errorf("error = %v, hint %q, code %s, want %q", err, got.Hint, got.Code, test.want)
			}
			if len(disk.changed(t, before)) > 0 {
				t.Error("something was written")
			}
		})
	}
}

// Partitions of the kernel are found by the disk's device number. It is told the
// size of a partition it has, also where only it does not know it yet; where it
// has other partitions than the table nothing is written (G1, G3, G12).
func TestPartitionAndKernel(t *testing.T) {
	t.Parallel()
	const grown = (10*gib/512 - 2048 - 1503232) * 512 // growpart leaves the last MiB
	for name, test := range map[string]struct {
		number  string
		options PartitionOptions
		kernel  func(v *vm)
		told    int64 // bytes; 0 for not at all
		changed bool
		before  int64 // sectors
		want    string
	}{
		"a partition it has":        {number: "6", told: grown, changed: true, before: 4786176},
		"required":                  {number: "6", options: PartitionOptions{Kernel: UpdateRequired}, told: grown, changed: true, before: 4786176},
		"not to be told":            {number: "6", options: PartitionOptions{Kernel: UpdateNone}, changed: true, before: 4786176},
		"dry run":                   {number: "6", options: PartitionOptions{DryRun: true}, changed: true, before: 4786176},
		"extended, two sectors":     {number: "2", options: PartitionOptions{Kernel: UpdateRequired}, changed: true, before: 5787650},
		"no partition at all":       {number: "6", kernel: func(v *vm) { v.forget("vda1", "vda2", "vda5", "vda6") }, changed: true, before: 4786176},
		"not this one":              {number: "6", kernel: func(v *vm) { v.forget("vda6") }, changed: true, before: 4786176},
		"required, not this one":    {number: "6", options: PartitionOptions{Kernel: UpdateRequired}, kernel: func(v *vm) { v.forget("vda6") }, want: "the kernel has no partition 6 of /dev/disk/by-id/x"},
		"nothing to grow":           {number: "6", kernel: func(v *vm) { v.image.truncate(v.t, 3*gib) }, before: 4786176},
		"it was not told last time": {number: "6", kernel: func(v *vm) { v.image.truncate(v.t, 3*gib); v.kernelSize(gib) }, told: 4786176 * 512, changed: true, before: gib / 512},
		"it was not told, dry run":  {number: "6", options: PartitionOptions{DryRun: true}, kernel: func(v *vm) { v.image.truncate(v.t, 3*gib); v.kernelSize(gib) }, changed: true, before: gib / 512},
		"it has a larger one":       {number: "6", kernel: func(v *vm) { v.kernelSize(3 * gib) }, want: "the table on /dev/disk/by-id/x gives partition 6 2450522112 bytes, the kernel has 3221225472"},
		"it begins elsewhere":       {number: "6", kernel: func(v *vm) { v.Write("/sys/devices/"+vdaPath+"/vda6/start", "4096\n") }, want: "has no partition 6 that begins at byte 2097152"},
		"it has one more": {number: "6", kernel: func(v *vm) { v.partition("254:7", vdaPath+"/vda7", 7, 6291456, 2048) },
			want: "the kernel has partition 7 at byte 3221225472"},
		"it has one more, not to be told": {number: "6", options: PartitionOptions{Kernel: UpdateNone}, kernel: func(v *vm) { v.partition("254:7", vdaPath+"/vda7", 7, 6291456, 2048) },
			changed: true, before: 4786176},
		"not in sysfs":         {number: "6", kernel: func(v *vm) { v.remove("/sys/dev/block/254:0") }, want: "cannot tell which partitions of /dev/disk/by-id/x the kernel has"},
		"a partition, no disk": {number: "6", kernel: func(v *vm) { v.Write("/sys/devices/"+vdaPath+"/partition", "1\n") }, want: "it is a partition, not a disk"},
		"it refuses":           {number: "6", kernel: func(v *vm) { v.allow = 3 }, want: "cannot tell the kernel the size of partition 6 of /dev/disk/by-id/x: power cut"},
		"the disk refuses":     {number: "6", kernel: func(v *vm) { v.allow = 1 }, want: "cannot write the partition table of /dev/disk/by-id/x: cannot write link to partition 6 in sector 501758: power cut"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			v := newVM(t)
			v.image.truncate(t, 10*gib)
			if test.kernel != nil {
				test.kernel(v)
			}
			test.options.MinGain = mib
			size, before := v.root.size, v.image.blocks(t)
			result, device, err := growPartition(context.Background(), v.Host(), vmDisk{v.image, v}, namedDisk{"/dev/disk/by-id/x", "254:0"}, test.number, test.options)
			if test.want == "" && err != nil || test.want != "" && (err == nil || !strings.Contains(err.Error(), test.want)) {
				t.Fatalf("error = %v, want %q", err, test.want)
			}
			if result.Changed != test.changed || err == nil && result.Before != test.before {
				t.Errorf("result = %+v, want changed %v before %d", result, test.changed, test.before)
			}
			told := v.root.size
			if told == size {
				told = 0
			}
			if told != test.told {
				t.Errorf("the kernel was told %d bytes, want %d", told, test.told)
			}
			if (err != nil && v.allow < 0 || test.options.DryRun) && len(v.image.changed(t, before)) > 0 {
				t.Error("something was written")
			}
			if want := map[bool]string{true: "/dev/vda6"}[test.told != 0]; device != want {
				t.Errorf("device = %q, want %q", device, want)
			}
			if v.allow >= 0 {
				// Once more without the failure comes to the end.
				v.allow = -1
				if again, _, err := growPartition(context.Background(), v.Host(), vmDisk{v.image, v}, namedDisk{"/dev/disk/by-id/x", "254:0"}, test.number, test.options); err != nil || !again.Changed || v.root.size != grown {
					t.Errorf("once more: %+v, %v, the kernel has %d bytes", again, err, v.root.size)
				}
			}
		})
	}
}

func (v *vm) remove(name string) {
	v.t.Helper()
	if err := os.RemoveAll(v.Path(name)); err != nil {
		v.t.Fatal(err)
	}
}

func (v *vm) forget(partitions ...string) {
	v.t.Helper()
	for _, name := range partitions {
		v.remove("/sys/devices/" + vdaPath + "/" + name)
	}
}

// A physical volume grows along; a partition that is none, and a machine without
// LVM, are no error (G7).
func TestGrowVolume(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		missing       bool
		pvs, pvresize int // exit codes
		ran           string
		want          string
	}{
		"no LVM":       {missing: true},
		"no volume":    {pvs: 5, ran: "pvs"},
		"volume":       {ran: "pvs pvresize"},
		"pvs fails":    {pvs: 3, ran: "pvs", want: "cannot grow the LVM physical volume on /dev/vda2: `lvm pvs` failed"},
		"resize fails": {pvresize: 5, ran: "pvs pvresize", want: "cannot grow the LVM physical volume on /dev/vda2: `lvm pvresize` failed"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			machine := hosttest.New(t)
			var ran []string
			if !test.missing {
				machine.Write("/usr/sbin/lvm", "")
			}
			machine.Program("/usr/sbin/lvm", func(c host.Command) (string, error) {
				ran = append(ran, c.Args[0])
				code := map[string]int{"pvs": test.pvs, "pvresize": test.pvresize}[c.Args[0]]
				if code == 0 && c.Args[len(c.Args)-1] == "/dev/vda2" {
					return "", nil
				}
				return "", &host.CommandError{Command: c.String(), ExitCode: code, Err: errors.New("exit status")}
			})
			err := growVolume(context.Background(), machine.Host(), "/dev/vda2")
			if (err == nil) != (test.want == "") || err != nil && !strings.HasPrefix(err.Error(), test.want) {
				t.Errorf("error = %v, want %q", err, test.want)
			}
			if got := strings.Join(ran, " "); got != test.ran {
				t.Errorf("ran %q, want %q", got, test.ran)
			}
		})
	}
}

// A file is a disk of whole 512-byte sectors; what is no disk is not opened (a
// pipe would block).
func TestOpenDisk(t *testing.T) {
	t.Parallel()
	folder := t.TempDir()
	path := filepath.Join(folder, "image")
	if err := os.WriteFile(path, make([]byte, 1000), 0o600); err != nil {
		t.Fatal(err)
	}
	link, pipe := filepath.Join(folder, "link"), filepath.Join(folder, "pipe")
	if err := errors.Join(os.Symlink(path, link), unix.Mkfifo(pipe, 0o600)); err != nil {
		t.Fatal(err)
	}
	d, err := linux{}.openDisk(link)
	if err != nil {
		t.Fatal(err)
	}
	if d.Size() != 512 || d.SectorSize() != 512 {
		t.Errorf("%d bytes in sectors of %d, want 512 in 512", d.Size(), d.SectorSize())
	}
	sector := bytes.Repeat([]byte{7}, 512)
	_, err = d.WriteAt(sector, 0)
	if err := errors.Join(err, d.Sync(), d.ResizePartition(1, 0, 512), d.Close()); err != nil {
		t.Error(err)
	}
	if got, err := os.ReadFile(path); err != nil || !bytes.Equal(got, append(sector, make([]byte, 488)...)) {
		t.Errorf("the file has %x, %v", got, err)
	}
	for _, path := range []string{folder, pipe, "/dev/null", filepath.Join(folder, "none")} {
		if d, err := (linux{}).openDisk(path); err == nil {
			t.Errorf("opened %s: %v", path, d)
		}
	}
}

// loop attaches an image to a loop device and makes its partitions known to the
// kernel.
func loop(t *testing.T, size int64, sector int, script string) (device string, grow func(size int64)) {
	t.Helper()
	d := openImage(t, size, "")
	device = strings.TrimSpace(tool(t, "", "losetup", "--find", "--show", "--sector-size", strconv.Itoa(sector), d.Name()))
	// The kernel keeps partitions when the device is detached, and does not give
	// up one that some other program looks at just then.
	forget := func() { _ = exec.Command("partx", "--delete", device).Run() }
	t.Cleanup(func() {
		forget()
		tool(t, "", "losetup", "--detach", device)
	})
	forget()
	tool(t, script, "sfdisk", "--quiet", "--no-tell-kernel", "--no-reread", device)
	tool(t, "", "partx", "--update", device)
	return device, func(size int64) {
		d.truncate(t, size)
		tool(t, "", "losetup", "--set-capacity", device)
	}
}

// kernelSizes returns the sizes of the kernel's partitions of a device, by number.
func kernelSizes(t *testing.T, device string) map[int]int64 {
	t.Helper()
	info, err := os.Stat(device)
	if err != nil {
		t.Fatal(err)
	}
	number := info.Sys().(*syscall.Stat_t).Rdev
	parts, err := kernelPartitions(host.New(), namedDisk{device, fmt.Sprintf("%d:%d", unix.Major(number), unix.Minor(number))})
	if err != nil {
		t.Fatal(err)
	}
	sizes := map[int]int64{}
	for _, p := range parts {
		sizes[p.number] = p.size
	}
	return sizes
}

// On block devices of both sector sizes and with both kinds of table the kernel
// has the new size at once, whatever the device is called, and the original comes
// to the same (G1, G3, G13).
func TestBlockDevice(t *testing.T) {
	t.Parallel()
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("this test needs root to attach loop devices")
		}
		t.Skip("this test needs root to attach loop devices")
	}
	theirs, link := original(t), linked(t)
	for _, label := range []string{"dos", "gpt"} {
		for _, sector := range []int64{512, 4096} {
			t.Run(fmt.Sprintf("%s, %d", label, sector), func(t *testing.T) {
				t.Parallel()
				script := "label: " + label + "\nsize=20MiB\nsize=20MiB\n"
				device, grow := loop(t, 64*mib, int(sector), script)
				other, growOther := loop(t, 64*mib, int(sector), script)
				name := filepath.Join(t.TempDir(), "by-id")
				if err := os.Symlink(device, name); err != nil {
					t.Fatal(err)
				}
				expect := func(want said, args ...string) {
					t.Helper()
					if got, errs := callGrowpart(t, link, args...); got != want {
						t.Errorf("growpart %v: %+v, want %+v\n%s", args, got, want, errs)
					}
				}
				f := formula{number: 2, sector: sector, fudge: mib}
				size := func(bytes int64) {
					grow(bytes)
					f.sectors = bytes / sector
				}
				has := func(bytes int64) {
					t.Helper()
					if got := kernelSizes(t, device); got[1] != 20*mib || got[2] != bytes {
						t.Errorf("the kernel has %v, want %d for 2", got, bytes)
					}
				}

				size(200 * mib)
				f.dry = true
				expect(f.apply(t, device, ours), "-N", name, "2")
				has(20 * mib)
				f.dry = false
				expect(f.apply(t, device, ours), "--update", "on", name, "2")
				has(partsOf(t, device)[2].Size * sector)
				growOther(200 * mib)
				candidates := []said{f.apply(t, other, release33), f.apply(t, other, release34)}
				if got, errs := callGrowpart(t, theirs, other, "2"); !slices.Contains(candidates, got) {
					t.Errorf("the original: %+v, by its formula %+v\n%s", got, candidates, errs)
				}
				if a, b := kernelSizes(t, other)[2], kernelSizes(t, device)[2]; a < b || a >= b+mib {
					t.Errorf("after the original the kernel has %d bytes, after ours %d", a, b)
				}
				expect(f.apply(t, device, ours), name, "2")

				// Told later.
				size(300 * mib)
				old := kernelSizes(t, device)[2]
				expect(f.apply(t, device, ours), "--update=off", name, "2")
				has(old)
				p := partsOf(t, device)[2]
				expect(said{fmt.Sprintf("CHANGED: partition=2 start=%d old: size=%d end=%d new: size=%d end=%d",
					p.Start, old/sector, p.Start+old/sector-1, p.Size, p.Start+p.Size-1), 0}, name, "2")
				has(p.Size * sector)

				// A partition in use that the table no longer has.
				tool(t, "", "sfdisk", "--quiet", "--no-tell-kernel", "--no-reread", "--delete", device, "2")
				got, _ := callGrowpart(t, link, name, "1")
				if got.code != 2 || !strings.HasPrefix(got.line, "FAILED: the kernel has partition 2 at byte ") {
					t.Errorf("growing over a partition of the kernel: %+v", got)
				}
				if p := partsOf(t, device)[1]; p.Size*sector != 20*mib {
					t.Errorf("partition 1 has %d sectors", p.Size)
				}
			})
		}
	}
}
