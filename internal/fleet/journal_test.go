// SPDX-License-Identifier: Apache-2.0

//go:build dqlite && !nodqlite

package fleet

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// up waits until a store takes reports.
func up(t testing.TB, s *running) {
	t.Helper()
	eventually(t, "a store that is up", func(ctx context.Context) error { _, err := s.Events(ctx, ""); return err })
}

func usage(t *testing.T, dir string) (bytes int64) {
	t.Helper()
	err := filepath.WalkDir(dir, func(path string, entry fs.DirEntry, err error) error {
		var stat unix.Stat_t
		if err == nil && unix.Stat(path, &stat) == nil {
			bytes += stat.Blocks * 512
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return bytes
}

// 200 nodes at once, and no event that was acknowledged is lost.
func TestManyReporters(t *testing.T) {
	const nodes, each = 200, 10
	s := startStore(t, Options{Dir: t.TempDir(), Address: freeAddress(t, "127.0.0.1")})
	up(t, s)
	var done sync.WaitGroup
	for i := range nodes {
		done.Go(func() {
			name := fmt.Sprintf("node-%d", i)
			r := &Reporter{Keys: s.o.Keys, Servers: []string{s.o.Address}, From: &net.TCPAddr{IP: net.IPv4(127, 0, 7, byte(i+1))},
				State: func() (State, []Event, error) { return testState(name, "b1"), testEvents(0, each), nil }}
			eventually(t, name, r.Once)
			r.client.CloseIdleConnections()
		})
	}
	done.Wait()
	got, err := s.Events(context.Background(), "")
	if err != nil || len(got) != nodes*each {
		t.Fatalf("%d events of %d: %v", len(got), nodes*each, err)
	}
	known, err := s.Known(context.Background())
	if err != nil || len(known.Nodes) != nodes || known.Stale != "" {
		t.Fatalf("%d nodes: %v", len(known.Nodes), err)
	}
}

// A year of 30 nodes that boot daily: the journal stays small, the newest stays.
func TestAYear(t *testing.T) {
	dir := t.TempDir()
	var days atomic.Int64
	start := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	now := func() time.Time { return start.Add(time.Duration(days.Load()) * 24 * time.Hour) }
	s := startStore(t, Options{Dir: dir, Address: freeAddress(t, "127.0.0.1"), Now: now, Every: time.Hour})
	up(t, s)
	_, journal, err := s.current()
	if err != nil {
		t.Fatal(err)
	}
	for day := range 365 {
		days.Store(int64(day))
		var batch []arrival
		for node := range 30 {
			state := testState(fmt.Sprintf("node-%d", node), fmt.Sprintf("boot-%d", day))
			var events []Event
			for i := range 40 {
				events = append(events, Event{Seq: i, Time: now().Add(time.Duration(i) * time.Second), Step: "a-step-of-the-boot", Status: "done", Note: strings.Repeat("n", 60)})
			}
			batch = append(batch, arrival{&Report{State: state, Revision: 1, Events: events}, now()})
		}
		if day%15 != 0 && day < 350 { // fewer days, for a test's sake: what is kept is full by then
			continue
		}
		if _, err := journal.append(context.Background(), batch, keep); err != nil {
			t.Fatal(err)
		}
		if err := journal.prune(context.Background(), now(), keep); err != nil {
			t.Fatal(err)
		}
	}
	events, err := s.Events(context.Background(), "")
	if err != nil {
		t.Fatal(err)
	}
	if len(events) > keep.total || len(events) < 10_000 || events[len(events)-1].Boot != "boot-364" {
		t.Errorf("%d events are kept", len(events))
	}
	s.cancel()
	if size := usage(t, dir); size > 64<<20 {
		t.Errorf("the journal takes %d MB", size>>20)
	} else {
		t.Logf("the journal takes %d MB, %d events", size>>20, len(events))
	}
}

// Old reports change nothing, and are not taken for news.
func TestReplay(t *testing.T) {
	s := startStore(t, Options{Dir: t.TempDir(), Address: freeAddress(t, "127.0.0.1")})
	up(t, s)
	report := func(boot string, revision int64, phase string) Report {
		state := testState("w1", boot)
		state.Phase = phase
		return Report{State: state, Revision: revision, Sent: time.Now(), Events: testEvents(0, 3)}
	}
	for _, test := range []struct {
		report Report
		want   string
	}{
		{report("b1", 1, "running"), "running"}, {report("b1", 2, "failed"), "failed"}, {report("b1", 1, "running"), "failed"},
		{report("b2", 1, "running"), "running"}, {report("b1", 3, "done"), "running"}, {report("b2", 2, "done"), "done"},
	} {
		if _, err := s.Append(context.Background(), &test.report); err != nil {
			t.Fatal(err)
		}
		known, err := s.Known(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		if got := known.Nodes[0].Phase; got != test.want {
			t.Errorf("after %s of %s it is %s, want %s", test.report.Phase, test.report.Boot, got, test.want)
		}
	}
	if events, err := s.Events(context.Background(), "w1"); err != nil || len(events) != 6 {
		t.Errorf("%d events: %v", len(events), err)
	}
	// A node that the journal does not know may have nothing to tell but that it lives.
	quiet := Report{State: testState("w2", "b1"), Revision: 1, Sent: time.Now()}
	if _, err := s.Append(context.Background(), &quiet); err != nil {
		t.Error(err)
	}
	// Poison is dropped, and the rest kept.
	odd := report("b2", 3, "done")
	odd.Events = []Event{{Seq: 1, Step: "s", Status: "done"}, {Seq: 2, Step: "s", Status: "done", Time: time.Now().Add(time.Hour)}}
	if ack, err := s.Append(context.Background(), &odd); err != nil || ack.Dropped != 2 {
		t.Errorf("%+v %v", ack, err)
	}
}

// A node whose clock is off reports with the control node's times; a clock that jumps
// there is followed.
func TestClocksJump(t *testing.T) {
	s := startStore(t, Options{Dir: t.TempDir(), Address: freeAddress(t, "127.0.0.1")})
	up(t, s)
	var off atomic.Int64
	off.Store(int64(-300 * 24 * time.Hour))
	now := func() time.Time { return time.Now().Add(time.Duration(off.Load())) }
	event := Event{Seq: 1, Time: now().Add(-time.Minute), Step: "s", Status: "done"}
	r := &Reporter{Keys: s.o.Keys, Servers: []string{s.o.Address}, Now: now, State: func() (State, []Event, error) { return testState("w1", "b1"), []Event{event}, nil }}
	if err := r.Once(context.Background()); err != nil {
		t.Fatal(err)
	}
	events, err := s.Events(context.Background(), "w1")
	if err != nil || len(events) != 1 || time.Since(events[0].Time).Abs() > time.Hour {
		t.Fatalf("%v %v", events, err)
	}
	off.Store(int64(5 * time.Hour))
	event = Event{Seq: 2, Time: now(), Step: "t", Status: "done"}
	if err := r.Once(context.Background()); err != nil {
		t.Fatal(err)
	}
	known, err := s.Known(context.Background())
	if err != nil || known.Nodes[0].ClockOffset > -4*3600 {
		t.Errorf("%+v %v", known.Nodes, err)
	}
}

// D1, D3: a damaged database is set aside whole and named, and made again of reports.
func TestDamagedDatabase(t *testing.T) {
	dir := t.TempDir()
	o := Options{Dir: dir, Address: freeAddress(t, "127.0.0.1")}
	s := startStore(t, o)
	up(t, s)
	r := &Reporter{Keys: s.o.Keys, Servers: []string{s.o.Address}, State: func() (State, []Event, error) { return testState("w1", "b1"), testEvents(0, 5), nil }}
	eventually(t, "report", r.Once)
	s.cancel()
	files, err := filepath.Glob(filepath.Join(dir, "db", "*"))
	if err != nil || len(files) == 0 {
		t.Fatal(files, err)
	}
	for _, file := range files {
		if err := os.WriteFile(file, []byte(strings.Repeat("garbage", 1000)), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	s = startStore(t, o)
	// The same reporter: it finds by the answer that all is to be sent again.
	eventually(t, "report to the new database", r.Once)
	if events, err := s.Events(context.Background(), "w1"); err != nil || len(events) != 5 {
		t.Errorf("%d events: %v", len(events), err)
	}
	aside, err := filepath.Glob(filepath.Join(dir, "db.damaged-*"))
	if err != nil || len(aside) != 1 {
		t.Fatalf("set aside: %q %v", aside, err)
	}
	if kept, _ := filepath.Glob(filepath.Join(aside[0], "*")); len(kept) < len(files) {
		t.Errorf("%d files were set aside of %d", len(kept), len(files))
	}
	if warning := <-s.warnings; !strings.Contains(warning, aside[0]) {
		t.Errorf("warning %q does not name %s", warning, aside[0])
	}
}

func TestLeases(t *testing.T) {
	var clock atomic.Int64
	since := func() time.Duration { return time.Duration(clock.Load()) }
	var wall atomic.Int64
	s := startStore(t, Options{Dir: t.TempDir(), Address: freeAddress(t, "127.0.0.1"), Since: since,
		Now: func() time.Time { return time.Now().Add(time.Duration(wall.Load())) }})
	up(t, s)
	ask := func(holder, grant string, limit int, release bool) bool {
		t.Helper()
		err := s.Lease(context.Background(), Lease{Kind: "control", Holder: holder, Grant: grant, TTL: time.Minute, Limit: limit, Release: release})
		var refused *Refusal
		if err != nil && (!errors.As(err, &refused) || refused.Code != RefusedLease) {
			t.Fatal(err)
		}
		return err == nil
	}
	if !ask("c1", "g1", 1, false) || ask("c2", "g2", 1, false) || !ask("c1", "g1", 1, false) {
		t.Error("not one at a time")
	}
	wall.Store(int64(1000 * time.Hour)) // a clock that jumps ends no lease
	if ask("c2", "g2", 1, false) || ask("c1", "another", 1, false) {
		t.Error("a jump of the clock ended a lease, or a second holding began")
	}
	clock.Store(int64(2 * time.Minute))
	if !ask("c1", "g1", 1, false) || ask("c2", "g2", 1, false) {
		t.Error("a renewal does not count")
	}
	clock.Store(int64(4 * time.Minute)) // c1 is dead
	if !ask("c2", "g2", 1, false) || ask("c1", "g1", 1, false) {
		t.Error("a dead holder's lease does not end")
	}
	if !ask("c3", "g3", 2, false) || ask("c4", "g4", 2, false) {
		t.Error("not two at a time")
	}
	if !ask("c2", "g2", 1, true) || !ask("c4", "g4", 2, false) {
		t.Error("what is given back is not free")
	}
}
