// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"encoding/base64"
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// machines are machines of every hypervisor, with what each says of itself.
func machines(t *testing.T) map[Hypervisor]*hosttest.Machine {
	kvm := newMachine(t)
	kvm.Write("/sys/class/dmi/id/sys_vendor", "QEMU\n")
	return map[Hypervisor]*hosttest.Machine{KVM: kvm, VMware: newVMware(t), XenPV: newXen(t, "PV", nil), XenHVM: newXen(t, "HVM", nil),
		HyperV: newHyperV(t, "hv-kvp-daemon.service"), VirtualBox: newVirtualBox(t), Unknown: hosttest.New(t)}
}

func TestOverrideOnEveryHypervisor(t *testing.T) {
	t.Parallel()
	for hypervisor, m := range machines(t) {
		t.Run(string(hypervisor), func(t *testing.T) {
			t.Parallel()
			m.Write(overrideFile, testArgs)
			writeAt(t, m, strings.Replace(testArgs, "n1", "host", 1), 0)
			args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
			if err != nil || args.Name() != "n1" || source.Name != SourceOverride || source.Hypervisor != hypervisor {
				t.Errorf("got %v, %+v, %v; want the override", args, source, err)
			}
			if got := m.Read(CmdlineFile); got != testArgs {
				t.Errorf("%s = %q, want the override", CmdlineFile, got)
			}
			// Whoever waits for a carrier, waits in vain no more.
			if hypervisor == KVM && !strings.Contains(m.String(), guestAgent+": disabled active") {
				t.Errorf("machine:\n%s\nwant the guest agent started (C3)", m)
			}
		})
	}
}

func TestOverrideThatIsNone(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	if err := os.MkdirAll(m.Path(overrideFile), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := readOverride(t.Context(), m.Host()); err == nil || !strings.Contains(err.Error(), "no file "+overrideFile) {
		t.Errorf("of a folder: %v", err)
	}
	if err := os.Remove(m.Path(overrideFile)); err != nil {
		t.Fatal(err)
	}
	m.Write(overrideFile, " \n\x00")
	if _, err := readOverride(t.Context(), m.Host()); err == nil || !strings.Contains(err.Error(), "empty") {
		t.Errorf("of blanks: %v", err)
	}
}

// The Proxmox extension sends base64, for QEMU's own command line.
func TestFWCfgForms(t *testing.T) {
	t.Parallel()
	encoded := base64.StdEncoding.EncodeToString([]byte(testArgs))
	for _, test := range []struct{ name, text, want string }{
		{"plain", testArgs, testArgs},
		{"base64", encoded, testArgs},
		{"base64 with a newline and a NUL", encoded + "\n\x00", testArgs},
		{"base64 of something else stays as it is", "aGVsbG8=", "aGVsbG8="},
		{"neither", "hello world", "hello world"},
		{"no base64 that has a type", "type=router" + strings.Repeat("=", 4), "type=router===="},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := decodeFWCfg(test.text); got != test.want {
				t.Errorf("got %q, want %q", got, test.want)
			}
		})
	}
	m := newMachine(t)
	m.Write(fwCfgFile, encoded)
	args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	if err != nil || args.Name() != "n1" || source.Name != SourceFWCfg || m.Read(CmdlineFile) != testArgs {
		t.Errorf("got %v, %+v, %v, file %q", args, source, err, m.Read(CmdlineFile))
	}
	// fw_cfg is there: no module to load.
	for _, action := range m.Actions() {
		if strings.Contains(action, "modprobe") {
			t.Errorf("did %q", action)
		}
	}
}

// Every report says what is awaited, for status (C3).
func TestReports(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		text string
		age  time.Duration
		want []string
	}{
		{"nothing yet", "", 0, []string{"looking for them: fw_cfg", "for the host to write them through the guest agent"}},
		{"those of an earlier boot", testArgs, longAgo, []string{"through the guest agent anew; those of an earlier boot are there"}},
		{"a part", " name=n1", 0, []string{"waiting for the host to write them through the guest agent to the end"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newMachine(t)
			h := m.Host()
			job := make(chan string, 1)
			h.Units = slowUnits{h.Units, job}
			if test.text != "" {
				writeAt(t, m, test.text, test.age)
			}
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			wanted := append(test.want, "("+guestAgent+" is active)")
			var all string
			report := func(format string, args ...any) {
				text := fmt.Sprintf(format, args...)
				all += text + "\n"
				if !slices.ContainsFunc(wanted, func(want string) bool { return !strings.Contains(all, want) }) {
					cancel() // that was all
				}
				if strings.HasPrefix(text, "waiting") && len(job) == 0 {
					select {
					case job <- "done":
					default:
					}
				}
			}
			_, _, _ = AwaitBootArgs(ctx, h, AwaitOptions{}, report)
			for _, want := range wanted {
				if !strings.Contains(all, want) {
					t.Errorf("reports\n%s\nlack %q", all, want)
				}
			}
		})
	}
}

func TestSourceString(t *testing.T) {
	t.Parallel()
	at := time.Date(2026, 11, 20, 12, 0, 5, 0, time.UTC)
	for _, test := range []struct {
		source Source
		want   string
	}{
		{Source{Name: SourceGuestAgent, Hypervisor: KVM, Written: at, Age: -3200 * time.Millisecond},
			"from guest agent on kvm, 3 s into this boot (2026-11-20 12:00:05 UTC)"},
		{Source{Name: SourceFile, Hypervisor: Unknown, Written: at, Age: 500 * time.Millisecond, Note: "a note"},
			"from file on unknown, 2026-11-20 12:00:05 UTC; a note"},
		{Source{Name: SourcePersisted, Hypervisor: HyperV, Stale: true, Written: at, Age: 90 * time.Minute},
			"persisted from an earlier boot (hyperv), written 2026-11-20 12:00:05 UTC, 90 min before this one"},
		{Source{Name: SourcePersisted, Hypervisor: KVM, Stale: true, Written: at, Age: 26 * time.Hour},
			"persisted from an earlier boot (kvm), written 2026-11-20 12:00:05 UTC, 26 h before this one"},
		{Source{Name: SourcePersisted, Hypervisor: KVM, Stale: true, Written: at, Age: 30 * 24 * time.Hour},
			"persisted from an earlier boot (kvm), written 2026-11-20 12:00:05 UTC, 30 days before this one"},
	} {
		if got := test.source.String(); got != test.want {
			t.Errorf("got  %s\nwant %s", got, test.want)
		}
	}
}

// Of every hypervisor's places, what holds no boot args shows nothing of itself
// in the error.
func TestNoSecretInErrors(t *testing.T) {
	t.Parallel()
	const planted = "hunter2-and-more"
	for hypervisor, m := range machines(t) {
		t.Run(string(hypervisor), func(t *testing.T) {
			t.Parallel()
			m.Write(kvpPool, string(kvpRecord("other", planted, planted)))
			m.Write(dmiTable, string(structure(11, []byte{1}, planted)[:12]))
			m.Write(fwCfg+"/by_name/other", planted)
			m.Write(kernelCmdline, "password="+planted)
			m.Program(vmtoolsd, func(host.Command) (string, error) { return planted, nil })
			_, source, err := AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
			if err == nil {
				t.Fatalf("got %+v", source)
			}
			if strings.Contains(err.Error(), planted) {
				t.Errorf("secret shown in %v", err)
			}
		})
	}
}
