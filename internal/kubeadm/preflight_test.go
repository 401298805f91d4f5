// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"errors"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// Flags of /proc/cpuinfo, shortened: QEMU's default CPU of CloudStack's KVM hosts and
// one handed through.
const (
	oldCPU = "processor\t: 0\nmodel name\t: QEMU Virtual CPU version 2.5+\nflags\t\t: fpu de sse sse2 ht syscall nx lm nopl cpuid pni cx16 hypervisor lahf_lm svm 3dnowprefetch vmmcall\n"
	v2CPU  = "processor\t: 0\nflags\t\t: fpu sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm avx\n"
	v3CPU  = "processor\t: 0\nflags\t\t: fpu sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm avx avx2 bmi1 bmi2 f16c fma abm movbe xsave\n"
	v4CPU  = "processor\t: 0\nflags\t\t: fpu sse2 pni ssse3 cx16 sse4_1 sse4_2 popcnt lahf_lm avx avx2 bmi1 bmi2 f16c fma abm movbe xsave avx512f avx512bw avx512cd avx512dq avx512vl\n"
	armCPU = "processor\t: 0\nBogoMIPS\t: 125.00\nFeatures\t: fp asimd evtstrm\n"
)

func TestParseCPUs(t *testing.T) {
	t.Parallel()
	for text, want := range map[string][2]int{
		oldCPU: {1, 1}, v2CPU: {1, 2}, v3CPU + "\n" + v3CPU: {2, 3}, v4CPU: {1, 4}, armCPU + armCPU + armCPU: {3, 0}, "": {0, 0},
	} {
		if cpus, level := parseCPUs(text); cpus != want[0] || level != want[1] {
			t.Errorf("%d CPUs of level %d, want %d of level %d:\n%s", cpus, level, want[0], want[1], text)
		}
	}
}

func fitMachine() Machine {
	return Machine{CPUs: 2, Level: 3, Memory: 2 << 30, MachineID: strings.Repeat("4a", 16), CgroupV2: true, Containerd: "1.7.24~ds1", Free: 8 << 30}
}

func faultCodes(errs []error) (codes []string) {
	for _, err := range errs {
		codes = append(codes, string(fault.As(err).Code))
	}
	return codes
}

// C31, K10: every failure and every warning at once.
func TestUnfit(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		change             func(*Machine)
		worker             bool
		ignored            []string
		failures, warnings []string
	}{
		"fit":      {change: func(*Machine) {}},
		"one CPU":  {change: func(m *Machine) { m.CPUs = 1 }, failures: []string{"machine-too-small"}},
		"worker":   {change: func(m *Machine) { m.CPUs, m.Memory = 1, 1<<30 }, worker: true},
		"ignored":  {change: func(m *Machine) { m.CPUs, m.Memory = 1, 1<<30 }, ignored: []string{"numcpu", "Mem"}},
		"all":      {change: func(m *Machine) { m.CPUs, m.Memory = 1, 1<<30 }, ignored: []string{"all"}},
		"memory":   {change: func(m *Machine) { m.Memory = 1699 << 20 }, failures: []string{"machine-too-small"}},
		"swap":     {change: func(m *Machine) { m.Swaps = []string{"/dev/vda5"} }, worker: true, failures: []string{"host-settings-failed"}},
		"no id":    {change: func(m *Machine) { m.MachineID = "uninitialized" }, worker: true, failures: []string{"machine-id-invalid"}},
		"old CPU":  {change: func(m *Machine) { m.Level = 1 }, warnings: []string{"cpu-level-low"}},
		"arm64":    {change: func(m *Machine) { m.Level = 0 }},
		"all ill":  {change: func(m *Machine) { *m = Machine{CPUs: 1, Level: 1, Swaps: []string{"/swapfile"}} }, failures: []string{"machine-too-small", "machine-too-small", "host-settings-failed", "machine-id-invalid"}, warnings: []string{"cpu-level-low"}},
		"no clock": {change: func(m *Machine) { m.ClockSet = false }},
	} {
		m := fitMachine()
		test.change(&m)
		failures, warnings := m.Unfit(!test.worker, test.ignored)
		if got := faultCodes(failures); !slices.Equal(got, test.failures) {
			t.Errorf("%s: failures %v, want %v", name, got, test.failures)
		}
		if got := faultCodes(warnings); !slices.Equal(got, test.warnings) {
			t.Errorf("%s: warnings %v, want %v", name, got, test.warnings)
		}
	}
}

