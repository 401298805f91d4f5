// SPDX-License-Identifier: Apache-2.0

//go:build dqlite && !nodqlite

package fleet

import (
	"context"
	"fmt"
	"net"
	"os"
	"testing"
	"time"
)

// running is a control node in this process.
type running struct {
	*Store
	cancel   context.CancelFunc
	warnings chan string
	done     chan struct{}
}

func freeAddress(t testing.TB, host string) string {
	t.Helper()
	listener, err := net.Listen("tcp", host+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	return listener.Addr().String()
}

func startStore(t testing.TB, o Options) *running {
	t.Helper()
	r := &running{warnings: make(chan string, 1000), done: make(chan struct{})}
	if o.Keys == nil {
		o.Keys = mustKeys(t, token, certificateKey)
	}
	if o.Every == 0 {
		o.Every = 200 * time.Millisecond
	}
	o.Latency = 100 * time.Millisecond
	o.Warn = func(format string, args ...any) {
		select {
		case r.warnings <- fmt.Sprintf(format, args...):
			t.Logf(format, args...)
		default:
		}
	}
	store, err := Open(o)
	if err != nil {
		t.Fatal(err)
	}
	r.Store = store
	ctx, cancel := context.WithCancel(context.Background())
	server := NewServer(store)
	listener, err := server.Listen(ctx)
	if err != nil {
		t.Fatal(err)
	}
	stopped := make(chan struct{})
	go func() { defer close(stopped); _ = server.Serve(ctx, listener) }()
	go func() { defer close(r.done); store.Run(ctx); <-stopped }()
	r.cancel = func() { cancel(); <-r.done }
	t.Cleanup(r.cancel)
	return r
}

const eventuallyFor = 2 * time.Minute

// eventually tries until it works; the deadline is for a broken program only.
func eventually(t testing.TB, what string, try func(context.Context) error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), eventuallyFor)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		err := try(ctx)
		if err == nil {
			return
		}
		select {
		case <-ctx.Done():
			t.Fatalf("%s: %v", what, err)
		case <-tick.C:
		}
	}
}

func testState(node string, boot string) State {
	return State{Node: node, Role: "worker", Boot: boot, Instance: "i-" + node, Phase: "running", Steps: []Step{{Name: "join", Status: "running"}}}
}

// eventsBegin is one time for all calls: an event that is sent again is the same.
var eventsBegin = time.Now().Add(-time.Hour).Truncate(time.Millisecond).UTC()

func testEvents(from, count int) (events []Event) {
	for i := from; i < from+count; i++ {
		events = append(events, Event{Seq: i, Time: eventsBegin.Add(time.Duration(i) * time.Millisecond), Step: fmt.Sprintf("step-%d", i), Status: "done"})
	}
	return events
}

func TestOneMember(t *testing.T) {
	dir := t.TempDir()
	address := freeAddress(t, "127.0.0.1")
	keys := mustKeys(t, token, "")
	o := Options{Dir: dir, Address: address, Keys: keys}
	first := startStore(t, o)
	events := testEvents(0, 20)
	reporter := &Reporter{Keys: keys, Servers: []string{address}, State: func() (State, []Event, error) { return testState("w1", "b1"), events, nil }}
	eventually(t, "report", reporter.Once)
	eventually(t, "report again", reporter.Once)
	for range 2 {
		got, err := first.Events(context.Background(), "w1")
		if err != nil || len(got) != len(events) {
			t.Fatalf("%d events, %v", len(got), err)
		}
	}
	first.cancel()
	second := startStore(t, o)
	eventually(t, "events after a restart", func(ctx context.Context) error {
		got, err := second.Events(ctx, "")
		if err == nil && len(got) != len(events) {
			t.Fatalf("%d events are left of %d", len(got), len(events))
		}
		return err
	})
	if _, err := os.Stat(dir + "/view.json"); err != nil {
		t.Error(err)
	}
}

func TestThreeMembers(t *testing.T) {
	var stores []*running
	var addresses []string
	for i := range 3 {
		address := freeAddress(t, fmt.Sprintf("127.0.0.%d", i+1))
		o := Options{Dir: t.TempDir(), Address: address}
		if i > 0 {
			o.Peers = addresses[:1]
		}
		stores, addresses = append(stores, startStore(t, o)), append(addresses, address)
	}
	eventually(t, "three voters", func(ctx context.Context) error {
		known, err := stores[2].Known(ctx)
		if err != nil || len(known.Members) != 3 {
			return fmt.Errorf("%v %v", known.Members, err)
		}
		for _, m := range known.Members {
			if !m.Voter {
				return fmt.Errorf("%v", known.Members)
			}
		}
		return nil
	})
	reporter := &Reporter{Keys: stores[0].o.Keys, Servers: addresses, State: func() (State, []Event, error) { return testState("w1", "b1"), testEvents(0, 5), nil }}
	eventually(t, "report", reporter.Once)
	stores[0].cancel()
	eventually(t, "events without the first", func(ctx context.Context) error {
		got, err := stores[1].Events(ctx, "")
		if err == nil && len(got) != 5 {
			t.Fatalf("%d events", len(got))
		}
		return err
	})
}
