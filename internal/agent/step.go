// SPDX-License-Identifier: Apache-2.0

// Package agent runs the boot plan: it starts every step as soon as the steps it
// needs are done, gives each a deadline, keeps the journal of what happened in
// one state file, and tells systemd. It is the only package that logs; it knows
// nothing of what the steps do.
package agent

import (
	"context"
	"fmt"
	"slices"
	"time"

	"nodeagent/internal/host"
)

// Step is one named thing that makes one fact true. Running it when the fact
// holds already changes nothing.
type Step struct {
	Name  string
	Short string   // what is true afterwards, in a few words
	Needs []string // names of the steps that must be done before

	// Applies is asked when the needs are met; a step that does not apply to this
	// node leaves no trace. Nil applies always.
	Applies func() bool
	// Timeout bounds Run; where an earlier step may find out that longer is meant,
	// Longer says so when the needs are met.
	Timeout time.Duration
	Longer  func() time.Duration
	// Always runs the step also when a step it needs has failed.
	Always bool
	// Ready tells systemd that units ordered after nodeagent may start.
	Ready bool
	Run   func(ctx context.Context, report host.Report) (Result, error)
}

func (s Step) timeout() time.Duration {
	if s.Longer == nil {
		return s.Timeout
	}
	return max(s.Timeout, s.Longer())
}

// Result is what a step that did not fail has done.
type Result struct {
	Skipped  bool   // there was nothing for the step to do on this boot
	Note     string // one line for the operator: "grew 2.9 GiB to 9.5 GiB"
	Warnings []error
}

// CheckPlan says what is wrong with a plan: names used twice, needs that no
// earlier step meets, steps without a deadline. A step may only need steps listed
// before it, so a plan has no cycles and reads from top to bottom.
func CheckPlan(steps []Step) error {
	var names []string
	for _, step := range steps {
		if slices.Contains(names, step.Name) {
			return fmt.Errorf("step %q is there twice", step.Name)
		}
		if step.Timeout <= 0 {
			return fmt.Errorf("step %q has no deadline", step.Name)
		}
		for _, need := range step.Needs {
			if !slices.Contains(names, need) {
				return fmt.Errorf("step %q needs %q, which is not listed before it", step.Name, need)
			}
		}
		names = append(names, step.Name)
	}
	return nil
}
