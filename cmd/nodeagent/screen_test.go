// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"
	"unicode"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
)

// seen is a report and the moment at which it is looked at.
type seen struct {
	report *statusReport
	at     *time.Time
}

// hostile is what no screen may pass on: it clears the terminal, hides what follows,
// turns the direction of writing, and is wide.
const hostile = "\U000e0001\x1b[2J\x1b]0;title\a\r\n\u202eevil\u009b31m\x7f 世界 \t e\u0301"

// screens are reports of every phase.
func screens() map[string]seen {
	made := []agent.Record{
		{Name: "boot-args", Status: agent.Done, Seconds: 5.1, Note: "from guest agent on kvm, 3 s into this boot (2026-11-20T12:00:03Z); also looked at: fw_cfg, none"},
		{Name: "role", Status: agent.Done, Note: "cksnode", Needs: []string{"boot-args"}},
		{Name: "disk", Status: agent.Done, Seconds: 0.4, Note: "grew 2.6 GiB -> 11.1 GiB", Needs: []string{"role"}},
	}
	base := func(phase agent.Phase, ended *time.Time, more ...agent.Record) *statusReport {
		return &statusReport{SchemaVersion: 1, BootID: "boot-1", Version: "0.1.0", Role: "cksnode", Owner: "nodeagent", Node: "prod1-control-1", Phase: phase,
			Started: &noon, Ended: ended, Steps: append(made[:3:3], more...), Gates: []gate{}, Health: []gate{}, Warnings: []agent.Warning{}}
	}
	running := func(name, note string) agent.Record {
		return agent.Record{Name: name, Short: "what it does is done", Status: agent.Running, Started: at(20), Until: at(1800), Note: note}
	}
	pending := func(name string, needs ...string) agent.Record {
		return agent.Record{Name: name, Status: agent.Pending, Needs: needs}
	}
	all := map[string]seen{"never": {&statusReport{SchemaVersion: 1, BootID: "boot-1", Phase: agent.PhaseIdle, Steps: []agent.Record{}, Gates: []gate{}, Health: []gate{}, Warnings: []agent.Warning{}}, at(0)}}

	early := base(agent.PhaseRunning, nil)
	early.Role, early.Node = "", ""
	early.Steps = []agent.Record{{Name: "boot-args", Short: "CloudStack's boot args are there", Status: agent.Running, Started: at(0), Until: at(360)}, pending("role", "boot-args")}
	all["running-early"] = seen{early, at(2.25)}
	all["running-images"] = seen{base(agent.PhaseRunning, nil, running("images", "images 7 of 12, 43 MB/s, 20 s left"), pending("kubeadm", "images", "disk")), at(63)}
	all["running-wait"] = seen{base(agent.PhaseRunning, nil,
		running("iso", "waiting for the binaries ISO: sr0 has no medium, vdb is a disk without a file system that could hold one, vdc is the config drive"),
		pending("install", "iso")), at(1500)}

	done := base(agent.PhaseDone, at(187), agent.Record{Name: "kubeadm", Status: agent.Skipped, Note: "done on an earlier boot"})
	done.Gates = []gate{{Name: "ssh", OK: true, Detail: "port 22 greets with SSH-2.0-OpenSSH_9.2p1"}, {Name: "api", OK: true, Detail: "/version says v1.34.4"},
		{Name: "dashboard", Cluster: true, Detail: "no pod of the name kubernetes-dashboard runs in namespace kubernetes-dashboard, and none of headlamp in kube-system"}}
	done.Health = []gate{{Name: "etcd", OK: true, Detail: "3 of 3 members work, 1 may fail"}}
	all["done"] = seen{done, at(500)}

	degraded := base(agent.PhaseDegraded, at(3800))
	degraded.Warnings = []agent.Warning{{Step: "cloud-init", Code: fault.CloudInitFailed, Message: "a module of cloud-init failed: cloud-config.service is failed (exit-code)"}}
	degraded.Gates = []gate{{Name: "api", Detail: "connection refused"}, {Name: "kubeconfig", Detail: "needs root: open /etc/kubernetes/admin.conf: permission denied", Unknown: true}}
	degraded.Health = []gate{{Name: "certificates", Detail: "pki/apiserver.crt expires in 12 days: kubeadm certs renew all, then reboot"}, {Name: "disk", OK: true, Detail: "6.0 GiB of 12.0 GiB free, 50 %"}}
	all["degraded"] = seen{degraded, at(3 * 86400)}

	all["failed-tool"] = seen{base(agent.PhaseFailed, at(263), agent.Record{Name: "kubeadm", Status: agent.Failed, Seconds: 60.1, Error: &agent.Failure{Code: fault.KubeadmInitFailed,
		Message: "kubeadm init failed: the kubelet is not healthy after 4m0s", Hint: fault.KubeadmInitFailed.Remedy(), LogPath: "/var/log/nodeagent/kubeadm-init.log",
		Log: []string{"[kubelet-start] Starting the kubelet", "[kubelet-check] Waiting for a healthy kubelet at http://127.0.0.1:10248/healthz. This can take up to 4m0s"}}},
		pending("add-ons", "kubeadm"), pending("ready", "add-ons")), at(300)}
	all["failed-preflight"] = seen{base(agent.PhaseFailed, at(63), agent.Record{Name: "preflight", Status: agent.Failed, Seconds: 0.1, Error: &agent.Failure{Code: fault.DiskTooSmall,
		Message: "the root disk /dev/vda has 5.0 GiB (5368709120 bytes); a Kubernetes node needs 8.0 GiB (8589934592 bytes) at least; 1 CPU: a control node needs 2; 1.0 GiB of memory: a control node needs 2.0 GiB",
		Hint:    fault.DiskTooSmall.Remedy() + " " + fault.MachineTooSmall.Remedy()}}, pending("iso", "preflight"), pending("install", "iso")), at(190)}
	failing := base(agent.PhaseFailed, nil, agent.Record{Name: "ssh", Status: agent.Failed, Error: &agent.Failure{Code: fault.SSHFailed, Message: "ssh.service is failed", Hint: fault.SSHFailed.Remedy()}},
		running("userdata", "no userdata yet: http://10.1.1.1:80 does not answer"))
	all["failed-running"] = seen{failing, at(63)}
	all["interrupted"] = seen{base(agent.PhaseFailed, at(50), agent.Record{Name: "images", Status: agent.Interrupted, Started: at(20),
		Error: &agent.Failure{Code: fault.Interrupted, Message: "nodeagent ended while this step ran", Hint: fault.Interrupted.Remedy()}}, pending("kubeadm", "images")), at(3600)}

	earlier := base(agent.PhaseIdle, at(187))
	earlier.Warnings = []agent.Warning{{Code: "earlier-boot", Message: "nodeagent has not run on this boot; this is what happened on the boot before"}}
	all["earlier-boot"] = seen{earlier, at(40000)}

	upgrade := func(phase agent.Phase, u agent.Upgrade) seen {
		report := base(phase, at(187))
		u.From, u.To, u.Started = "v1.34.4", "v1.35.1", *at(7200)
		report.Upgrade = &u
		return seen{report, at(7800)}
	}
	all["upgrade-running"] = upgrade(agent.PhaseDone, agent.Upgrade{Status: agent.Running, Stage: "images"})
	all["upgrade-done"] = upgrade(agent.PhaseDone, agent.Upgrade{Status: agent.Done, Stage: "kubelet", Ended: at(7500)})
	all["upgrade-failed"] = upgrade(agent.PhaseDegraded, agent.Upgrade{Status: agent.Failed, Stage: "apply", Ended: at(7500), Error: &agent.Failure{Code: fault.UpgradeFailed,
		Message: "kubeadm upgrade apply failed: timed out waiting for the condition", Hint: fault.UpgradeFailed.Remedy(), LogPath: "/var/log/nodeagent/kubeadm-upgrade.log",
		Log: []string{"[upgrade/apply] FATAL: timed out waiting for the condition"}}})

	for _, role := range []string{"router", "sharedfs", "consoleproxy"} {
		report := base(agent.PhaseDone, at(1.9), agent.Record{Name: "services", Status: agent.Done, Seconds: 0.7, Note: "nothing to change"})
		report.Role, report.Owner, report.Node = role, "cloudstack", ""
		all[role] = seen{report, at(100)}
	}
	etcd := base(agent.PhaseDone, at(90), agent.Record{Name: "etcd", Status: agent.Done, Seconds: 12, Note: "member etcd-1 of 3 runs, with the data of an earlier boot"})
	etcd.Node = "prod1-etcd-1"
	etcd.Gates = []gate{{Name: "ssh", OK: true, Detail: "port 22 greets with SSH-2.0-OpenSSH_9.2p1"}, {Name: "etcd", OK: true, Cluster: true, Detail: "healthy"}}
	all["etcd"] = seen{etcd, at(7000)}

	unreadable := base(agent.PhaseFailed, nil)
	unreadable.Role, unreadable.Node, unreadable.Started, unreadable.Steps = "", "", nil, []agent.Record{}
	unreadable.Error = &agent.Failure{Code: fault.StateUnreadable, Message: "cannot read /var/lib/nodeagent/state.json (0 bytes): unexpected end of JSON input", Hint: fault.StateUnreadable.Remedy()}
	all["unreadable"] = seen{unreadable, at(10)}

	evil := base(agent.PhaseFailed, at(10), agent.Record{Name: "iso" + hostile, Status: agent.Running, Started: at(1), Until: at(9), Note: hostile + strings.Repeat("x", 300)},
		agent.Record{Name: hostile, Status: agent.Failed, Seconds: 1e300, Error: &agent.Failure{Code: hostile, Message: strings.Repeat("世", 200) + hostile,
			Hint: hostile, Log: []string{hostile}, LogPath: "/var/log/" + hostile}}, pending(hostile, hostile))
	evil.Role, evil.Node = "cksnode"+hostile, strings.Repeat("n", 100)
	evil.Warnings = []agent.Warning{{Step: hostile, Code: hostile, Message: hostile}}
	evil.Gates = []gate{{Name: hostile, Detail: strings.Repeat(hostile, 100)}}
	evil.Health = []gate{{Name: strings.Repeat("h", 90), Detail: hostile, OK: true}}
	evil.Upgrade = &agent.Upgrade{From: strings.Repeat("v", 90), To: hostile, Status: agent.Failed, Stage: strings.Repeat("s", 90), Started: *at(9)}
	all["hostile"] = seen{evil, at(60)}
	return all
}

