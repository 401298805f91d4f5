// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"path/filepath"
	"reflect"
	"strings"
	"sync"
	"testing"
	"time"
)

// guest is a guest agent of the kind QEMU's documentation describes, with files
// in memory and programs that end after some questions.
type guest struct {
	mu       sync.Mutex
	silent   int // requests after which nothing is answered, counted down
	stale    string
	files    map[string]string
	open     map[int64]string
	commands []string
	asked    int
}

type request struct {
	Execute   string          `json:"execute"`
	Arguments json.RawMessage `json:"arguments"`
	ID        *int            `json:"id"`
}

func serve(t *testing.T, handle func(net.Conn)) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "s")
	listener, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	var serving sync.WaitGroup
	t.Cleanup(func() {
		listener.Close()
		serving.Wait()
	})
	serving.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			serving.Go(func() {
				defer conn.Close()
				handle(conn)
			})
		}
	})
	return path
}

func (g *guest) serve(conn net.Conn) {
	reader := bufio.NewReader(conn)
	for {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			return
		}
		flushed := bytes.HasPrefix(line, []byte{0xFF})
		var r request
		if err := json.Unmarshal(bytes.TrimLeft(line, "\xff"), &r); err != nil {
			fmt.Fprintf(conn, `{"error":{"class":"GenericError","desc":"JSON parse error"}}`+"\n")
			continue
		}
		g.mu.Lock()
		g.commands = append(g.commands, r.Execute)
		answer := g.answer(r, flushed)
		if g.silent > 0 {
			g.silent--
			answer = ""
		}
		g.mu.Unlock()
		fmt.Fprint(conn, answer)
	}
}

func (g *guest) answer(r request, flushed bool) string {
	var a struct {
		ID     int64    `json:"id"`
		Path   string   `json:"path"`
		Mode   string   `json:"mode"`
		Handle int64    `json:"handle"`
		Buffer []byte   `json:"buf-b64"`
		Args   []string `json:"arg"`
	}
	if r.Arguments != nil {
		if err := json.Unmarshal(r.Arguments, &a); err != nil {
			return `{"error":{"class":"GenericError","desc":"bad arguments"}}` + "\n"
		}
	}
	ok := func(value any) string {
		text, _ := json.Marshal(map[string]any{"return": value})
		return string(text) + "\n"
	}
	switch r.Execute {
	case "guest-sync-delimited":
		if !flushed {
			return `{"error":{"class":"GenericError","desc":"not flushed"}}` + "\n"
		}
		return g.stale + "\xff" + ok(a.ID)
	case "guest-sync":
		return ok(a.ID)
	case "guest-ping":
		return ok(struct{}{})
	case "guest-file-open":
		if a.Mode == "w+" {
			g.files[a.Path] = ""
		} else if _, ok := g.files[a.Path]; !ok {
			return fmt.Sprintf(`{"error":{"class":"GenericError","desc":"failed to open file '%s'"}}`+"\n", a.Path)
		}
		handle := int64(1000 + len(g.open))
		g.open[handle] = a.Path
		return ok(handle)
	case "guest-file-write":
		half := (len(a.Buffer) + 1) / 2 // a short write is allowed
		g.files[g.open[a.Handle]] += string(a.Buffer[:half])
		return ok(map[string]any{"count": half, "eof": false})
	case "guest-file-read":
		return ok(map[string]any{"count": 1, "buf-b64": []byte(g.files[g.open[a.Handle]]), "eof": true})
	case "guest-file-close":
		delete(g.open, a.Handle)
		return ok(struct{}{})
	case "guest-exec":
		return ok(map[string]any{"pid": 7})
	case "guest-exec-status":
		if g.asked++; g.asked < 3 {
			return ok(map[string]any{"exited": false})
		}
		return ok(map[string]any{"exited": true, "exitcode": 3, "out-data": []byte("out\n"), "err-data": []byte("err\n")})
	}
	return `{"error":{"class":"CommandNotFound","desc":"no such command"}}` + "\n"
}

func newGuest(t *testing.T) (*guest, *Agent) {
	t.Helper()
	g := &guest{files: make(map[string]string), open: make(map[int64]string)}
	agent := NewAgent(serve(t, g.serve))
	t.Cleanup(agent.Close)
	return g, agent
}

func deadline(t *testing.T, d time.Duration) context.Context {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), d)
	t.Cleanup(cancel)
	return ctx
}

// The order of calls is that of the KVM host's patch.sh (pain point C3).
func TestDeliverBootArgs(t *testing.T) {
	t.Parallel()
	g, agent := newGuest(t)
	if err := agent.DeliverBootArgs(deadline(t, 10*time.Second), " template=domP type=cksnode"); err != nil {
		t.Fatal(err)
	}
	if got, want := g.files["/var/cache/cloud/cmdline"], " template=domP type=cksnode\n"; got != want {
		t.Errorf("got file %q, want %q", got, want)
	}
	if len(g.open) != 0 {
		t.Errorf("files left open: %v", g.open)
	}
	order := strings.Join(g.commands, " ")
	if want := "guest-sync-delimited guest-ping guest-sync guest-file-open guest-file-write guest-file-write"; !strings.HasPrefix(order, want) {
		t.Errorf("got calls %s\nwant %s ...", order, want)
	}
}