// C23, C37: the ISO against this machine.
func TestUnfitFor(t *testing.T) {
	t.Parallel()
	const gib = 1 << 30
	for name, test := range map[string]struct {
		change             func(*Machine)
		version            string
		images             int64
		failures, warnings []string
	}{
		"fit":                   {change: func(*Machine) {}, version: "v1.34.4", images: 2 * gib},
		"disk":                  {change: func(m *Machine) { m.Free = 7*gib - 1 }, version: "1.34.4", images: 2 * gib, failures: []string{"disk-space-low"}},
		"disk, half there":      {change: func(m *Machine) { m.Free, m.Blobs = 5*gib, gib }, version: "1.34.4", images: 2 * gib},
		"disk, more than there": {change: func(m *Machine) { m.Free, m.Blobs = 2*gib, 9*gib }, version: "1.34.4", images: 2 * gib},
		"old containerd":        {change: func(m *Machine) { m.Containerd = "1.4.13" }, version: "1.26.0", failures: []string{"runtime-unfit"}},
		"both old":              {change: func(m *Machine) { m.Containerd = "1.4.13" }, version: "1.25.9"},
		"old kubelet":           {change: func(m *Machine) { m.Containerd = "2.1.0" }, version: "1.22.17", failures: []string{"runtime-unfit"}},
		"last of containerd 1":  {change: func(*Machine) {}, version: "1.35.1"},
		"new kubelet":           {change: func(*Machine) {}, version: "1.36.0", warnings: []string{"runtime-unfit"}},
		"both new":              {change: func(m *Machine) { m.Containerd = "2.1.0" }, version: "1.36.0"},
		"cgroup v1":             {change: func(m *Machine) { m.CgroupV2 = false }, version: "1.35.0", failures: []string{"runtime-unfit"}},
		"old cgroup v1":         {change: func(m *Machine) { m.CgroupV2 = false }, version: "1.34.0"},
		"no version":            {change: func(m *Machine) { m.Containerd = "nightly" }, version: "1.34.0", failures: []string{"runtime-unfit"}},
	} {
		m := fitMachine()
		test.change(&m)
		failures, warnings := m.UnfitFor(test.version, test.images)
		if got := faultCodes(failures); !slices.Equal(got, test.failures) {
			t.Errorf("%s: failures %v, want %v", name, failures, test.failures)
		}
		if got := faultCodes(warnings); !slices.Equal(got, test.warnings) {
			t.Errorf("%s: warnings %v, want %v", name, got, test.warnings)
		}
	}
}

func TestReadMachine(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	m.Program(containerdProgram, func(host.Command) (string, error) { return "nothing", nil })
	_, err := ReadMachine(t.Context(), m.Host())
	for _, word := range []string{"/proc/cpuinfo", "/proc/meminfo", `version of containerd: it says "nothing"`} {
		if err == nil || !strings.Contains(err.Error(), word) {
			t.Errorf("an empty machine: %v, want %s", err, word)
		}
	}
	m.Write("/proc/cpuinfo", v2CPU)
	m.Write("/proc/meminfo", "MemTotal:        2030988 kB\nMemFree:          100000 kB\n")
	m.Write("/etc/machine-id", strings.Repeat("4a", 16)+"\n")
	m.Write("/sys/fs/cgroup/cgroup.controllers", "cpu memory")
	m.AddSwap("/dev/vda5")
	m.Write(containerdFolder+"/io.containerd.content.v1.content/blobs/sha256/aa", strings.Repeat("x", 1000))
	// As Debian's package says it.
	m.Program(containerdProgram, func(host.Command) (string, error) {
		return "containerd github.com/containerd/containerd 1.6.20~ds1 1.6.20~ds1-1+deb12u1\n", nil
	})
	got, err := ReadMachine(t.Context(), m.Host())
	if err != nil {
		t.Fatal(err)
	}
	if got.Free <= 0 {
		t.Errorf("%d bytes free", got.Free)
	}
	got.Free, got.ClockSet = 0, false
	want := Machine{CPUs: 1, Level: 2, Memory: 2030988 << 10, MachineID: strings.Repeat("4a", 16), Swaps: []string{"/dev/vda5"},
		CgroupV2: true, Containerd: "1.6.20~ds1", Blobs: 1000}
	if !slices.Equal(got.Swaps, want.Swaps) || got.String() != want.String() || got.MachineID != want.MachineID || got.Containerd != want.Containerd ||
		got.Blobs != want.Blobs || got.CgroupV2 != want.CgroupV2 {
		t.Errorf("%+v, want %+v", got, want)
	}
	m.Program(containerdProgram, func(host.Command) (string, error) { return "", errors.New("exit status 1") })
	if _, err := ReadMachine(t.Context(), m.Host()); err == nil || fault.As(err).Code != fault.HostSettingsFailed {
		t.Errorf("without containerd: %v", err)
	}
}
