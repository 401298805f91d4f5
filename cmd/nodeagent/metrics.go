// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"math"
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
)

// metricsFolders are where Prometheus' node exporter looks for files (its option
// --collector.textfile.directory): Debian's package, and the usual place of others.
func metricsFolders() []string {
	return []string{"/var/lib/prometheus/node-exporter", "/var/lib/node_exporter/textfile_collector"}
}

const metricsFile = "nodeagent.prom"

// writeMetrics leaves the state for the node exporter, where there is one.
func writeMetrics(h *host.Host, state *agent.State) error {
	var errs []error
	for _, folder := range metricsFolders() {
		if !h.Exists(folder) {
			continue
		}
		// Atomic: the exporter never reads half of it.
		_, err := h.WriteFile(folder+"/"+metricsFile, []byte(metrics(state)), 0o644)
		errs = append(errs, err)
	}
	return errors.Join(errs...)
}

// metrics is the state in Prometheus' text format
// (prometheus.io/docs/instrumenting/exposition_formats).
func metrics(state *agent.State) string {
	var out strings.Builder
	family := func(name, help string) {
		fmt.Fprintf(&out, "# HELP %[1]s %[2]s\n# TYPE %[1]s gauge\n", name, help)
	}
	sample := func(name string, value float64, labels ...string) {
		var pairs []string
		for pair := range slices.Chunk(labels, 2) {
			pairs = append(pairs, fmt.Sprintf(`%s="%s"`, pair[0], labelValue(pair[1])))
		}
		if len(pairs) > 0 {
			name += "{" + strings.Join(pairs, ",") + "}"
		}
		fmt.Fprintf(&out, "%s %s\n", name, strconv.FormatFloat(math.Round(value*1000)/1000, 'f', -1, 64))
	}

	family("nodeagent_build_info", "Version of the nodeagent that this boot ran, and the role of the machine.")
	sample("nodeagent_build_info", 1, "version", state.AgentVersion, "role", state.Role)

	family("nodeagent_phase", "1 for the phase that the boot is in.")
	now := state.Phase()
	for _, phase := range []agent.Phase{agent.PhaseDone, agent.PhaseDegraded, agent.PhaseFailed, agent.PhaseRunning} {
		value := 0.0
		if phase == now {
			value = 1
		}
		sample("nodeagent_phase", value, "phase", string(phase))
	}

	family("nodeagent_step_seconds", "How long a step of the boot took.")
	end := 0.0
	for _, record := range state.Steps {
		end = max(end, record.StartedMonotonic+record.Seconds)
		if record.Status != agent.Pending && record.Status != agent.Running {
			sample("nodeagent_step_seconds", record.Seconds, "step", record.Name, "status", string(record.Status))
		}
	}
	if state.Ended != nil {
		family("nodeagent_boot_seconds", "Time from the start of the kernel to the end of the last step.")
		sample("nodeagent_boot_seconds", end)
	}
	family("nodeagent_failure_info", "1 for every step that failed.")
	for _, record := range state.Steps {
		if record.Error != nil {
			sample("nodeagent_failure_info", 1, "step", record.Name, "code", string(record.Error.Code))
		}
	}
	family("nodeagent_warnings", "How many warnings there are.")
	sample("nodeagent_warnings", float64(len(state.Warnings)))
	return out.String()
}

// labelValue escapes as the format wants it.
func labelValue(text string) string {
	return strings.NewReplacer(`\`, `\\`, `"`, `\"`, "\n", `\n`).Replace(strings.ToValidUTF8(text, "?"))
}
