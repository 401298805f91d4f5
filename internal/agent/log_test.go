// SPDX-License-Identifier: Apache-2.0

package agent_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

const inJournal = "NODEAGENT_TEST_JOURNAL"

// The journal gets fields that journalctl can be asked for (C1): a boot is run in a mount
// namespace of its own, where the journal's socket is the test's.
func TestJournalFields(t *testing.T) {
	t.Parallel()
	if os.Getenv(inJournal) != "" {
		runIntoJournal(t)
		return
	}
	if os.Getuid() != 0 {
		if os.Getenv("CI") != "" {
			t.Fatal("a mount namespace needs root")
		}
		t.Skip("a mount namespace needs root")
	}
	cmd := exec.CommandContext(t.Context(), os.Args[0], "-test.run=^TestJournalFields$", "-test.v")
	cmd.Env = append(os.Environ(), inJournal+"=1", "JOURNAL_STREAM=1:1")
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	out, err := cmd.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if strings.Contains(string(out), "0123456789abcdef") {
		t.Errorf("the journal holds a secret:\n%s", out)
	}
	for _, want := range [][]string{
		{"MESSAGE=images: started", "PRIORITY=6", "SYSLOG_IDENTIFIER=nodeagent", "NODEAGENT_STEP=images"},
		{"MESSAGE=images: failed: no room", "PRIORITY=3", "NODEAGENT_STEP=images", "NODEAGENT_CODE=disk-too-small", "NODEAGENT_PHASE=failed"},
		{"MESSAGE=role: done: fine", "PRIORITY=6", "NODEAGENT_STEP=role", "NODEAGENT_PHASE=running"},
		{"MESSAGE=ended", "NODEAGENT_PHASE=failed"},
	} {
		found := false
		for entry := range strings.SplitSeq(string(out), "-----\n") {
			all := true
			for _, field := range want {
				all = all && strings.Contains("\n"+entry, "\n"+field+"\n")
			}
			found = found || all
		}
		if !found {
			t.Errorf("no entry has %q:\n%s", want, out)
		}
	}
}

// runIntoJournal runs two steps and prints what the journal got.
func runIntoJournal(t *testing.T) {
	for _, err := range []error{
		unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""),
		unix.Mount("tmpfs", "/run", "tmpfs", 0, ""),
		os.MkdirAll("/run/systemd/journal", 0o755),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: "/run/systemd/journal/socket", Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	m := hosttest.New(t)
	runner, err := agent.NewRunner(m.Host(), agent.NewLog(), "test", func(string) {})
	if err != nil {
		t.Fatal(err)
	}
	full := func(_ context.Context, report host.Report) (agent.Result, error) {
		report("joins with abcdef.0123456789abcdef")
		return agent.Result{Note: "with abcdef.0123456789abcdef"}, fault.New(fault.DiskTooSmall, "no room").WithLog([]string{"line", "kubeadm join --token abcdef.0123456789abcdef", "-----BEGIN PRIVATE KEY-----", "SECRETKEY", "-----END PRIVATE KEY-----"})
	}
	warns := func(context.Context, host.Report) (agent.Result, error) {
		return agent.Result{Note: "fine", Warnings: []error{fault.New(fault.EtcdUnencrypted, "http://bob:abcdef.0123456789abcdef@etcd/")}}, nil
	}
	if err := runner.Run(t.Context(), []agent.Step{step("role", warns), step("images", full, "role")}); err == nil {
		t.Error("no failure")
	}
	if state := m.Read(agent.StateFile); strings.Contains(state, "0123456789abcdef") || strings.Contains(state, "SECRETKEY") || !strings.Contains(state, `kubeadm join --token [redacted]`) {
		t.Errorf("the state holds a secret: %s", state)
	}
	if err := socket.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		t.Fatal(err)
	}
	for buffer := make([]byte, 64<<10); ; {
		n, err := socket.Read(buffer)
		if err != nil {
			return // all of them were there before
		}
		fmt.Printf("%s-----\n", buffer[:n])
	}
}
