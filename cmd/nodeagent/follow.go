// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path"
	"time"

	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"nodeagent/internal/agent"
	"nodeagent/internal/host"
)

// follower shows what changes.
type follower interface {
	// show is called with every change, and at every tick.
	show(r *statusReport, now time.Time)
	// end gives the terminal back; it may be called again.
	end()
}

func newFollower(out io.Writer) follower {
	if file, ok := out.(*os.File); ok && term.IsTerminal(int(file.Fd())) {
		return &liveFollower{out: file}
	}
	return &lineFollower{out: out}
}

// followStatus shows what happens until the run is over; its error is that of a ctx that
// ended first. Changes are told by inotify, the agent's end by its lock; a timer only
// moves the clocks of a terminal.
func followStatus(ctx context.Context, h *host.Host, shown follower) error {
	var tick <-chan time.Time
	resized, suspended, resumed := make(chan os.Signal, 1), make(chan os.Signal, 1), make(chan os.Signal, 1)
	if _, live := shown.(*liveFollower); live {
		second := time.NewTicker(time.Second)
		defer second.Stop()
		tick = second.C
		signal.Notify(resized, unix.SIGWINCH)
		defer signal.Stop(resized)
		signal.Notify(suspended, unix.SIGTSTP)
		defer signal.Stop(suspended)
		signal.Notify(resumed, unix.SIGCONT)
		defer signal.Stop(resumed)
	}
	watch, err := h.WatchFolders()
	if err != nil {
		return err
	}
	defer watch.Close()
	ended := make(chan struct{}) // no agent runs any more
	go func() {
		if agent.WaitUnlocked(ctx, h) == nil {
			close(ended)
		}
	}()
	for over := false; ; {
		// A folder that is made later is watched from the next change on. To watch, then
		// to see whether it is over, then to read: so nothing is missed in between.
		for _, file := range []string{agent.RunState, agent.StateFile} {
			_ = watch.Add(path.Dir(file))
		}
		select {
		case <-ended:
			over = true
		default:
		}
		report, _, err := readReport(h)
		if err != nil {
			return nil // whoever reads next says it
		}
		shown.show(report, time.Now())
		if over || !goesOn(h, report) {
			return nil
		}
		select {
		case <-watch.Written:
		case <-ended:
		case <-tick:
		case <-resized:
		case <-suspended:
			if !hasShell() {
				continue
			}
			shown.end()
			if err := unix.Kill(os.Getpid(), unix.SIGSTOP); err != nil {
				return err
			}
			// The other threads may run on for a moment, and draw.
			select {
			case <-resumed:
			case <-ctx.Done():
			}
		case <-ctx.Done():
			return fmt.Errorf("cannot wait any longer: %w", context.Cause(ctx))
		}
	}
}

// hasShell says whether the parent is a shell that could continue this process once it
// has stopped: there is none under ssh -t, where the kernel stops nothing either
// (an orphaned process group).
func hasShell() bool {
	parent := os.Getppid()
	session, err := unix.Getsid(parent)
	own, ownErr := unix.Getsid(0)
	group, groupErr := unix.Getpgid(parent)
	return err == nil && ownErr == nil && groupErr == nil && session == own && group != unix.Getpgrp()
}

// goesOn says whether there is more to come: of a run, of an upgrade, or of an agent that
// has yet to say what it does.
func goesOn(h *host.Host, r *statusReport) bool {
	upgrading := r.Upgrade != nil && r.Upgrade.Status == agent.Running
	return (r.Ended == nil || r.Phase == agent.PhaseIdle || upgrading) && agent.Locked(h)
}