func TestDeliverBootArgsGivesUpWithItsContext(t *testing.T) {
	t.Parallel()
	g, agent := newGuest(t)
	g.silent = 1000
	err := agent.DeliverBootArgs(deadline(t, 300*time.Millisecond), "x")
	if !errors.Is(err, context.DeadlineExceeded) {
		t.Fatalf("got error %v, want the context's", err)
	}
	if len(g.files) != 0 {
		t.Errorf("files were written: %v", g.files)
	}
}

// An answer that came too late must not be taken for the next call's.
func TestAgentDropsStaleAnswers(t *testing.T) {
	t.Parallel()
	g, agent := newGuest(t)
	g.stale = `{"return": 1234567890}` + "\n" + "\xff" + `{"return": 42}` + "\n" + "half a li"
	g.silent = 1
	if err := agent.Ping(deadline(t, 200*time.Millisecond)); err == nil {
		t.Fatal("a silent agent has answered")
	}
	content, err := agent.FileRead(deadline(t, 5*time.Second), "/missing")
	if refused := (*AgentError)(nil); !errors.As(err, &refused) || refused.Class != "GenericError" {
		t.Fatalf("got %q, %v, want the agent's refusal", content, err)
	}
	if err := agent.Sync(deadline(t, 5*time.Second)); err != nil {
		t.Error(err)
	}
}

func TestAgentFilesAndPrograms(t *testing.T) {
	t.Parallel()
	_, agent := newGuest(t)
	ctx := deadline(t, 10*time.Second)
	want := bytes.Repeat([]byte("0123456789abcdef"), 40_000) // more than one chunk
	if err := agent.FileWrite(ctx, "/tmp/file", want); err != nil {
		t.Fatal(err)
	}
	got, err := agent.FileRead(ctx, "/tmp/file")
	if err != nil || !bytes.Equal(got, want) {
		t.Errorf("got %d bytes, %v, want the %d bytes written", len(got), err, len(want))
	}
	result, err := agent.Exec(ctx, "/bin/false", "-x")
	if err != nil {
		t.Fatal(err)
	}
	if want := (ExecResult{Stdout: []byte("out\n"), Stderr: []byte("err\n"), ExitCode: 3}); !reflect.DeepEqual(result, want) {
		t.Errorf("got %+v, want %+v", result, want)
	}
}

// serveQMP greets, wants the capabilities first and answers some commands,
// with an event in between.
func serveQMP(conn net.Conn) {
	fmt.Fprintln(conn, `{"QMP": {"version": {"qemu": {"major": 7}}, "capabilities": []}}`)
	ready := false
	reader := bufio.NewReader(conn)
	for {
		line, err := reader.ReadBytes('\n')
		if err != nil {
			return
		}
		var r request
		if json.Unmarshal(line, &r) != nil || r.ID == nil {
			return
		}
		if r.Execute != "qmp_capabilities" && !ready {
			fmt.Fprintf(conn, `{"id": %d, "error": {"class": "CommandNotFound", "desc": "expecting capabilities"}}`+"\n", *r.ID)
			continue
		}
		result := "{}"
		switch r.Execute {
		case "qmp_capabilities":
			ready = true
		case "system_reset":
			fmt.Fprintln(conn, `{"event": "RESET", "data": {"guest": false}, "timestamp": {"seconds": 1}}`)
		case "query-block":
			result = `[{"qdev": "/machine/root", "inserted": {"file": "disk"}}, {"qdev": "cd0", "inserted": {"file": "/tmp/a.iso"}}]`
		case "eject":
			fmt.Fprintf(conn, `{"id": %d, "error": {"class": "GenericError", "desc": "Device is locked"}}`+"\n", *r.ID)
			continue
		case "quit":
			return
		}
		fmt.Fprintf(conn, `{"id": %d, "return": %s}`+"\n", *r.ID, result)
	}
}

func TestQMP(t *testing.T) {
	t.Parallel()
	ctx := deadline(t, 10*time.Second)
	q, err := DialQMP(ctx, serve(t, serveQMP))
	if err != nil {
		t.Fatal(err)
	}
	defer q.Close()
	if err := q.Reset(ctx); err != nil {
		t.Fatal(err)
	}
	event, err := q.WaitEvent(ctx, 0, "RESET")
	if err != nil || string(event.Data) != `{"guest": false}` {
		t.Errorf("got event %+v, %v", event, err)
	}
	short := deadline(t, 100*time.Millisecond)
	if event, err := q.WaitEvent(short, 1, "RESET"); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("got event %+v, %v, want to wait for a second one in vain", event, err)
	}
	if medium, err := q.Medium(ctx); err != nil || medium != "/tmp/a.iso" {
		t.Errorf("got medium %q, %v, want /tmp/a.iso", medium, err)
	}
	if err := q.EjectISO(ctx); err == nil || err.Error() != "cannot execute eject: Device is locked (GenericError)" {
		t.Errorf("got error %v, want QEMU's", err)
	}
	if err := q.Quit(ctx); err == nil || !strings.Contains(err.Error(), "QEMU has closed the connection") {
		t.Errorf("got error %v, want the end of the connection", err)
	}
	if err := q.PowerDown(ctx); err == nil {
		t.Error("a closed connection took a command")
	}
}

func TestDialQMPWantsGreeting(t *testing.T) {
	t.Parallel()
	path := serve(t, func(conn net.Conn) { fmt.Fprintln(conn, `{"return": {}}`) })
	if _, err := DialQMP(deadline(t, 5*time.Second), path); err == nil || !strings.Contains(err.Error(), "cannot greet QMP") {
		t.Errorf("got error %v, want no greeting", err)
	}
}