// checkScreen says what a terminal of that width must not be sent.
func checkScreen(t *testing.T, screen string, width int) {
	t.Helper()
	plain := regexp.MustCompile("\x1b\\[[0-9]+m").ReplaceAllString(screen, "")
	for line := range strings.Lines(plain) {
		line = strings.TrimSuffix(line, "\n")
		if got := columns(line); got > width {
			t.Errorf("a line takes %d columns, of %d: %q", got, width, line)
		}
		for _, c := range line {
			if !unicode.IsPrint(c) {
				t.Errorf("a line has %q: %q", c, line)
			}
		}
		if strings.TrimRight(line, " ") != line {
			t.Errorf("a line ends with spaces: %q", line)
		}
	}
}

// Issue 7: golden screens of every phase at 80 and 200 columns, with and without colour.
func TestScreens(t *testing.T) {
	t.Parallel()
	for name, seen := range screens() {
		for _, width := range []int{80, 200} {
			for suffix, colour := range map[string]bool{"": false, ".colour": true} {
				var out bytes.Buffer
				(&screen{out: &out, width: width, colour: colour}).show(seen.report, *seen.at)
				checkScreen(t, out.String(), width)
				compareGolden(t, filepath.Join("testdata", "status", fmt.Sprintf("%s.%d%s.golden", name, width, suffix)), out.Bytes())
			}
		}
	}
}

