// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"database/sql"
	"errors"
	"net"
	"time"
)

// role is what a control node is in the database: voters are the quorum.
type role int

const (
	voter role = iota
	spare
)

// Member is a control node that shares the database.
type Member struct {
	ID      uint64 `json:"id"`
	Address string `json:"address"`
	Voter   bool   `json:"voter"`
	Leader  bool   `json:"leader,omitempty"`
}

// member is this node's part of the replicated database. Everything that names dqlite is
// behind it.
type member interface {
	// DB is the database; calls block until there is a leader or ctx ends.
	DB() *sql.DB
	// Members asks the leader who shares the database.
	Members(ctx context.Context) ([]Member, error)
	// Admit has the leader let a node in; another that had its address is removed.
	Admit(ctx context.Context, id uint64, address string) error
	// Assign has the leader make a member a voter or a spare.
	Assign(ctx context.Context, id uint64, to role) error
	// Awake fails where this member itself knows of no leader.
	Awake(ctx context.Context) error
	// Serve hands a peer's connection to the database.
	Serve(conn net.Conn)
	// Remember says where peers are, after a start.
	Remember(addresses []string)
	// Close stops the database; connections and calls end with errors.
	Close() error
}

// errFiles says that the database's files, or the disk they are on, are at fault.
var errFiles = errors.New("cannot start the database")

// memberOptions are what a member is opened with.
type memberOptions struct {
	dir     string
	id      uint64 // 0 begins a database
	address string
	peers   []string
	latency time.Duration
	dial    func(ctx context.Context, address string) (net.Conn, error) // to another member
}

// nextRole says which one change brings the database to three voters that are there, as
// the leader sees it: who is a member, and for which it is long that they answered
// nothing. ok is false where all is well. Two members have one voter: two would both be
// needed, which is worse than one.
func nextRole(members []Member, gone map[uint64]bool) (id uint64, to role, ok bool) {
	const wanted = 3
	if len(members) < wanted {
		return 0, 0, false
	}
	var voters, present int
	var idle, extra uint64
	for _, m := range members {
		switch {
		case m.Voter:
			voters++
			if !gone[m.ID] {
				present++
			} else {
				extra = m.ID
			}
		case !gone[m.ID] && (idle == 0 || m.ID < idle):
			idle = m.ID
		}
	}
	switch {
	case voters > wanted && extra != 0:
		return extra, spare, true
	case present < wanted && voters <= wanted && idle != 0:
		return idle, voter, true
	}
	return 0, 0, false
}
