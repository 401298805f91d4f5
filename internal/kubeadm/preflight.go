// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Machine is what of this machine decides whether Kubernetes can run on it.
type Machine struct {
	CPUs       int
	Level      int   // of x86-64: 1 to 4 (x86-64 psABI, microarchitecture levels); 0 on other processors
	Memory     int64 // bytes
	MachineID  string
	Swaps      []string // what is swapped to
	CgroupV2   bool
	ClockSet   bool   // the kernel was told that the clock is synchronised
	Containerd string // 1.7.28
	Free       int64  // bytes of disk for containerd
	Blobs      int64  // bytes of images that containerd has already
}

// Where containerd keeps images and containers.
const containerdFolder = "/var/lib/containerd"

// ReadMachine reads the facts. Those that cannot be read are errors, all of them at
// once.
func ReadMachine(ctx context.Context, h *host.Host) (Machine, error) {
	var m Machine
	var problems []error
	read := func(file string) string {
		text, err := h.ReadFile(file)
		if err != nil {
			problems = append(problems, err)
		}
		return string(text)
	}
	m.CPUs, m.Level = parseCPUs(read("/proc/cpuinfo"))
	m.Memory = parseMemory(read("/proc/meminfo"))
	if id, err := h.ReadFile("/etc/machine-id"); err == nil || !errors.Is(err, fs.ErrNotExist) {
		m.MachineID = strings.TrimSpace(string(id))
	}
	m.CgroupV2 = h.Exists("/sys/fs/cgroup/cgroup.controllers")
	m.ClockSet = clockSet()
	var err error
	if m.Swaps, err = h.Swaps(); err != nil {
		problems = append(problems, err)
	}
	if m.Containerd, err = containerdVersion(ctx, h); err != nil {
		problems = append(problems, err)
	}
	if m.Free, m.Blobs, err = readSpace(h); err != nil {
		problems = append(problems, err)
	}
	if err := errors.Join(problems...); err != nil {
		return m, fault.Wrap(fault.HostSettingsFailed, err, "cannot look at this machine")
	}
	return m, nil
}

// clockSet asks the kernel whether a time service has set the clock: adjtimex(2).
func clockSet() bool {
	state, err := unix.ClockAdjtime(unix.CLOCK_REALTIME, &unix.Timex{})
	return err == nil && state != unix.TIME_ERROR
}

// levels are the flags of /proc/cpuinfo that each level of x86-64 adds, from 2 on.
var levels = [...][]string{
	{"cx16", "lahf_lm", "popcnt", "pni", "sse4_1", "sse4_2", "ssse3"},
	{"abm", "avx", "avx2", "bmi1", "bmi2", "f16c", "fma", "movbe", "xsave"},
	{"avx512f", "avx512bw", "avx512cd", "avx512dq", "avx512vl"},
}

// parseCPUs reads /proc/cpuinfo.
func parseCPUs(text string) (cpus, level int) {
	for line := range strings.Lines(text) {
		name, value, _ := strings.Cut(line, ":")
		switch strings.TrimSpace(name) {
		case "processor":
			cpus++
		case "flags":
			flags := strings.Fields(value)
			for level = 1; level <= len(levels); level++ {
				if slices.ContainsFunc(levels[level-1], func(flag string) bool { return !slices.Contains(flags, flag) }) {
					break
				}
			}
		}
	}
	return cpus, level
}

// parseMemory reads MemTotal of /proc/meminfo.
func parseMemory(text string) (bytes int64) {
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) == 3 && fields[0] == "MemTotal:" {
			kib, _ := strconv.ParseInt(fields[1], 10, 64) // the kernel writes a number
			return kib << 10
		}
	}
	return 0
}

var versionNumber = pattern(`\bv?(\d+\.\d+\.\d+\S*)`)

// containerdVersion runs containerd for its version, such as 1.6.20~ds1 of Debian.
func containerdVersion(ctx context.Context, h *host.Host) (string, error) {
	out, err := h.Run.Run(ctx, host.Command{Path: containerdProgram, Args: []string{"--version"}})
	if err != nil {
		return "", fmt.Errorf("cannot run containerd: %w", err)
	}
	match := versionNumber().FindSubmatch(out)
	if match == nil {
		return "", fmt.Errorf("cannot read the version of containerd: it says %.100q", out)
	}
	return string(match[1]), nil
}

// readSpace returns the free bytes for containerd and what of images it has.
func readSpace(h *host.Host) (free, blobs int64, err error) {
	folder := h.Path(containerdFolder)
	if err := os.MkdirAll(folder, 0o711); err != nil {
		return 0, 0, err
	}
	if free, err = freeSpace(folder); err != nil {
		return 0, 0, fmt.Errorf("cannot tell the free space of %s: %w", containerdFolder, err)
	}
	err = filepath.WalkDir(filepath.Join(folder, "io.containerd.content.v1.content/blobs"), func(_ string, entry fs.DirEntry, err error) error {
		if err != nil || !entry.Type().IsRegular() {
			return ignoreNotExist(err)
		}
		info, err := entry.Info()
		if err == nil {
			blobs += info.Size()
		}
		return ignoreNotExist(err) // containerd may be removing it
	})
	if err != nil {
		return 0, 0, fmt.Errorf("cannot tell what containerd has: %w", err)
	}
	return free, blobs, nil
}

