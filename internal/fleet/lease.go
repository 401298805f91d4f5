// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"database/sql"
	"fmt"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"
)

// Lease is leave to upgrade, for one node among those of its kind. It counts until its
// holder has not renewed it for TTL.
//
// No two clocks are compared. A lease has a counter that its holder raises; a control
// node that has seen the same counter for TTL on its own clock, one that does not jump,
// calls the holder dead. So a dead holder's lease ends TTL after somebody asks for it, and
// a holder that could not renew for Patience has to stop.
type Lease struct {
	Kind   string        `json:"kind"`   // control, worker
	Holder string        `json:"holder"` // the node
	Grant  string        `json:"grant"`  // of one holding: the same node later has another
	TTL    time.Duration `json:"ttl"`
	// Limit is how many of the kind may hold one at a time.
	Limit int `json:"limit"`
	// Release gives it back.
	Release bool `json:"release,omitempty"`
}

// Patience is how long a holder may go on without having renewed.
func (l Lease) Patience() time.Duration { return l.TTL * 2 / 3 }

// Bounds of what may be asked for.
const (
	maxTTL   = 10 * time.Minute
	minTTL   = time.Second
	maxLimit = 100
)

func (l *Lease) check() error {
	for _, text := range []bounded{{"kind", l.Kind, 1, maxField}, {"holder", l.Holder, 1, maxName}, {"grant", l.Grant, 1, maxField}} {
		if err := text.check(); err != nil {
			return err
		}
	}
	if l.TTL < minTTL || l.TTL > maxTTL || l.Limit < 1 || l.Limit > maxLimit {
		return fmt.Errorf("it is for %s and %d nodes: %s to %s and 1 to %d are expected", l.TTL, l.Limit, minTTL, maxTTL, maxLimit)
	}
	return nil
}

// watched is a lease as a control node saw it first with its counter.
type watched struct {
	grant    string
	renewals int64
	since    time.Duration
}

// leases decides who holds one.
type leases struct {
	mutex sync.Mutex
	seen  map[string]watched // by kind and holder
}

// ask takes, renews or releases a lease. now is of a clock that does not jump. A refusal
// names who holds it.
func (l *leases) ask(ctx context.Context, j journal, lease Lease, now func() time.Duration) error {
	return j.transact(ctx, func(conn *sql.Conn) error {
		if lease.Release {
			_, err := conn.ExecContext(ctx, `DELETE FROM leases WHERE kind = ? AND holder = ? AND grant_id = ?`, lease.Kind, lease.Holder, lease.Grant)
			return err
		}
		rows, err := conn.QueryContext(ctx, `SELECT holder, grant_id, renewals, ttl FROM leases WHERE kind = ?`, lease.Kind)
		if err != nil {
			return err
		}
		var alive []string
		var dead []string
		for rows.Next() {
			var holder, grant string
			var renewals, ttl int64
			if err := rows.Scan(&holder, &grant, &renewals, &ttl); err != nil {
				rows.Close()
				return err
			}
			switch expired := l.watch(lease.Kind+" "+holder, grant, renewals, now(), time.Duration(ttl)); {
			case holder == lease.Holder && (grant == lease.Grant || expired):
			case expired:
				dead = append(dead, holder)
			default:
				alive = append(alive, holder)
			}
		}
		if err := rows.Err(); err != nil {
			return err
		}
		for _, holder := range dead {
			if _, err := conn.ExecContext(ctx, `DELETE FROM leases WHERE kind = ? AND holder = ?`, lease.Kind, holder); err != nil {
				return err
			}
		}
		if len(alive) >= lease.Limit || slices.Contains(alive, lease.Holder) {
			return &Refusal{Code: RefusedLease, Status: http.StatusConflict,
				Message: fmt.Sprintf("%d nodes of the kind %s may be upgraded at a time: now %s", lease.Limit, lease.Kind, strings.Join(alive, ", "))}
		}
		_, err = conn.ExecContext(ctx, `INSERT INTO leases VALUES (?, ?, ?, 1, ?) ON CONFLICT (kind, holder)
			DO UPDATE SET renewals = renewals + 1, grant_id = excluded.grant_id, ttl = excluded.ttl`,
			lease.Kind, lease.Holder, lease.Grant, int64(lease.TTL))
		return err
	})
}

// watch says whether a lease has stood still for its time.
func (l *leases) watch(key, grant string, renewals int64, now, ttl time.Duration) bool {
	l.mutex.Lock()
	defer l.mutex.Unlock()
	if l.seen == nil {
		l.seen = map[string]watched{}
	}
	if w, found := l.seen[key]; found && w.grant == grant && w.renewals == renewals {
		return now-w.since >= ttl
	}
	if len(l.seen) > 2*maxNodes {
		clear(l.seen) // leases last longer, that is all
	}
	l.seen[key] = watched{grant, renewals, now}
	return false
}