func compareGolden(t *testing.T, golden string, got []byte) {
	t.Helper()
	if *update {
		if err := os.MkdirAll(filepath.Dir(golden), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(golden, got, 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if !bytes.Equal(got, want) {
		t.Errorf("%s:\n%s\nwant\n%s", golden, got, want)
	}
}

// Also what is narrower or lower than any console loses nothing but its end.
func TestScreensOfAnySize(t *testing.T) {
	t.Parallel()
	for name, seen := range screens() {
		for width := minWidth; width < 120; width += 7 {
			var out bytes.Buffer
			(&screen{out: &out, width: width}).show(seen.report, *seen.at)
			checkScreen(t, out.String(), width)
		}
		for height := range 30 {
			lines := (&screen{width: 80}).lines(seen.report, *seen.at, height)
			if len(lines) > max(height, 1) {
				t.Errorf("%s: %d lines, room for %d", name, len(lines), height)
			}
		}
	}
	// What is over makes room for what runs.
	wait := screens()["running-wait"]
	if lines := strings.Join((&screen{width: 80}).lines(wait.report, *wait.at, 8), "\n"); !strings.Contains(lines, "ok    3 steps") || !strings.Contains(lines, "gives up at") {
		t.Errorf("8 lines high:\n%s", lines)
	}
}

func TestColoursAreOnlyForTerminals(t *testing.T) {
	t.Parallel()
	failed := screens()["failed-tool"]
	var plain bytes.Buffer
	newScreen(&plain).show(failed.report, *failed.at)
	if strings.Contains(plain.String(), "\x1b") {
		t.Error("colour on a pipe")
	}
}

func TestCut(t *testing.T) {
	t.Parallel()
	for _, test := range []struct {
		text  string
		limit int
		want  string
	}{
		{"short", 5, "short"},
		{"the word at the end goes", 20, "the word at the..."},
		{"averyveryverylongwordthathasnoend", 20, "averyveryverylong..."},
		{"世界世界世界", 9, "世界世..."},
		{"世界世界", 8, "世界世界"},
		{"e\u0301e\u0301e\u0301", 3, "e\u0301e\u0301e\u0301"},
		{"a\x1b[2Jb\u202ec\td  ", 80, "a [2Jbc d"},
	} {
		if got := cut(test.text, test.limit); got != test.want {
			t.Errorf("cut(%q, %d) = %q, want %q", test.text, test.limit, got, test.want)
		}
	}
}

func TestDurations(t *testing.T) {
	t.Parallel()
	for d, want := range map[time.Duration]string{-time.Second: "0.0s", 9990 * time.Millisecond: "9.9s", 59900 * time.Millisecond: "59s",
		187 * time.Second: "3m07s", 3800 * time.Second: "1h03m", 51 * time.Hour: "2d03h"} {
		if got := duration(d); got != want {
			t.Errorf("duration(%v) = %s, want %s", d, got, want)
		}
	}
	for d, want := range map[time.Duration]string{-time.Second: "", 0: "just now", 2 * time.Second: "2 seconds ago", 90 * time.Second: "1 minute ago", 47 * time.Hour: "47 hours ago", 49 * time.Hour: "2 days ago"} {
		if got := ago(d); got != want {
			t.Errorf("ago(%v) = %q, want %q", d, got, want)
		}
	}
}
