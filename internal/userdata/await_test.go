// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

const testArgs = " template=domP name=n1 type=cksnode eth0ip=10.1.1.57 eth0mask=255.255.255.0 vmpassword=hunter2\n"

func quiet(string, ...any) {}

// soon keeps tests short that wait until nothing comes; long ones must be ended by
// an event.
func soon() AwaitOptions {
	return AwaitOptions{Wait: 300 * time.Millisecond, StaleGrace: 100 * time.Millisecond}
}

func newMachine(t *testing.T) *hosttest.Machine {
	m := hosttest.New(t)
	m.AddUnit(host.Unit{Name: guestAgent})
	return m
}

// writeAt puts the boot args there as written some time before or after now.
func writeAt(t *testing.T, m *hosttest.Machine, text string, offset time.Duration) {
	t.Helper()
	m.Write(CmdlineFile, text)
	at := time.Now().Add(offset)
	if err := os.Chtimes(m.Path(CmdlineFile), at, at); err != nil {
		t.Fatal(err)
	}
}

const longAgo = -100000 * time.Hour // before any machine that runs this was booted

// C4: new boot args are told from those a persistent disk kept.
func TestJudge(t *testing.T) {
	t.Parallel()
	booted := time.Date(2026, 11, 20, 12, 0, 0, 0, time.UTC)
	at := func(d time.Duration) delivered {
		return delivered{name: CmdlineFile, text: testArgs, whole: true, written: booted.Add(d)}
	}
	of := func(bootID string, file delivered) *record {
		return &record{BootID: bootID, File: file.name, ModTime: file.written.UnixNano(), Size: len(file.text), SHA256: digest(file.text), Text: file.text}
	}
	other := at(-time.Hour)
	other.text += "x"
	pool := at(time.Second)
	pool.name = kvpPool
	for _, test := range []struct {
		name   string
		file   delivered
		record *record
		want   verdict
	}{
		{"nothing", delivered{}, nil, absent},
		{"first boot, written since", at(time.Second), nil, fresh},
		{"first boot, written at the kernel's start by a coarse clock", at(-time.Millisecond), nil, fresh},
		{"template with a file in it", at(-time.Hour), nil, stale},
		{"nodeagent restarted", at(time.Second), of("now", at(time.Second)), ours},
		{"nodeagent restarted while the host writes again", delivered{}, of("now", at(time.Second)), ours},
		{"the host wrote again in this boot", at(2 * time.Second), of("now", at(time.Second)), fresh},
		{"rebooted, nothing sent", at(-time.Hour), of("before", at(-time.Hour)), stale},
		{"rebooted, file truncated or gone", delivered{}, of("before", at(-time.Hour)), stale},
		{"rebooted, new file", at(time.Second), of("before", at(-time.Hour)), fresh},
		{"rebooted, the same text anew", at(time.Second), of("before", at(-time.Minute)), fresh},
		{"written after the record, still before this boot", other, of("before", at(-2*time.Hour)), stale},
		{"another file that looks the same", pool, of("before", at(time.Second)), fresh},
		{"unchanged, though the clock now says it is new", at(time.Hour), of("before", at(time.Hour)), stale},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got := judge(test.file, test.record, "now", booted); got != test.want {
				t.Errorf("judge = %s, want %s", got, test.want)
			}
		})
	}
}

// The life of a node on one disk, boot after boot.
func TestAwaitBootArgsOverBoots(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	await := func(wantName, wantSource, wantBoot string, wantStale bool) Source {
		t.Helper()
		args, source, err := AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
		if err != nil {
			t.Fatal(err)
		}
		if args.Name() != wantName || source.Name != wantSource || source.BootID != wantBoot || source.Stale != wantStale {
			t.Fatalf("got %q from %+v, want %q from %q of %q, stale %v", args.Name(), source, wantName, wantSource, wantBoot, wantStale)
		}
		return source
	}

	writeAt(t, m, testArgs, 0)
	await("n1", SourceGuestAgent, "boot-1", false)
	if actions := m.Actions(); !strings.Contains(strings.Join(actions, "\n"), "start "+guestAgent) {
		t.Errorf("actions = %q, want the guest agent started", actions)
	}
	for _, name := range []string{recordFile, CmdlineFile, cmdlineJSON} {
		if info, err := os.Stat(m.Path(name)); err != nil || info.Mode().Perm() != 0o600 {
			t.Errorf("%s: %v, %v; want mode 0600", name, info, err)
		}
	}
	await("n1", SourceGuestAgent, "boot-1", false) // nodeagent restarted

	m.SetBootID("boot-2") // the guest rebooted itself: the host sends nothing
	source := await("n1", SourcePersisted, "boot-1", true)
	if !strings.Contains(source.Note, guestAgent+" is active") {
		t.Errorf("note = %q, want the guest agent's state (C3)", source.Note)
	}
	await("n1", SourcePersisted, "boot-1", true) // still stale after a restart of nodeagent

	m.SetBootID("boot-3")
	writeAt(t, m, "", 0) // power cut between truncating and writing
	await("n1", SourcePersisted, "boot-1", true)
	if err := os.Remove(m.Path(CmdlineFile)); err != nil {
		t.Fatal(err)
	}
	await("n1", SourcePersisted, "boot-1", true)

	m.SetBootID("boot-4")
	writeAt(t, m, strings.Replace(testArgs, "n1", "n2", 1), time.Second)
	await("n2", SourceGuestAgent, "boot-4", false)
}

