// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
)

// What the journal keeps: the database is held in memory too, and its log on the disk.
type retention struct {
	perNode int           // events
	total   int           // events
	age     time.Duration // of events and of nodes that are heard no more
}

var keep = retention{perNode: 500, total: 20_000, age: 60 * 24 * time.Hour}

// migrations bring the schema from one version to the next. They are only added to.
var migrations = []string{
	`CREATE TABLE nodes (
		name TEXT PRIMARY KEY, boot TEXT NOT NULL, revision INTEGER NOT NULL,
		seen INTEGER NOT NULL, clock_offset REAL NOT NULL, state TEXT NOT NULL
	) WITHOUT ROWID;
	CREATE TABLE events (
		id INTEGER NOT NULL, node TEXT NOT NULL, instance TEXT NOT NULL, boot TEXT NOT NULL,
		seq INTEGER NOT NULL, time INTEGER NOT NULL, step TEXT NOT NULL, status TEXT NOT NULL,
		note TEXT NOT NULL, code TEXT NOT NULL,
		PRIMARY KEY (node, boot, id) -- a report changes few pages: all that is changed is sent to all
	) WITHOUT ROWID;
	CREATE INDEX events_by_time ON events (time);
	CREATE TABLE leases (
		kind TEXT NOT NULL, holder TEXT NOT NULL, grant_id TEXT NOT NULL, renewals INTEGER NOT NULL, ttl INTEGER NOT NULL,
		PRIMARY KEY (kind, holder)
	) WITHOUT ROWID;`,
}

// journal is the tables, over any SQLite that database/sql reaches.
type journal struct{ db *sql.DB }

// transact runs a change and commits it. When it returns nil a majority of the control
// nodes has it on disk. When it does not, the change may have happened or not. Changes
// are tried again while others write or the leader moves, as long as ctx allows.
func (j journal) transact(ctx context.Context, change func(*sql.Conn) error) error {
	for pause := 20 * time.Millisecond; ; pause = min(2*pause, 500*time.Millisecond) {
		err := j.once(ctx, change)
		if err == nil || !temporary(err) {
			return err
		}
		select {
		case <-time.After(pause):
		case <-ctx.Done():
			return fmt.Errorf("%w: %w", ErrNoQuorum, err)
		}
	}
}

func (j journal) once(ctx context.Context, change func(*sql.Conn) error) error {
	conn, err := j.db.Conn(ctx)
	if err != nil {
		return err
	}
	whole := false
	defer func() {
		if !whole { // what became of the transaction is not known
			_ = conn.Raw(func(any) error { return driver.ErrBadConn })
		}
		conn.Close()
	}()
	if _, err := conn.ExecContext(ctx, "BEGIN IMMEDIATE"); err != nil {
		return err
	}
	if err := change(conn); err != nil {
		_, rollback := conn.ExecContext(ctx, "ROLLBACK")
		whole = rollback == nil
		return err
	}
	_, err = conn.ExecContext(ctx, "COMMIT")
	whole = err == nil
	return err
}

// migrate brings the tables to the newest version and returns the database's name, which
// it gets here and keeps.
func (j journal) migrate(ctx context.Context, name string) (database string, err error) {
	err = j.transact(ctx, func(conn *sql.Conn) error {
		if _, err := conn.ExecContext(ctx, `CREATE TABLE IF NOT EXISTS meta (version INTEGER NOT NULL, database TEXT NOT NULL)`); err != nil {
			return err
		}
		version := 0
		err := conn.QueryRowContext(ctx, `SELECT version, database FROM meta`).Scan(&version, &database)
		switch {
		case errors.Is(err, sql.ErrNoRows):
			database = name
			if _, err := conn.ExecContext(ctx, `INSERT INTO meta VALUES (0, ?)`, name); err != nil {
				return err
			}
		case err != nil:
			return err
		case version > len(migrations):
			return fmt.Errorf("cannot read the journal: its schema %d is newer than %d", version, len(migrations))
		case version == len(migrations):
			return nil
		}
		for _, statements := range migrations[version:] {
			if _, err := conn.ExecContext(ctx, statements); err != nil {
				return err
			}
		}
		_, err = conn.ExecContext(ctx, `UPDATE meta SET version = ?`, len(migrations))
		return err
	})
	return database, err
}

// arrival is a report with the moment it came.
type arrival struct {
	*Report
	at time.Time
}

// append stores reports, all or none, and says for each what is kept.
func (j journal) append(ctx context.Context, arrivals []arrival, k retention) (acks []Ack, err error) {
	err = j.transact(ctx, func(conn *sql.Conn) error {
		acks = make([]Ack, len(arrivals))
		for i, a := range arrivals {
			if err := j.appendOne(ctx, conn, a, k, &acks[i]); err != nil {
				return err
			}
		}
		return nil
	})
	return acks, err
}

