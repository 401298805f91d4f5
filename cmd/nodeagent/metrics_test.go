// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"regexp"
	"strings"
	"testing"

	"nodeagent/internal/agent"
	"nodeagent/internal/host/hosttest"
)

// Prometheus' text format, as its documentation has it.
var (
	metricComment = regexp.MustCompile(`^# (HELP|TYPE) ([a-zA-Z_:][a-zA-Z0-9_:]*) (.+)$`)
	metricSample  = regexp.MustCompile(`^([a-zA-Z_:][a-zA-Z0-9_:]*)(\{(?:[a-zA-Z_][a-zA-Z0-9_]*="(?:[^"\\]|\\\\|\\"|\\n)*",?)*\})? ([0-9.e+-]+)$`)
)

// checkMetrics holds a file to the rules of the format and of promtool: every family has
// its HELP and TYPE before its samples and together, and no sample comes twice.
func checkMetrics(t *testing.T, text string) {
	t.Helper()
	if !strings.HasSuffix(text, "\n") {
		t.Error("the last line has no end")
	}
	described, typed, seen, family := map[string]bool{}, map[string]bool{}, map[string]bool{}, ""
	for line := range strings.Lines(text) {
		line = strings.TrimSuffix(line, "\n")
		if comment := metricComment.FindStringSubmatch(line); comment != nil {
			known := described
			if comment[1] == "TYPE" {
				known = typed
			}
			if known[comment[2]] || comment[1] == "TYPE" && comment[3] != "gauge" {
				t.Errorf("wrong: %s", line)
			}
			known[comment[2]], family = true, comment[2]
			continue
		}
		sample := metricSample.FindStringSubmatch(line)
		if sample == nil {
			t.Errorf("no sample: %q", line)
			continue
		}
		if sample[1] != family || !described[family] || !typed[family] || seen[sample[1]+sample[2]] {
			t.Errorf("out of its family, or twice: %q", line)
		}
		seen[sample[1]+sample[2]] = true
	}
}

func TestMetrics(t *testing.T) {
	t.Parallel()
	states := timelines()
	hostile := controlNode()
	hostile.AgentVersion = "1\"\\\n}"
	hostile.Steps[0].Name = "a\"b\\c\nd\xff"
	hostile.Warnings = make([]agent.Warning, 2)
	states["hostile"] = hostile
	for _, state := range states {
		checkMetrics(t, metrics(state))
	}
	for name, wants := range map[string][]string{
		"done":    {`nodeagent_phase{phase="done"} 1`, `nodeagent_phase{phase="failed"} 0`, `nodeagent_step_seconds{step="kubeadm",status="done"} 147.3`, "nodeagent_boot_seconds 365.05", "nodeagent_warnings 0"},
		"failed":  {`nodeagent_phase{phase="failed"} 1`, `nodeagent_failure_info{step="images",code="image-import-failed"} 1`},
		"hostile": {`nodeagent_step_seconds{step="a\"b\\c\nd?",status="done"} 1.1`, `nodeagent_build_info{version="1\"\\\n}",role="cksnode"} 1`, "nodeagent_warnings 2"},
	} {
		text := metrics(states[name])
		for _, want := range wants {
			if !strings.Contains("\n"+text, "\n"+want) {
				t.Errorf("%s: no %s in\n%s", name, want, text)
			}
		}
	}
}

// They are written where the node exporter looks, and nowhere else.
func TestMetricsFile(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	if err := writeMetrics(m.Host(), controlNode()); err != nil {
		t.Fatal(err)
	}
	for _, folder := range metricsFolders() {
		if m.Host().Exists(folder) {
			t.Errorf("%s was made", folder)
		}
	}
	folder := metricsFolders()[0]
	if err := os.MkdirAll(m.Path(folder), 0o755); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := writeMetrics(m.Host(), controlNode()); err != nil {
			t.Fatal(err)
		}
	}
	checkMetrics(t, m.Read(folder+"/nodeagent.prom"))
	if entries, err := os.ReadDir(m.Path(folder)); err != nil || len(entries) != 1 {
		t.Errorf("%v, %v; want one file", entries, err)
	}
}
