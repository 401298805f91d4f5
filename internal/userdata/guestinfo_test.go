// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

func contextOf(t *testing.T) (context.Context, context.CancelFunc) {
	return context.WithTimeout(t.Context(), 50*time.Millisecond)
}

func newVMware(t *testing.T) *hosttest.Machine {
	m := hosttest.New(t)
	m.Write("/sys/class/dmi/id/sys_vendor", "VMware, Inc.\n")
	m.AddUnit(host.Unit{Name: "open-vm-tools.service"})
	return m
}

func TestVMware(t *testing.T) {
	t.Parallel()
	m := newVMware(t)
	m.Program(vmtoolsd, func(host.Command) (string, error) { return testArgs, nil })
	args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	if err != nil || args.Name() != "n1" || source.Name != SourceMachineID || source.Hypervisor != VMware || source.Stale {
		t.Fatalf("got %v, %+v, %v", args, source, err)
	}
	want := []string{"start open-vm-tools.service", "run /usr/bin/vmtoolsd --cmd machine.id.get"}
	if actions := m.Actions(); !slices.Equal(actions, want) {
		t.Errorf("actions %q, want %q", actions, want)
	}
	if got := m.Read(CmdlineFile); got != testArgs {
		t.Errorf("%s = %q", CmdlineFile, got)
	}

	// The guest reboots: the hypervisor still has them. Then its tools are gone.
	m.SetBootID("boot-2")
	if _, source, err = AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet); err != nil || source.Stale || source.BootID != "boot-2" {
		t.Errorf("after a reboot: %+v, %v", source, err)
	}
	m.SetBootID("boot-3")
	m.Program(vmtoolsd, nil)
	args, source, err = AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	if err != nil || args.Name() != "n1" || !source.Stale || source.BootID != "boot-2" || !strings.Contains(source.String(), "vmtoolsd is not installed") {
		t.Errorf("without vmtoolsd: %v, %+v, %v; want those recorded, and why", args, source, err)
	}
}

func TestVMwareWithout(t *testing.T) {
	t.Parallel()
	const secret = "vmpassword=hunter2"
	for _, test := range []struct {
		name string
		out  string
		err  error
		want string
	}{
		{"as vmtoolsd ends", "", &host.CommandError{Command: vmtoolsd, ExitCode: 1, Tail: []string{"No machine id"}, Err: errors.New("exit status 1")}, "the machine has no machine.id"},
		{"as older ones do", "No machine id\n", nil, "the machine has no machine.id"},
		{"somebody else's", "asset=4711 " + secret + "\n", nil, "machine.id has no type="},
		{"empty", "", nil, "machine.id has no type="},
		{"not installed", "", &host.CommandError{Command: vmtoolsd, ExitCode: -1, Err: os.ErrNotExist}, "/usr/bin/vmtoolsd is not installed"},
		{"dies", "type=cksnode " + secret, &host.CommandError{Command: vmtoolsd, ExitCode: 139, Tail: []string{secret}, Err: errors.New("signal: " + secret)}, "ended with code 139"},
		{"no command at all", "", errors.New(secret), "could not be run"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := newVMware(t)
			m.Program(vmtoolsd, func(host.Command) (string, error) { return test.out, test.err })
			_, _, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
			got := fault.As(err)
			if got.Code != fault.BootArgsMissing || !strings.Contains(got.Message, test.want) || !strings.Contains(got.Hint, "machine.id") {
				t.Errorf("%+v, want %s naming %q", got, fault.BootArgsMissing, test.want)
			}
			if strings.Contains(got.Message+strings.Join(got.Log, " "), "hunter2") {
				t.Errorf("secret shown in %+v", got)
			}
		})
	}
}

// slowUnits are units whose start is a job that the test ends.
type slowUnits struct {
	host.Units
	job chan string
}

func (u slowUnits) Start(ctx context.Context, name string) (host.Job, error) {
	if _, err := u.Units.Start(ctx, name); err != nil {
		return host.Job{}, err
	}
	return host.Job{Unit: name, Result: u.job}, nil
}

// S2: the start of the tools is queued behind this very step, or it loads what
// vmtoolsd needs: asked once before and once after it.
func TestVMwareToolsThatStartLate(t *testing.T) {
	t.Parallel()
	for _, ends := range []bool{true, false} {
		m := newVMware(t)
		h := m.Host()
		job := make(chan string, 1)
		h.Units = slowUnits{h.Units, job}
		asked := 0
		m.Program(vmtoolsd, func(host.Command) (string, error) {
			asked++
			if asked == 1 {
				if ends {
					job <- "done"
				}
				return "", &host.CommandError{ExitCode: 1, Err: errors.New("exit status 1")}
			}
			return testArgs, nil
		})
		args, source, err := AwaitBootArgs(t.Context(), h, AwaitOptions{Wait: 50 * time.Millisecond}, quiet)
		if err != nil || args.Name() != "n1" || source.Name != SourceMachineID || asked != 2 || len(source.Attempts) != 1 {
			t.Errorf("job ends %v: got %v, %+v, %v after %d questions", ends, args, source, err, asked)
		}
	}

	m := newVMware(t)
	h := m.Host()
	h.Units = slowUnits{h.Units, make(chan string)}
	m.Write(CmdlineFile, testArgs) // a step that is out of time takes nothing stale
	ctx, cancel := contextOf(t)
	defer cancel()
	if _, _, err := AwaitBootArgs(ctx, h, AwaitOptions{}, quiet); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("error = %v, want the context's", err)
	}
}