func (j journal) appendOne(ctx context.Context, conn *sql.Conn, a arrival, k retention, ack *Ack) error {
	now := a.at.UnixMilli()
	state, err := json.Marshal(&a.State)
	if err != nil {
		return err
	}
	var boot string
	err = conn.QueryRowContext(ctx, `SELECT boot, revision FROM nodes WHERE name = ?`, a.Node).Scan(&boot, &ack.Revision)
	known := err == nil
	fresh := known && boot == a.Boot && a.Revision > ack.Revision
	switch {
	case errors.Is(err, sql.ErrNoRows):
		err = nil
		var count int
		if err := conn.QueryRowContext(ctx, `SELECT count(*) FROM nodes`).Scan(&count); err != nil {
			return err
		}
		if count >= maxNodes {
			return &Refusal{Code: RefusedFull, Message: fmt.Sprintf("the journal has %d nodes already", count), Status: 507, Now: a.at}
		}
		fresh = true
	case err != nil:
		return err
	case boot != a.Boot:
		// A boot that the journal knows has been followed by another: this report is old. No clock
		// tells, since a node's may jump between its boots.
		var old int
		if err := conn.QueryRowContext(ctx, `SELECT count(*) FROM (SELECT 1 FROM events WHERE node = ? AND boot = ? LIMIT 1)`,
			a.Node, a.Boot).Scan(&old); err != nil {
			return err
		}
		fresh = old == 0
	}
	if fresh {
		ack.Revision = a.Revision
		if _, err := conn.ExecContext(ctx, `INSERT INTO nodes VALUES (?, ?, ?, ?, ?, ?) ON CONFLICT (name) DO UPDATE SET boot = excluded.boot,
			revision = excluded.revision, seen = max(seen, excluded.seen), clock_offset = excluded.clock_offset, state = excluded.state`,
			a.Node, a.Boot, a.Revision, now, a.Offset, string(state)); err != nil {
			return err
		}
	}
	offset := time.Duration(a.Offset * float64(time.Second))
	const columns = "(?, ?, ?, ?, ?, ?, ?, ?, ?, ?)"
	var values []any
	for _, e := range a.Events {
		at := e.Time.Add(offset)
		if at.Before(a.at.Add(-k.age)) || at.After(a.at.Add(maxSkew)) {
			ack.Dropped++
			continue
		}
		ack.Stored++
		values = append(values, a.State.Key(e), a.Node, a.Instance, a.Boot, e.Seq, at.UnixMilli(), e.Step, e.Status, e.Note, e.Code)
	}
	for rest := range slices.Chunk(values, 50*10) {
		statement := `INSERT OR IGNORE INTO events VALUES ` + columns + strings.Repeat(", "+columns, len(rest)/10-1)
		if _, err := conn.ExecContext(ctx, statement, rest...); err != nil {
			return err
		}
	}
	if len(a.Events) > 0 {
		// The node's oldest beyond its share go; most often there are none.
		_, err = conn.ExecContext(ctx, `DELETE FROM events WHERE node = ? AND (boot, id) IN
			(SELECT boot, id FROM events WHERE node = ? ORDER BY time DESC, seq DESC LIMIT -1 OFFSET ?)`, a.Node, a.Node, k.perNode)
	}
	return err
}

// seen notes when nodes were last heard that had nothing new to say.
func (j journal) seen(ctx context.Context, nodes map[string]time.Time) error {
	return j.transact(ctx, func(conn *sql.Conn) error {
		for node, at := range nodes {
			if _, err := conn.ExecContext(ctx, `UPDATE nodes SET seen = max(seen, ?) WHERE name = ?`, at.UnixMilli(), node); err != nil {
				return err
			}
		}
		return nil
	})
}

// prune lets go of what is older, or more, than is kept.
func (j journal) prune(ctx context.Context, now time.Time, k retention) error {
	return j.transact(ctx, func(conn *sql.Conn) error {
		oldest := now.Add(-k.age).UnixMilli()
		for _, statement := range []string{`DELETE FROM events WHERE time < ?`, `DELETE FROM nodes WHERE seen < ?`} {
			if _, err := conn.ExecContext(ctx, statement, oldest); err != nil {
				return err
			}
		}
		_, err := conn.ExecContext(ctx, `DELETE FROM events WHERE (node, boot, id) IN
			(SELECT node, boot, id FROM events ORDER BY time DESC LIMIT -1 OFFSET ?)`, k.total)
		return err
	})
}

// nodes returns all nodes by name.
func (j journal) nodes(ctx context.Context) (nodes []Node, err error) {
	rows, err := j.db.QueryContext(ctx, `SELECT state, seen, clock_offset FROM nodes ORDER BY name`)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var node Node
		var state string
		var seen int64
		if err := rows.Scan(&state, &seen, &node.ClockOffset); err != nil {
			return nil, err
		}
		if err := json.Unmarshal([]byte(state), &node.State); err != nil {
			return nil, fmt.Errorf("cannot read a node's state in the journal: %w", err)
		}
		node.Seen = time.UnixMilli(seen).UTC()
		nodes = append(nodes, node)
	}
	return nodes, rows.Err()
}

// events returns what the journal has, of one node or ("") of all, oldest first.
func (j journal) events(ctx context.Context, node string) (events []Recorded, err error) {
	rows, err := j.db.QueryContext(ctx, `SELECT node, instance, boot, seq, time, step, status, note, code FROM events
		WHERE ? IN ('', node) ORDER BY time, node, boot, seq`, node)
	if err != nil {
		return nil, err
	}
	defer rows.Close()
	for rows.Next() {
		var e Recorded
		var at int64
		if err := rows.Scan(&e.Node, &e.Instance, &e.Boot, &e.Seq, &at, &e.Step, &e.Status, &e.Note, &e.Code); err != nil {
			return nil, err
		}
		e.Time = time.UnixMilli(at).UTC()
		events = append(events, e)
	}
	return events, rows.Err()
}
