// SPDX-License-Identifier: Apache-2.0

//go:build dqlite && !nodqlite

package fleet

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
)

// D2: a full disk is an error and no damage; the view stays, and with space it goes on.
func TestDiskFull(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("fleet", dir, "tmpfs", 0, "size=160m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	s := startStore(t, Options{Dir: filepath.Join(dir, "fleet"), Address: freeAddress(t, "127.0.0.1")})
	up(t, s)
	count := 1
	events := testEvents(0, 5000)
	r := &Reporter{Keys: s.o.Keys, Servers: []string{s.o.Address}, State: func() (State, []Event, error) { return testState("w1", "b1"), events[:count], nil }}
	eventually(t, "report", r.Once)
	eventually(t, "a view on the disk", func(context.Context) error { _, err := LastKnown(s.o.Dir); return err })
	filler, err := os.Create(filepath.Join(dir, "filler"))
	if err != nil {
		t.Fatal(err)
	}
	defer filler.Close()
	for block := make([]byte, 1<<20); err == nil; {
		_, err = filler.Write(block)
	}
	if !errors.Is(err, unix.ENOSPC) {
		t.Fatal(err)
	}
	// What was laid out before is still written to; then it fails.
	for err = nil; err == nil && count < 3000; {
		count++
		err = r.Once(context.Background())
	}
	if err == nil {
		t.Fatal("reports are acknowledged for ever on a full disk")
	}
	if known, err := s.Known(context.Background()); err != nil || len(known.Nodes) != 1 {
		t.Errorf("the view is gone: %+v %v", known, err)
	}
	if err := os.Remove(filler.Name()); err != nil {
		t.Fatal(err)
	}
	filler.Close()
	eventually(t, "reports after there is space", r.Once)
	eventually(t, "all events", func(ctx context.Context) error {
		got, err := s.Events(ctx, "")
		if err == nil && len(got) != min(count, keep.perNode) {
			t.Fatalf("%d events of %d", len(got), count)
		}
		return err
	})
	if aside, _ := filepath.Glob(filepath.Join(s.o.Dir, "db.damaged-*")); len(aside) > 0 {
		t.Errorf("a full disk is taken for damage: %q", aside)
	}
}
