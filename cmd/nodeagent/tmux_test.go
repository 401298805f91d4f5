// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// rootVariable makes the test program nodeagent, on a machine below that folder.
const rootVariable = "NODEAGENT_TEST_ROOT"

func TestMain(m *testing.M) {
	if root := os.Getenv(rootVariable); root != "" {
		os.Exit(runOn(&host.Host{Root: root}, os.Args[1:], os.Stdout, os.Stderr))
	}
	os.Exit(m.Run())
}

// terminal is one of tmux, with a shell in it.
type terminal struct {
	t       *testing.T
	socket  string
	written chan struct{} // something was written to it
}

func newTerminal(t *testing.T) *terminal {
	t.Helper()
	if _, err := exec.LookPath("tmux"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	folder := t.TempDir()
	term := &terminal{t: t, socket: filepath.Join(folder, "tmux"), written: make(chan struct{}, 1)}
	fifo := filepath.Join(folder, "output")
	if err := unix.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	output, err := os.OpenFile(fifo, os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { output.Close() })
	go func() {
		for buffer := make([]byte, 64<<10); ; {
			if _, err := output.Read(buffer); err != nil {
				return
			}
			select {
			case term.written <- struct{}{}:
			default:
			}
		}
	}()
	term.tmux("new-session", "-d", "-x", "80", "-y", "24", "env", "-i", "PS1=$ ", "TERM=screen", "PATH="+os.Getenv("PATH"), "sh", "-i")
	t.Cleanup(func() { term.tmux("kill-server") })
	term.tmux("pipe-pane", "cat >"+fifo)
	return term
}

func (c *terminal) tmux(args ...string) string {
	c.t.Helper()
	out, err := exec.Command("tmux", append([]string{"-u", "-f", "/dev/null", "-S", c.socket}, args...)...).CombinedOutput()
	if err != nil {
		c.t.Fatalf("tmux %v: %v\n%s", args, err, out)
	}
	return strings.TrimRight(string(out), "\n")
}

// command types a command line.
func (c *terminal) command(line string) {
	c.t.Helper()
	c.tmux("send-keys", "-l", line)
	c.tmux("send-keys", "Enter")
}

// await returns the screen when it is as wanted.
func (c *terminal) await(what string, wanted func(screen string) bool) string {
	c.t.Helper()
	patience := time.After(time.Minute)
	for {
		screen := c.tmux("capture-pane", "-p")
		if wanted(screen) {
			return screen
		}
		select {
		case <-c.written:
		case <-patience:
			c.t.Fatalf("no %s in\n%s", what, screen)
		}
	}
}

// shows waits for texts, all at once.
func (c *terminal) shows(texts ...string) string {
	c.t.Helper()
	return c.await(strings.Join(texts, ", "), func(screen string) bool {
		for _, text := range texts {
			if !strings.Contains(screen, text) {
				return false
			}
		}
		return true
	})
}

// cursor says whether the cursor can be seen.
func (c *terminal) cursor() bool {
	c.t.Helper()
	return c.tmux("display-message", "-p", "#{cursor_flag}") == "1"
}

// follow is the command line that follows a machine and says the exit code.
func follow(m *hosttest.Machine) string {
	return rootVariable + "=" + m.Path("/") + " " + os.Args[0] + ` status --follow; echo "it ended with $?"`
}

// --follow draws a terminal live: in place, at its size, with its clocks going, and gives
// it back with the exit code when the run is over.
func TestFollowOnATerminal(t *testing.T) {
	t.Parallel()
	c := newTerminal(t)
	m := hosttest.New(t)
	run := startRun(t, m)
	c.command("echo what was there before")
	c.shows("\nwhat was there before")
	c.command(follow(m))

	screen := c.shows("router: running for", "ok    disk", "run   iso", "iso is done", "gives up at", "wait  kubeadm")
	if !strings.HasPrefix(screen, "router: ") || strings.Contains(screen, "before") || c.cursor() {
		t.Errorf("cursor %v, screen\n%s", c.cursor(), screen)
	}
	headline, _, _ := strings.Cut(screen, "\n")
	c.await("another time than "+headline, func(screen string) bool { return !strings.HasPrefix(screen, headline) })

	const first, second = "waiting for the binaries ISO, of which there is no", "sign as yet on any drive"
	run.report(first + " " + second)
	screen = c.shows(first+"\n", second)
	if strings.Contains(screen, "iso is done") || strings.Count(screen, "router:") != 1 {
		t.Errorf("drawn over something:\n%s", screen)
	}
	c.tmux("resize-window", "-x", "120", "-y", "8")
	if screen = c.shows(first+" "+second, "wait  kubeadm"); strings.Count(screen, "router:") != 1 {
		t.Errorf("after it was made larger:\n%s", screen)
	}
	c.tmux("resize-window", "-x", "50", "-y", "24")
	if screen = c.shows("waiting for the\n", "wait  kubeadm"); strings.Count(screen, "router:") != 1 {
		t.Errorf("after it was made smaller:\n%s", screen)
	}

	run.end(nil)
	screen = c.shows("router: done", "ok    iso", "skip  kubeadm", "it ended with 0")
	if strings.Contains(screen, "running") || !c.cursor() {
		t.Errorf("cursor %v, screen\n%s", c.cursor(), screen)
	}
	if history := c.tmux("capture-pane", "-p", "-S", "-"); !strings.Contains(history, "\nwhat was there before") {
		t.Errorf("what was there before is lost:\n%s", history)
	}
}

// Whatever ends or suspends --follow, the cursor is there afterwards.
func TestFollowGivesTheTerminalBack(t *testing.T) {
	t.Parallel()
	c := newTerminal(t)
	m := hosttest.New(t)
	run := startRun(t, m)
	c.command(follow(m))
	c.shows("run   iso")
	c.tmux("send-keys", "C-z")
	c.shows("Stopped")
	if !c.cursor() {
		t.Error("no cursor while it is suspended")
	}
	c.command("clear; fg")
	c.await("live screen", func(screen string) bool { return strings.HasPrefix(screen, "router:") && !c.cursor() })
	c.tmux("send-keys", "C-c")
	c.await("cursor", func(string) bool { return c.cursor() })

	c.command("clear; " + follow(m))
	c.await("no cursor", func(string) bool { return !c.cursor() })
	c.tmux("send-keys", "C-c")
	c.shows("run   iso", "it ended with 3")
	if !c.cursor() {
		t.Error("no cursor after Ctrl-C")
	}

	// One that fails is over with all that is to be said.
	c.command("clear; " + follow(m))
	c.await("no cursor", func(string) bool { return !c.cursor() })
	run.end(fault.New(fault.ISOInvalid, "no ISO"))
	c.shows("FAIL  iso", "Step iso failed: iso-invalid", "What to do:", "-     kubeadm", "it ended with 1")
	if !c.cursor() {
		t.Error("no cursor after a failure")
	}

	// The agent may die: that is the end too.
	dead := hosttest.New(t)
	dead.Write(agent.StateFile, `{"schemaVersion":1,"bootID":"boot-1","role":"router","started":"2026-11-20T12:00:00Z","steps":[{"name":"iso","status":"running"}]}`)
	lock, err := agent.Lock(dead.Host())
	if err != nil {
		t.Fatal(err)
	}
	defer lock.Close()
	c.command("clear; " + follow(dead))
	c.shows("run   iso")
	lock.Close()
	c.shows("cut   iso", "Step iso failed: interrupted", "it ended with 1")
}
