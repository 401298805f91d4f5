// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
	"nodeagent/internal/kubeadm"
)

// madeMachine has the state of a boot that went well.
func madeMachine(t *testing.T) *hosttest.Machine {
	t.Helper()
	m := hosttest.New(t)
	m.Write(agent.StateFile, `{"schemaVersion":1,"bootID":"boot-1","role":"consoleproxy","node":"N1","started":"2026-11-20T10:00:00Z","ended":"2026-11-20T10:05:00Z",
		"steps":[{"name":"role","status":"done"}],"warnings":[],"installed":{"instanceID":"i","version":"v1.34.4"}}`)
	return m
}

func stages(errs ...error) *kubeadm.Upgrade {
	u := &kubeadm.Upgrade{From: "v1.34.4", To: "v1.35.1"}
	for i, err := range errs {
		u.Stages = append(u.Stages, kubeadm.Stage{Name: []string{"keep", "kubelet"}[i], Does: "something", Run: func(_ context.Context, report host.Report) error {
			for range 2 {
				report("waiting\a for it")
			}
			return err
		}})
	}
	return u
}

// C16, C30: a failed upgrade exits with 1, says why and what to do, and status shows
// it, also after a reboot; one that is done is what the node has from then on.
func TestUpgradeShowsInStatus(t *testing.T) {
	t.Parallel()
	m := madeMachine(t)
	var out bytes.Buffer
	failed := fault.New(fault.KubeletRolledBack, "the kubelet v1.35.1 did not come up").WithLog([]string{"its last line"})
	if err := runUpgrade(t.Context(), m.Host(), stages(nil, failed), newScreen(&out)); !errors.Is(err, exitCode(exitFail)) {
		t.Errorf("error = %v, want exit code 1", err)
	}
	for _, want := range []string{"        waiting  for it\n  ok    keep", "FAIL  kubelet", "kubelet-rolled-back", "What to do: See `journalctl -u kubelet`", "its last line"} {
		if strings.Count(out.String(), want) == 0 || strings.Count(out.String(), "waiting") != 2 {
			t.Errorf("%q is not in\n%s", want, &out)
		}
	}
	m.SetBootID("boot-2")
	show := func() (string, *statusReport) {
		report, err := readStatus(t.Context(), m.Host())
		if err != nil {
			t.Fatal(err)
		}
		out.Reset()
		newScreen(&out).show(report, time.Now())
		return out.String(), report
	}
	if text, report := show(); !strings.Contains(text, "Upgrade from v1.34.4 to v1.35.1:\n  FAILED in stage kubelet ") || report.Upgrade.Error.Code != fault.KubeletRolledBack {
		t.Errorf("status after a reboot\n%s", text)
	}
	m.SetBootID("boot-1")
	if _, report := show(); report.exitCode() != statusDegraded {
		t.Errorf("status ends with %d, want %d: the node works, its upgrade does not", report.exitCode(), statusDegraded)
	}
	if err := runUpgrade(t.Context(), m.Host(), stages(nil, nil), newScreen(&out)); err != nil {
		t.Fatal(err)
	}
	text, report := show()
	if !strings.Contains(text, "Upgrade from v1.34.4 to v1.35.1: done ") || report.exitCode() != statusDone {
		t.Errorf("status of one that is done\n%s", text)
	}
	state, err := agent.Load(m.Host())
	if err != nil || state.Installed.Version != "v1.35.1" {
		t.Errorf("installed %+v, %v; want v1.35.1", state.Installed, err)
	}
}

// An upgrade that was killed shows as cut short, one that runs as running.
func TestUpgradeCutShort(t *testing.T) {
	t.Parallel()
	m := madeMachine(t)
	var running *agent.State
	u := stages(nil)
	u.Stages[0].Run = func(context.Context, host.Report) error {
		lock, err := agent.Lock(m.Host())
		if err != nil {
			return err
		}
		running, err = agent.Load(m.Host())
		lock.Close()
		if err == nil {
			panic("killed")
		}
		return err
	}
	func() {
		defer func() { recover() }()
		_ = runUpgrade(t.Context(), m.Host(), u, newScreen(&bytes.Buffer{}))
	}()
	if running == nil || running.Upgrade.Status != agent.Running || running.Upgrade.Error != nil {
		t.Errorf("while it runs: %+v", running)
	}
	after, err := agent.Load(m.Host())
	if err != nil || after.Upgrade.Status != agent.Interrupted || after.Upgrade.Stage != "keep" || after.Upgrade.Error.Code != fault.Interrupted {
		t.Errorf("after the kill: %+v, %v", after.Upgrade, err)
	}
}
