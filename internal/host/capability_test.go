// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

func TestExplainNamesWhatIsMissing(t *testing.T) {
	t.Parallel()
	status := func(capEff string) string {
		return "Name:\tnodeagent\nCapPrm:\t000001ffffffffff\nCapEff:\t" + capEff + "\nCapBnd:\t000001ffffffffff\n"
	}
	const all, none, withoutAdmin, withoutModule = "000001ffffffffff", "0000000000000000", "000001ffffdfffff", "000001fffffeffff"
	mount := os.NewSyscallError("mount", unix.EPERM)
	modprobe := &CommandError{Command: "/sbin/modprobe -a overlay", ExitCode: 1, Err: errors.New("exit status 1"),
		Tail: []string{"modprobe: ERROR: could not insert 'overlay': Operation not permitted"}}
	for _, test := range []struct {
		name   string
		err    error
		status string
		needed []int
		want   string
	}{
		{"a call", mount, status(withoutAdmin), []int{unix.CAP_SYS_ADMIN}, "mount: operation not permitted: this process lacks CAP_SYS_ADMIN"},
		{"EACCES, wrapped", fmt.Errorf("cannot open it: %w", &fs.PathError{Op: "open", Path: "/x", Err: unix.EACCES}), status(none),
			[]int{unix.CAP_DAC_OVERRIDE}, "cannot open it: open /x: permission denied: this process lacks CAP_DAC_OVERRIDE"},
		{"only those that are missing", mount, status(withoutAdmin), []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_ADMIN}, mount.Error() + ": this process lacks CAP_SYS_ADMIN"},
		{"two", mount, status(none), []int{unix.CAP_NET_ADMIN, unix.CAP_SYS_RESOURCE}, mount.Error() + ": this process lacks CAP_NET_ADMIN and CAP_SYS_RESOURCE"},
		{"a program", modprobe, status(withoutModule), []int{unix.CAP_SYS_MODULE}, modprobe.Error() + ": this process lacks CAP_SYS_MODULE"},
		{"it has them", mount, status(all), []int{unix.CAP_SYS_ADMIN}, mount.Error()},
		{"another error", os.NewSyscallError("mount", unix.EBUSY), status(none), []int{unix.CAP_SYS_ADMIN}, "mount: device or resource busy"},
		{"a program with another error", &CommandError{Command: "x", Err: errors.New("exit status 1"), Tail: []string{"no such module"}},
			status(none), []int{unix.CAP_SYS_MODULE}, "x: exit status 1: no such module"},
		{"a status without the line", mount, "Name:\tx\n", []int{unix.CAP_SYS_ADMIN}, mount.Error()},
		{"a status that is none", mount, status("zz"), []int{unix.CAP_SYS_ADMIN}, mount.Error()},
	} {
		got := explain(test.err, test.status, test.needed)
		if got.Error() != test.want {
			t.Errorf("%s:\n got %q\nwant %q", test.name, got, test.want)
		}
		if !errors.Is(got, test.err) {
			t.Errorf("%s: the cause is not in the chain of %q", test.name, got)
		}
	}
}

func TestExplainReadsItsOwnStatus(t *testing.T) {
	t.Parallel()
	if err := Explain(nil, unix.CAP_SYS_ADMIN); err != nil {
		t.Errorf("no error became %q", err)
	}
	// No process has a capability of this number.
	err := Explain(unix.EPERM, unix.CAP_LAST_CAP+1)
	if want := fmt.Sprintf("operation not permitted: this process lacks capability %d", unix.CAP_LAST_CAP+1); err.Error() != want {
		t.Errorf("got %q, want %q", err, want)
	}
}

func TestCapabilityNames(t *testing.T) {
	t.Parallel()
	for capability, want := range map[int]string{
		unix.CAP_CHOWN: "CAP_CHOWN", unix.CAP_DAC_OVERRIDE: "CAP_DAC_OVERRIDE", unix.CAP_NET_ADMIN: "CAP_NET_ADMIN",
		unix.CAP_NET_RAW: "CAP_NET_RAW", unix.CAP_SYS_MODULE: "CAP_SYS_MODULE", unix.CAP_SYS_ADMIN: "CAP_SYS_ADMIN",
		unix.CAP_SYS_RESOURCE: "CAP_SYS_RESOURCE", unix.CAP_SYS_TIME: "CAP_SYS_TIME", unix.CAP_MKNOD: "CAP_MKNOD",
		unix.CAP_SYSLOG: "CAP_SYSLOG", unix.CAP_LAST_CAP: "CAP_CHECKPOINT_RESTORE", -1: "capability -1",
	} {
		if got := capabilityName(capability); got != want {
			t.Errorf("capability %d is %s, want %s", capability, got, want)
		}
	}
}
