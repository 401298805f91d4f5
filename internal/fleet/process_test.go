// SPDX-License-Identifier: Apache-2.0

//go:build dqlite && !nodqlite

package fleet

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/secret"
)

// nodeVariable has this test program be a control node: its options as JSON.
const nodeVariable = "NODEAGENT_FLEET_TEST_NODE"

type nodeProcess struct {
	Dir, Address string
	Peers        []string
	EveryMS      int
}

func TestMain(m *testing.M) {
	if text := os.Getenv(nodeVariable); text != "" {
		if err := beNode(text); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		os.Exit(0)
	}
	os.Exit(m.Run())
}

func beNode(text string) error {
	var p nodeProcess
	if err := json.Unmarshal([]byte(text), &p); err != nil {
		return err
	}
	keys, err := NewKeys(secret.New(token), secret.New(certificateKey))
	if err != nil {
		return err
	}
	store, err := Open(Options{Dir: p.Dir, Address: p.Address, Keys: keys, Peers: p.Peers, Every: time.Duration(p.EveryMS) * time.Millisecond,
		Latency: time.Duration(p.EveryMS) * time.Millisecond / 5,
		Warn:    func(format string, args ...any) { fmt.Fprintf(os.Stderr, format+"\n", args...) }})
	if err != nil {
		return err
	}
	server := NewServer(store)
	listener, err := server.Listen(context.Background())
	if err != nil {
		return err
	}
	go store.Run(context.Background())
	go p.count(store)
	return server.Serve(context.Background(), listener)
}

func (p nodeProcess) countFile() string { return filepath.Join(p.Dir, "count") }

// count writes once how many events there are, for a test that asks by removing the file.
func (p nodeProcess) count(store *Store) {
	for range time.Tick(500 * time.Millisecond) {
		if _, err := os.Stat(p.countFile()); err == nil || p.EveryMS == 0 {
			continue
		}
		if events, err := store.Events(context.Background(), ""); err == nil {
			_ = os.WriteFile(p.countFile(), []byte(strconv.Itoa(len(events))), 0o600)
		}
	}
}

// start runs a control node as a process of its own, in a network namespace where one is
// named, and ends it with the test.
func (p nodeProcess) start(t testing.TB, namespace string) *exec.Cmd {
	t.Helper()
	text, err := json.Marshal(p)
	if err != nil {
		t.Fatal(err)
	}
	command := exec.Command(os.Args[0])
	if namespace != "" {
		command = exec.Command("ip", "netns", "exec", namespace, os.Args[0])
	}
	command.Env = append(os.Environ(), nodeVariable+"="+string(text))
	command.SysProcAttr = &unix.SysProcAttr{Pdeathsig: unix.SIGKILL}
	if os.Getenv("FLEET_VERBOSE") != "" {
		command.Stderr = os.Stderr
	}
	if err := command.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { kill(command) })
	return command
}

// kill is kill -9.
func kill(command *exec.Cmd) {
	_ = command.Process.Kill()
	_ = command.Wait()
}
