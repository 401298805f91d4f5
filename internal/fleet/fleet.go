// SPDX-License-Identifier: Apache-2.0

// Package fleet is the cluster's view: a journal of all nodes, kept by the control
// nodes in a replicated database (dqlite), to which every node reports. Nothing on the
// boot path waits for it; the truth about a node stays that node's state.json.
// docs/fleet.md has the keys, the threats, and what happens without a quorum.
//
// Without the build tag dqlite a node can report but keeps no journal.
package fleet

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"time"
)

// Port is the one port of a control node: reports, joins and the database's own
// traffic, told apart in the TLS handshake.
const Port = 6445

// Errors that callers tell apart.
var (
	// ErrNoDatabase says that this program was built without dqlite.
	ErrNoDatabase = errors.New("this nodeagent was built without dqlite: it reports, but keeps no journal of the cluster")
	// ErrNoQuorum says that the control nodes that can be reached are no majority.
	ErrNoQuorum = errors.New("no quorum of the control nodes' databases")
	// ErrNotJoined says that no control node has let this one in yet.
	ErrNotJoined = errors.New("this control node has not joined the others' database yet")
)

// Step is the last that is known of one step of a node.
type Step struct {
	Name    string     `json:"name"`
	Status  string     `json:"status"`
	Started *time.Time `json:"started,omitempty"`
	Seconds float64    `json:"seconds,omitempty"`
	Note    string     `json:"note,omitempty"`
	Code    string     `json:"code,omitempty"`
	Message string     `json:"message,omitempty"`
}

// State is what a node last said of itself.
type State struct {
	Node     string `json:"node"`
	Role     string `json:"role,omitempty"` // control, worker, etcd
	Address  string `json:"address,omitempty"`
	Instance string `json:"instance,omitempty"` // CloudStack's instance-id
	Boot     string `json:"boot"`
	Version  string `json:"version,omitempty"` // of nodeagent
	Phase    string `json:"phase"`
	Warnings int    `json:"warnings,omitempty"`
	Steps    []Step `json:"steps,omitempty"`
}

// Node is a node as the journal knows it.
type Node struct {
	State
	// Seen is when it was last heard, by the clock of the control node that heard it.
	Seen time.Time `json:"seen"`
	// ClockOffset is what the node's clock is slow by, in seconds, where that is much.
	ClockOffset float64 `json:"clockOffset,omitempty"`
}

// Event is one entry of the journal. It is never changed.
type Event struct {
	Seq    int       `json:"seq"` // its place among the node's events of that boot
	Time   time.Time `json:"time"`
	Step   string    `json:"step"`
	Status string    `json:"status"`
	Note   string    `json:"note,omitempty"`
	Code   string    `json:"code,omitempty"`
}

// Recorded is an event with the node it is of.
type Recorded struct {
	Node     string `json:"node"`
	Instance string `json:"instance,omitempty"`
	Boot     string `json:"boot"`
	Event
}

// Key identifies an event however often it is sent: a node that is not sure whether a
// report arrived sends it again.
func (s *State) Key(e Event) int64 {
	sum := sha256.New()
	for _, part := range []string{s.Node, s.Instance, s.Boot, e.Step, e.Status, e.Code} {
		fmt.Fprintf(sum, "%d:%s", len(part), part)
	}
	fmt.Fprint(sum, e.Time.UnixMilli())
	return int64(binary.BigEndian.Uint64(sum.Sum(nil)) >> 1)
}

// Report is what a node sends.
type Report struct {
	Cluster string `json:"cluster"` // Keys.Cluster
	State
	// Revision rises with every change of State within a boot.
	Revision int64 `json:"revision"`
	// Sent is the node's clock, corrected by Offset.
	Sent time.Time `json:"sent"`
	// Offset is what has to be added to the events' times, in seconds: what a control node
	// said the node's clock is slow by.
	Offset float64 `json:"offset,omitempty"`
	Events []Event `json:"events,omitempty"`
}

// Ack says what of a report is in the journal, on a majority of the control nodes.
type Ack struct {
	// Database changes when the journal was begun anew: then everything is to be sent again.
	Database string `json:"database"`
	Revision int64  `json:"revision"` // of the state that is kept
	Stored   int    `json:"stored"`   // events that are in the journal now
	Dropped  int    `json:"dropped"`  // events too old or too far in the future to be kept
	// Servers are the control nodes that can be reported to.
	Servers []string `json:"servers,omitempty"`
}

// Refusal is why a control node does not take a request.
type Refusal struct {
	Code    string    `json:"code"`
	Message string    `json:"message"`
	Now     time.Time `json:"now"` // the control node's clock
	Status  int       `json:"-"`   // of HTTP
}

func (r *Refusal) Error() string { return r.Message }

// The codes of refusals.
const (
	RefusedInvalid = "invalid"      // not a report, or with values out of bounds
	RefusedCluster = "cluster"      // of another cluster
	RefusedClock   = "clock"        // sent long ago or in the future
	RefusedFull    = "full"         // more nodes than a cluster can have
	RefusedRate    = "rate"         // too many
	RefusedUnready = "unready"      // no quorum, disk full, not joined: try another, or later
	RefusedLease   = "lease-denied" // others hold it
)
