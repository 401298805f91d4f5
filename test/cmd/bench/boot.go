// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"nodeagent/test/cloud"
	"nodeagent/test/lab"
	"nodeagent/test/template"
)

// bootRounds are the boots measured of the small machine.
const bootRounds = 5

// bootCost is what nodeagent takes of one boot, and what the boot takes.
type bootCost struct {
	agentCPU, agentWall time.Duration
	waited              time.Duration // of agentWall, for the host to deliver the boot args
	bootCPU, bootWall   time.Duration
}

// benchBoot boots the smallest of CloudStack's machines, a router with 256 MB, on
// which nothing is left to do. Its clock counts instructions, a nanosecond each, which
// is slower than any CPU that CloudStack's hosts have.
func benchBoot(ctx context.Context, dir string, log io.Writer) error {
	dir = filepath.Join(dir, "boot")
	if err := os.Mkdir(dir, 0o755); err != nil {
		return err
	}
	l, err := lab.New(ctx, dir, log, template.Options{})
	if err != nil {
		return err
	}
	defer l.Close()
	spec := l.RouterSpec("small")
	spec.BootFromDisk = true
	spec.MemoryMiB = 256
	spec.CountInstructions = true
	m, err := l.Boot(ctx, spec)
	if err != nil {
		return err
	}
	status, _, err := lab.Follow(ctx, m, "", func(lab.Step) {}) // the boot with something to do
	if err != nil {
		return err
	}
	var costs []bootCost
	steps := map[string][]float64{}
	for range bootRounds {
		if _, err := m.Agent().Exec(ctx, "/usr/bin/sync"); err != nil {
			return err
		}
		if err := m.Reset(ctx); err != nil {
			return err
		}
		if err := m.DeliverBootArgs(ctx, spec.BootArgs); err != nil {
			return err
		}
		if status, _, err = lab.Follow(ctx, m, status.BootID, func(lab.Step) {}); err != nil {
			return err
		}
		cost, err := measureBoot(ctx, m, status)
		if err != nil {
			return err
		}
		costs = append(costs, cost)
		for _, step := range status.Steps {
			steps[step.Name] = append(steps[step.Name], step.Seconds)
		}
	}
	showBoot(costs)
	for _, step := range status.Steps {
		slices.Sort(steps[step.Name])
		fmt.Printf("  step %-31s %6.0f ms\n", step.Name, 1000*steps[step.Name][bootRounds/2])
	}
	return nil
}

func measureBoot(ctx context.Context, m *cloud.Machine, status *lab.Status) (bootCost, error) {
	// Exit code 1 is a unit that failed; the boot is over all the same.
	if _, err := m.Agent().Exec(ctx, "/usr/bin/systemctl", "is-system-running", "--wait"); err != nil {
		return bootCost{}, err
	}
	numbers := map[string]int64{}
	for _, argv := range [][]string{
		{"/usr/bin/systemctl", "show", "nodeagent.service", "-p", "CPUUsageNSec,InactiveExitTimestampMonotonic,ExecMainExitTimestampMonotonic"},
		{"/usr/bin/systemctl", "show", "-p", "FinishTimestampMonotonic"},
	} {
		text, err := lab.Text(ctx, m, argv[0], argv[1:]...)
		if err != nil {
			return bootCost{}, err
		}
		for line := range strings.Lines(text) {
			key, value, _ := strings.Cut(strings.TrimSpace(line), "=")
			if numbers[key], err = strconv.ParseInt(value, 10, 64); err != nil {
				return bootCost{}, fmt.Errorf("cannot read %q: %w", line, err)
			}
		}
	}
	stat, err := lab.Text(ctx, m, "/usr/bin/cat", "/proc/stat")
	if err != nil {
		return bootCost{}, err
	}
	var user, nice, system int64 // hundredths of seconds (proc(5))
	if _, err := fmt.Sscanf(stat, "cpu %d %d %d", &user, &nice, &system); err != nil {
		return bootCost{}, fmt.Errorf("cannot read /proc/stat: %w", err)
	}
	step, _ := status.Step("boot-args")
	return bootCost{
		agentCPU:  time.Duration(numbers["CPUUsageNSec"]),
		agentWall: time.Duration(numbers["ExecMainExitTimestampMonotonic"]-numbers["InactiveExitTimestampMonotonic"]) * time.Microsecond,
		waited:    time.Duration(step.Seconds * float64(time.Second)),
		bootCPU:   time.Duration(user+nice+system) * 10 * time.Millisecond,
		bootWall:  time.Duration(numbers["FinishTimestampMonotonic"]) * time.Microsecond,
	}, nil
}

func showBoot(costs []bootCost) {
	median := func(value func(bootCost) time.Duration) time.Duration {
		var all []time.Duration
		for _, cost := range costs {
			all = append(all, value(cost))
		}
		slices.Sort(all)
		return all[len(all)/2]
	}
	cpu, bootCPU := median(func(c bootCost) time.Duration { return c.agentCPU }), median(func(c bootCost) time.Duration { return c.bootCPU })
	wall, bootWall := median(func(c bootCost) time.Duration { return c.agentWall - c.waited }), median(func(c bootCost) time.Duration { return c.bootWall })
	fmt.Printf("\nA router of 256 MB on which nothing is left to do, at an instruction a nanosecond: medians of %d boots\n", len(costs))
	fmt.Printf("%-36s %8s %10s %7s\n", "", "agent", "boot", "share")
	fmt.Printf("%-36s %6d ms %7d ms %6.1f%%\n", "CPU time", cpu.Milliseconds(), bootCPU.Milliseconds(), 100*cpu.Seconds()/bootCPU.Seconds())
	fmt.Printf("%-36s %6d ms %7d ms %6.1f%%\n", "wall time, boot args being there", wall.Milliseconds(), bootWall.Milliseconds(), 100*wall.Seconds()/bootWall.Seconds())
	fmt.Printf("%-36s %6d ms\n", "the host delivered them after", median(func(c bootCost) time.Duration { return c.waited }).Milliseconds())
}
