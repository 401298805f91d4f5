// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"math"
	"path/filepath"
	"strconv"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// volume is a linear LVM volume, all of it on one partition, which is its
// physical volume (PV). Both consist of extents.
type volume struct {
	name    string // group/volume
	extents int64
	extent  int64 // bytes of one
	pv      struct {
		start   int64 // byte of the partition where the first extent begins
		extents int64
		free    int64 // extents no volume has
	}
}

// readVolume asks LVM about the volume at a place.
func readVolume(ctx context.Context, h *host.Host, at place) (*volume, error) {
	if lvmProgram(h) == "" {
		return nil, unsupported("the file system is on %s, and the lvm tools are not installed (package lvm2)", at.volume.stack)
	}
	out, err := lvm(ctx, h, "pvs", "--reportformat", "json", "--units", "b", "--nosuffix",
		"--options", "pv_attr,pv_mda_count,pe_start,pv_pe_count,pv_pe_alloc_count,vg_name,vg_uuid,vg_attr,vg_extent_size,"+
			"lv_name,lv_uuid,lv_attr,lv_size,segtype,pvseg_size", at.partition)
	if err != nil {
		return nil, fault.Wrap(fault.DiskGrowFailed, err, "cannot learn about %s", at.volume.stack)
	}
	v, err := parseVolume(out, at.volume.uuid)
	if err != nil {
		return nil, fault.Wrap(fault.DiskUnsupported, err, "cannot grow %s", at.volume.stack)
	}
	if v.size() != at.volume.size {
		return nil, fault.New(fault.DiskGrowFailed, "the kernel has %s with %d bytes, LVM has it with %d", at.volume.stack, at.volume.size, v.size()).
			WithHint("Reboot, or run `lvchange --refresh %s`, to make them agree.", v.name)
	}
	return v, nil
}

// lvmRow is one area of a PV, with the volume it belongs to, as `lvm pvs` reports
// it. All values are text there.
type lvmRow struct {
	PVAttr    string `json:"pv_attr"`
	PVAreas   string `json:"pv_mda_count"`
	PVStart   string `json:"pe_start"`
	PVExtents string `json:"pv_pe_count"`
	PVUsed    string `json:"pv_pe_alloc_count"`
	VGName    string `json:"vg_name"`
	VGUUID    string `json:"vg_uuid"`
	VGAttr    string `json:"vg_attr"`
	VGExtent  string `json:"vg_extent_size"`
	LVName    string `json:"lv_name"`
	LVUUID    string `json:"lv_uuid"`
	LVAttr    string `json:"lv_attr"`
	LVSize    string `json:"lv_size"`
	Segment   string `json:"segtype"`
	Extents   string `json:"pvseg_size"`
}

// parseVolume reads a report on one PV and finds the volume with the uuid the
// kernel knows it by. It refuses all that a volume on this PV alone is not.
func parseVolume(report []byte, uuid string) (*volume, error) {
	var parsed struct {
		Report []struct {
			PV []lvmRow `json:"pv"`
		} `json:"report"`
	}
	if err := json.Unmarshal(report, &parsed); err != nil {
		return nil, fmt.Errorf("cannot read the report of `lvm pvs`: %w", err)
	}
	if len(parsed.Report) != 1 {
		return nil, fmt.Errorf("`lvm pvs` gives %d reports, want one", len(parsed.Report))
	}
	var areas []lvmRow // of the volume
	var inAreas int64  // extents
	for _, row := range parsed.Report[0].PV {
		if "LVM-"+strings.ReplaceAll(row.VGUUID+row.LVUUID, "-", "") != uuid {
			continue
		}
		if row.Segment != "linear" {
			return nil, fmt.Errorf("one of its areas is %q, not linear", row.Segment)
		}
		extents, err := lvmNumber("pvseg_size", row.Extents, extentBits)
		if err != nil {
			return nil, err
		}
		areas, inAreas = append(areas, row), inAreas+extents
	}
	if len(areas) == 0 {
		return nil, fmt.Errorf("`lvm pvs` does not know the volume %s there", uuid)
	}
	row := areas[0]
	if err := checkAttributes(row); err != nil {
		return nil, err
	}
	if !isLVMName(row.VGName) || !isLVMName(row.LVName) {
		return nil, fmt.Errorf("`lvm pvs` gives it the name %q in the group %q", row.LVName, row.VGName)
	}

	v := volume{name: row.VGName + "/" + row.LVName, extents: inAreas}
	var metadataAreas, used, size int64
	for _, number := range []struct {
		field, text string
		bits        int
		to          *int64
	}{
		{"vg_extent_size", row.VGExtent, sizeBits, &v.extent},
		{"lv_size", row.LVSize, sizeBits, &size},
		{"pe_start", row.PVStart, sizeBits, &v.pv.start},
		{"pv_mda_count", row.PVAreas, extentBits, &metadataAreas},
		{"pv_pe_count", row.PVExtents, extentBits, &v.pv.extents},
		{"pv_pe_alloc_count", row.PVUsed, extentBits, &used},
	} {
		var err error
		if *number.to, err = lvmNumber(number.field, number.text, number.bits); err != nil {
			return nil, err
		}
	}
	v.pv.free = v.pv.extents - used
	switch {
	case v.extent == 0 || v.pv.extents > math.MaxInt64/v.extent || used > v.pv.extents || inAreas > used:
		return nil, fmt.Errorf("`lvm pvs` gives %d of %d extents of %d bytes, of which %d are used", inAreas, v.pv.extents, v.extent, used)
	case metadataAreas > 1:
		return nil, errors.New("its physical volume has a copy of the metadata at the end")
	case v.size() != size:
		return nil, fmt.Errorf("only %d of its %d bytes are on this partition", v.size(), size)
	}
	return &v, nil
}