// freeSpace returns the free bytes of a folder's file system.
func freeSpace(folder string) (int64, error) {
	var statfs unix.Statfs_t
	err := unix.Statfs(folder, &statfs)
	return int64(statfs.Bavail) * statfs.Bsize, err
}

func ignoreNotExist(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// What kubeadm asks of a control node: its preflight checks NumCPU and Mem
// (kubeadm/app/constants).
const (
	controlPlaneCPUs   = 2
	controlPlaneMemory = 1700 << 20
)

// Unfit says why this machine cannot become a node, before its ISO is known: every
// failure and every warning at once (pain-points C31, K10). ignored are kubeadm's
// checks that the userdata tells it to ignore.
func (m Machine) Unfit(controlPlane bool, ignored []string) (failures, warnings []error) {
	fail := func(code fault.Code, format string, args ...any) {
		failures = append(failures, fault.New(code, format, args...))
	}
	ignores := func(check string) bool {
		return slices.ContainsFunc(ignored, func(name string) bool {
			return strings.EqualFold(name, check) || strings.EqualFold(name, "all")
		})
	}
	if controlPlane && m.CPUs < controlPlaneCPUs && !ignores("NumCPU") {
		fail(fault.MachineTooSmall, "this machine has %d CPU; a control node needs %d", m.CPUs, controlPlaneCPUs)
	}
	if controlPlane && m.Memory < controlPlaneMemory && !ignores("Mem") {
		fail(fault.MachineTooSmall, "this machine has %d MiB of memory; a control node needs %d MiB", m.Memory>>20, int64(controlPlaneMemory)>>20)
	}
	if len(m.Swaps) > 0 && !ignores("Swap") {
		fail(fault.HostSettingsFailed, "%s is swapped to; kubelet refuses to start", strings.Join(m.Swaps, ", "))
	}
	if !machineID().MatchString(m.MachineID) {
		fail(fault.MachineIDInvalid, "/etc/machine-id holds %.40q; expected 32 hexadecimal digits", m.MachineID)
	}
	if m.Level == 1 {
		warnings = append(warnings, fault.New(fault.CPULevelLow, "the CPU that this machine sees is x86-64-v1; programs of network plugins such as Calico's ask for x86-64-v2"))
	}
	return failures, warnings
}

var machineID = pattern(`^[0-9a-f]{32}$`)

// String is what the machine has, for people.
func (m Machine) String() string {
	text := fmt.Sprintf("%d CPUs", m.CPUs)
	if m.Level > 0 {
		text += fmt.Sprintf(" (x86-64-v%d)", m.Level)
	}
	text += fmt.Sprintf(", %.1f GiB memory", float64(m.Memory)/(1<<30))
	if !m.ClockSet {
		text += ", clock not set by a time service"
	}
	return text
}

// freeBeside is what must stay free beside the images: logs, pods, etcd.
const freeBeside = 2 << 30

// UnfitFor says why this machine cannot run the Kubernetes version of an ISO with so
// many bytes of image archives (pain-points C23, C37), like Unfit.
func (m Machine) UnfitFor(version string, imageBytes int64) (failures, warnings []error) {
	// An image takes its archive's bytes, and once more or more unpacked; blobs that
	// are there have taken their share.
	if need := (imageBytes-min(m.Blobs, imageBytes))*5/2 + freeBeside; m.Free < need {
		failures = append(failures, fault.New(fault.DiskSpaceLow,
			"%s has %d MiB free; the ISO's images need %d MiB (2.5 times their %d MiB and 2 GiB beside)", containerdFolder, m.Free>>20, need>>20, imageBytes>>20))
	}
	_, kubelet, err := minorVersion(version)
	major, minor, wrong := minorVersion(m.Containerd)
	if err := errors.Join(err, wrong); err != nil {
		return append(failures, fault.Wrap(fault.RuntimeUnfit, err, "cannot compare kubelet with containerd")), nil
	}
	pair := fmt.Sprintf("kubelet %s and containerd %s", WithV(version), m.Containerd)
	// containerd.io/releases, Kubernetes Support.
	switch {
	case kubelet >= 26 && major == 1 && minor < 6:
		failures = append(failures, fault.New(fault.RuntimeUnfit, "%s do not speak the same CRI: kubelet 1.26 and newer need containerd 1.6 at least", pair))
	case kubelet < 23 && major >= 2:
		failures = append(failures, fault.New(fault.RuntimeUnfit, "%s do not speak the same CRI: containerd 2 needs kubelet 1.23 at least", pair))
	case kubelet >= 36 && major == 1:
		warnings = append(warnings, fault.New(fault.RuntimeUnfit, "%s: Kubernetes 1.35 was the last to support containerd 1", pair))
	}
	if kubelet >= 35 && !m.CgroupV2 {
		failures = append(failures, fault.New(fault.RuntimeUnfit, "kubelet %s does not start on cgroup v1, which this machine has", WithV(version)))
	}
	return failures, warnings
}
