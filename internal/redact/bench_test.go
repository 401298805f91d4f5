// SPDX-License-Identifier: Apache-2.0

package redact_test

import (
	"io"
	"strings"
	"testing"

	"nodeagent/internal/redact"
)

// BenchmarkLog is how fast a journal goes through.
func BenchmarkLog(b *testing.B) {
	line := `2026-11-20T12:00:00.123456+00:00 prod1-control-1 kubelet[812]: I1120 12:00:00.123456     812 pod_startup_latency_tracker.go:104] "Observed pod startup duration" pod="kube-system/coredns-6f9fcfb8dc-x" podStartSLOduration=5.1 keys="a"` + "\n"
	text := []byte(strings.Repeat(line, 4000))
	rules := redact.New([]string{"hunter22", "abcdef.0123456789abcdef", `p"a&s s'1%`})
	b.SetBytes(int64(len(text)))
	for b.Loop() {
		w := rules.Writer(io.Discard)
		if _, err := w.Write(text); err != nil || w.Close() != nil {
			b.Fatal(err)
		}
	}
}