// checkAttributes refuses what is not in its plain state. The letters are those
// of pvs(8), vgs(8) and lvs(8).
func checkAttributes(row lvmRow) error {
	for _, attribute := range []struct{ field, text, want, letters string }{
		{"physical volume", row.PVAttr, "allocatable, neither exported nor missing", "a,-,-"},
		{"volume group", row.VGAttr, "writable, resizable, local, whole, and allocates anywhere", "w,z,-,-,nla,-"},
		{"volume", row.LVAttr, "writable, active, whole, of no special type, and allocates anywhere", "-,w,inla,*,a,*,-,*,-"},
	} {
		for i, letters := range strings.Split(attribute.letters, ",") {
			if i >= len(attribute.text) || letters != "*" && !strings.Contains(letters, attribute.text[i:i+1]) {
				return fmt.Errorf("its %s has the attributes %q, want one that is %s", attribute.field, attribute.text, attribute.want)
			}
		}
	}
	return nil
}

const (
	extentBits = 32 // LVM's metadata counts extents with as many
	sizeBits   = 62 // of sizes in bytes
)

func lvmNumber(field, text string, bits int) (int64, error) {
	n, err := strconv.ParseUint(text, 10, bits)
	if err != nil {
		return 0, fmt.Errorf("`lvm pvs` gives the %s as %q, want a number below 2^%d", field, text, bits)
	}
	return int64(n), nil
}

// isLVMName says whether a name is one lvm(8) allows, which no program can take
// for an option.
func isLVMName(name string) bool {
	const allowed = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789+_.-"
	return name != "" && name[0] != '-' && strings.Trim(name, allowed) == ""
}

func (v *volume) size() int64 { return v.extents * v.extent }

// added returns how many extents the PV gains in a partition of the given size.
func (v *volume) added(partition int64) int64 {
	return max(0, (partition-v.pv.start)/v.extent-v.pv.extents)
}

// fit returns the size in bytes the volume can have in a partition of the given
// size: with all that no other volume has.
func (v *volume) fit(partition int64) int64 {
	return (v.extents + v.pv.free + v.added(partition)) * v.extent
}

// resize makes the PV fill its partition, which has the given size, and the
// volume grow to the size in bytes. The volume's size is given whole, so that it
// does not matter how far an earlier run came.
func (v *volume) resize(ctx context.Context, h *host.Host, at place, partition, bytes int64) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	// A program killed between suspending and resuming the root's device would
	// leave the machine without it.
	ctx = context.WithoutCancel(ctx)
	if v.added(partition) > 0 {
		if _, err := lvm(ctx, h, "pvresize", at.partition); err != nil {
			return err
		}
	}
	_, err := lvm(ctx, h, "lvextend", "--extents", strconv.FormatInt(bytes/v.extent, 10), v.name, at.partition)
	return err
}

// lvmProgram returns where lvm is; "" if it is not installed.
func lvmProgram(h *host.Host) string {
	for _, folder := range filepath.SplitList(host.Path) {
		if path := filepath.Join(folder, "lvm"); h.Exists(path) {
			return path
		}
	}
	return ""
}

// lvm runs a command of lvm(8).
func lvm(ctx context.Context, h *host.Host, args ...string) ([]byte, error) {
	out, err := h.Run.Run(ctx, host.Command{Path: lvmProgram(h), Args: args})
	if failed := (*host.CommandError)(nil); errors.As(err, &failed) {
		return nil, fault.Wrap(fault.DiskGrowFailed, err, "`lvm %s` failed", args[0]).WithLog(failed.Tail)
	}
	return out, err
}