// The newest args win although stale ones are there (contract 11.1), and are read
// only when whole: w+ truncates, large writes come in pieces.
func TestAwaitBootArgsWaitsForTheWholeFile(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	writeAt(t, m, strings.Replace(testArgs, "n1", "old", 1), longAgo)
	type result struct {
		args   BootArgs
		source Source
		err    error
	}
	done := make(chan result, 1)
	waiting := make(chan struct{}, 100)
	report := func(string, ...any) { waiting <- struct{}{} }
	go func() {
		args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{Wait: time.Minute, StaleGrace: time.Minute}, report)
		done <- result{args, source, err}
	}()
	<-waiting

	file, err := os.OpenFile(m.Path(CmdlineFile), os.O_RDWR|os.O_TRUNC, 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, piece := range []string{" template=domP name=", "new type=cksnode", " eth0ip=10.1.1.57"} {
		if _, err := file.WriteString(piece); err != nil {
			t.Fatal(err)
		}
		select {
		case r := <-done:
			t.Fatalf("took a part of the file: %v, %+v, %v", r.args, r.source, r.err)
		case <-time.After(20 * time.Millisecond):
		}
	}
	file.Close()
	r := <-done
	if r.err != nil || r.source.Stale || r.args.Name() != "new" {
		t.Errorf("got %v, %+v, %v; want the new args", r.args, r.source, r.err)
	}
	if ip, _ := r.args.Get("eth0ip"); ip != "10.1.1.57" {
		t.Errorf("eth0ip = %q: the end is missing", ip)
	}
}

func TestAwaitBootArgsWithoutThem(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		name string
		unit *host.Unit
		want string
	}{
		{"no guest agent", nil, guestAgent + " is not installed"},
		{"guest agent runs", &host.Unit{Name: guestAgent}, guestAgent + " is active"},
		{"guest agent failed before", &host.Unit{Name: guestAgent, Result: "exit-code"}, "(exit-code)"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := hosttest.New(t)
			if test.unit != nil {
				m.AddUnit(*test.unit)
			}
			_, _, err := AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
			if got := fault.As(err); got.Code != fault.BootArgsMissing || !strings.Contains(got.Message, test.want) || !strings.Contains(got.Message, "300ms") {
				t.Errorf("error = %q (%s), want %s naming the wait and %q (C3)", got.Message, got.Code, fault.BootArgsMissing, test.want)
			}
			// What was looked at, on a machine that could be anything.
			for _, want := range []string{"hypervisor unknown", overrideFile, "opt/cloudstack/cmdline", CmdlineFile} {
				if !strings.Contains(err.Error(), want) {
					t.Errorf("error %q does not name %s", err, want)
				}
			}
		})
	}
}

func TestAwaitBootArgsEndsWithItsContext(t *testing.T) {
	t.Parallel()
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	_, _, err := AwaitBootArgs(ctx, newMachine(t).Host(), AwaitOptions{}, quiet)
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want the context's", err)
	}
}

func TestAwaitBootArgsFromFWCfg(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.Program("/sbin/modprobe", func(host.Command) (string, error) {
		m.Write(fwCfgFile, strings.TrimSuffix(testArgs, "\n"))
		return "", nil
	})
	writeAt(t, m, strings.Replace(testArgs, "n1", "old", 1), longAgo)
	args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	if err != nil || args.Name() != "n1" || source.Name != SourceFWCfg || source.Stale {
		t.Fatalf("got %v, %+v, %v; want the args of fw_cfg at once", args, source, err)
	}
	before, err := os.Stat(m.Path(recordFile))
	if err != nil {
		t.Fatal(err)
	}
	// A nodeagent that starts once more in this boot has nothing to write.
	_, source, err = AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	after, statErr := os.Stat(m.Path(recordFile))
	if err != nil || statErr != nil || source.Name != SourceFWCfg || !os.SameFile(before, after) {
		t.Errorf("again: %+v, %v, %v; want the record as it is", source, err, statErr)
	}
	// Without fw_cfg next time: what nodeagent wrote itself is no delivery.
	m.SetBootID("boot-2")
	if err := os.RemoveAll(m.Path(fwCfg)); err != nil {
		t.Fatal(err)
	}
	m.Program("/sbin/modprobe", func(host.Command) (string, error) { return "", nil })
	args, source, err = AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
	if err != nil || args.Name() != "n1" || !source.Stale || source.BootID != "boot-1" {
		t.Errorf("on the next boot: %v, %+v, %v; want those of the first, stale", args, source, err)
	}
	if got := m.Read(CmdlineFile); got != testArgs {
		t.Errorf("%s = %q, want the args for CloudStack's scripts", CmdlineFile, got)
	}
	if !strings.Contains(m.String(), guestAgent+": disabled active") {
		t.Errorf("machine:\n%s\nwant the guest agent started: the host waits for it without end", m)
	}
}

// A machine that is no KVM guest, with args some other program put there.
func TestAwaitBootArgsFromAFile(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	writeAt(t, m, strings.TrimSpace(testArgs), 0) // no newline, nobody writes any more
	args, source, err := AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
	if err != nil || args.Name() != "n1" || source.Name != SourceFile || source.Note == "" {
		t.Errorf("got %v, %+v, %v; want the file's args with a note", args, source, err)
	}
}

func TestAwaitBootArgsWithABrokenRecord(t *testing.T) {
	t.Parallel()
	m := newMachine(t)
	m.Write(recordFile, `{"bootID":"boot-0","text":" vmpassword=hunt`)
	writeAt(t, m, testArgs, longAgo)
	args, source, err := AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
	if err != nil || args.Name() != "n1" || !source.Stale || !strings.Contains(source.Note, filepath.Base(recordFile)) {
		t.Errorf("got %v, %+v, %v; want stale args and a note on the record", args, source, err)
	}
}
