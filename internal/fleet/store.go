// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"sync"
	"time"

	"nodeagent/internal/host"
)

// Options are what a control node's store is opened with.
type Options struct {
	Dir     string // for its files alone
	Address string // host:port that the other nodes reach it by
	Keys    *Keys
	// Peers are control nodes that may have a database already. Without any the node begins
	// one; with some it joins theirs, and until then keeps nothing.
	Peers []string
	// Warn is told what an operator should know, in one sentence. It may be nil.
	Warn func(format string, args ...any)
	// Now is the wall clock, Since one that does not jump; nil are the machine's.
	Now   func() time.Time
	Since func() time.Duration
	// Every is how often it looks after its members and writes the last view; 0 is a minute.
	Every time.Duration
	// Latency sets how often members hear of the leader, at 1.5 of it, and when they elect
	// another, after 15 of it; 0 is 800 ms, since nobody waits for either and each costs CPU time.
	Latency time.Duration
}

func (o Options) withDefaults() Options {
	if o.Warn == nil {
		o.Warn = func(string, ...any) {}
	}
	if o.Now == nil {
		o.Now = time.Now
	}
	if o.Since == nil {
		start := time.Now()
		o.Since = func() time.Duration { return time.Since(start) }
	}
	if o.Every == 0 {
		o.Every = time.Minute
	}
	if o.Latency == 0 {
		o.Latency = 800 * time.Millisecond
	}
	return o
}

// patience bounds how long a request waits for a quorum.
const patience = 8 * time.Second

// Store is a control node's part of the journal.
type Store struct {
	o Options

	mutex    sync.Mutex
	identity *identity
	member   member // nil until joined, or while it cannot start
	journal  journal
	why      error // why there is no member
	members  []Member
	missing  map[uint64]time.Duration // since when voters do not answer
	heard    map[string]time.Time     // nodes that said nothing new
	failing  int                      // rounds without a leader
	rounds   int
	migrated bool

	asides    int // databases set aside by this process
	lastAside time.Duration

	kept map[string]revision // what the journal has, of nodes that reported here

	leases leases
	writes chan write
}

// revision is a state that the journal has.
type revision struct {
	database, boot string
	number         int64
}

type write struct {
	arrival
	done chan<- result
}

type result struct {
	ack Ack
	err error
}

// Open prepares a store; Run starts it. What is wrong with its files is found by Run,
// which goes on without.
func Open(o Options) (*Store, error) {
	o = o.withDefaults()
	if err := os.MkdirAll(o.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("cannot open the fleet's store: %w", err)
	}
	who, err := loadIdentity(o.Dir)
	if err != nil {
		return nil, fmt.Errorf("cannot open the fleet's store: %w", err)
	}
	return &Store{o: o, identity: who, why: ErrNotJoined, missing: map[uint64]time.Duration{}, heard: map[string]time.Time{},
		kept: map[string]revision{}, writes: make(chan write, 256)}, nil
}

// Run starts the database, joins the others', and looks after both until ctx ends. It
// returns only then: whatever is wrong is tried again, and costs one warning.
func (s *Store) Run(ctx context.Context) {
	defer s.stop()
	var writer sync.WaitGroup
	writer.Go(func() { s.write(ctx) })
	defer writer.Wait()
	warned := ""
	tick := time.NewTimer(0)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		pause := s.o.Every
		err := s.start(ctx)
		if err == nil {
			err = s.lookAfter(ctx)
		}
		if err != nil && ctx.Err() == nil {
			pause = min(pause, 5*time.Second)
			if text := err.Error(); text != warned {
				warned = text
				s.o.Warn("the cluster's view is not up to date: %v", err)
			}
		} else {
			warned = ""
		}
		tick.Reset(pause)
	}
}

func (s *Store) stop() {
	s.mutex.Lock()
	member := s.member
	s.member, s.why = nil, ErrNotJoined
	s.mutex.Unlock()
	if member != nil {
		_ = member.Close() // the process ends, or starts it anew: nothing depends on how it went
	}
}

// dialPeer connects to another member of the same database.
func (s *Store) dialPeer(ctx context.Context, address string) (net.Conn, error) {
	if !s.o.Keys.CanPeer() {
		return nil, errors.New("this cluster's control nodes have no certificate key in their userdata")
	}
	return s.o.Keys.dial(ctx, address, protocolPeer+s.database())
}

func (s *Store) database() string {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	return s.identity.Database
}

// current is the member and its journal, or why there is none.
func (s *Store) current() (member, journal, error) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	if s.member == nil {
		return nil, journal{}, s.why
	}
	return s.member, s.journal, nil
}

// Append stores a report and returns once a majority of the control nodes has it on disk.
// An error may mean that it is stored nevertheless; sending it again does no harm.
func (s *Store) Append(ctx context.Context, report *Report) (Ack, error) {
	at := s.o.Now()
	if refusal := report.checkTime(at); refusal != nil {
		return Ack{}, refusal
	}
	if ack, known := s.heardAgain(report, at); known {
		return ack, nil
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	done := make(chan result, 1)
	select {
	case s.writes <- write{arrival{report, at}, done}:
	case <-ctx.Done():
		return Ack{}, ErrNoQuorum
	}
	select {
	case r := <-done:
		return r.ack, r.err
	case <-ctx.Done():
		return Ack{}, ErrNoQuorum
	}
}

// heardAgain takes a report that has nothing new: that the node lives is noted in memory,
// and written with others' some time later.
func (s *Store) heardAgain(report *Report, at time.Time) (Ack, bool) {
	servers := s.Servers()
	s.mutex.Lock()
	defer s.mutex.Unlock()
	kept := s.kept[report.Node]
	if len(report.Events) > 0 || s.member == nil || kept != (revision{s.identity.Database, report.Boot, report.Revision}) {
		return Ack{}, false
	}
	s.heard[report.Node] = at
	return Ack{Database: kept.database, Revision: kept.number, Servers: servers}, true
}

// write is the one writer: what came while it wrote is written together.
func (s *Store) write(ctx context.Context) {
	for {
		var batch []write
		select {
		case <-ctx.Done():
			return
		case first := <-s.writes:
			batch = append(batch, first)
		}
		for more := true; more && len(batch) < 64; {
			select {
			case next := <-s.writes:
				batch = append(batch, next)
			default:
				more = false
			}
		}
		s.writeBatch(ctx, batch)
	}
}

func (s *Store) writeBatch(ctx context.Context, batch []write) {
	_, journal, err := s.current()
	arrivals := make([]arrival, len(batch))
	for i, w := range batch {
		arrivals[i] = w.arrival
	}
	var acks []Ack
	if err == nil {
		ctx, cancel := context.WithTimeout(ctx, patience)
		acks, err = journal.append(ctx, arrivals, keep)
		cancel()
	}
	var refused *Refusal
	if errors.As(err, &refused) && len(batch) > 1 {
		for _, w := range batch { // one of them is at fault: each for itself
			s.writeBatch(ctx, []write{w})
		}
		return
	}
	database, servers := s.database(), s.Servers()
	for i, w := range batch {
		r := result{err: err}
		if err == nil {
			r.ack = acks[i]
			r.ack.Database, r.ack.Servers = database, servers
			s.mutex.Lock()
			if r.ack.Revision == w.Revision {
				s.kept[w.Node] = revision{database, w.Boot, w.Revision}
			} else {
				delete(s.kept, w.Node)
			}
			s.mutex.Unlock()
		}
		w.done <- r
	}
}

// Servers are the control nodes that can be reported to.
func (s *Store) Servers() (addresses []string) {
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for _, m := range s.members {
		addresses = append(addresses, m.Address)
	}
	return addresses
}

// Lease takes, renews or gives back leave to upgrade. Without a quorum it is refused.
func (s *Store) Lease(ctx context.Context, lease Lease) error {
	if err := lease.check(); err != nil {
		return &Refusal{Code: RefusedInvalid, Status: http.StatusBadRequest, Now: s.o.Now(), Message: "cannot take the lease: " + err.Error()}
	}
	_, journal, err := s.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return s.leases.ask(ctx, journal, lease, s.o.Since)
}

// Events returns the journal of one node or ("") of all.
func (s *Store) Events(ctx context.Context, node string) ([]Recorded, error) {
	_, journal, err := s.current()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	return journal.events(ctx, node)
}

// Known is what is known of the cluster, and how well.
type Known struct {
	Nodes   []Node    `json:"nodes"`
	Members []Member  `json:"members,omitempty"`
	At      time.Time `json:"at"`
	// Stale is why this is not the present but what was last known; "" where it is.
	Stale   string   `json:"stale,omitempty"`
	Damaged []string `json:"damaged,omitempty"` // databases that were set aside
}

// Known asks the journal. Without a quorum it returns what was last known.
func (s *Store) Known(ctx context.Context) (Known, error) {
	known, err := s.ask(ctx)
	if err == nil {
		return known, nil
	}
	last, lastErr := LastKnown(s.o.Dir)
	if lastErr != nil {
		return Known{}, err
	}
	last.Stale = err.Error()
	return last, nil
}

func (s *Store) ask(ctx context.Context) (Known, error) {
	_, journal, err := s.current()
	if err != nil {
		return Known{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	nodes, err := journal.nodes(ctx)
	if err != nil {
		return Known{}, fmt.Errorf("%w: %w", ErrNoQuorum, err)
	}
	s.mutex.Lock()
	defer s.mutex.Unlock()
	for i := range nodes {
		if at, found := s.heard[nodes[i].Node]; found && at.After(nodes[i].Seen) {
			nodes[i].Seen = at
		}
	}
	return Known{Nodes: nodes, Members: s.members, At: s.o.Now().UTC(), Damaged: s.identity.Damaged}, nil
}

// LastKnown reads what a control node knew last, also while no nodeagent runs there.
func LastKnown(dir string) (Known, error) {
	data, err := os.ReadFile(filepath.Join(dir, viewFile))
	if err != nil {
		return Known{}, err
	}
	var known Known
	if err := json.Unmarshal(data, &known); err != nil {
		return Known{}, fmt.Errorf("cannot read %s: %w", filepath.Join(dir, viewFile), err)
	}
	known.Stale = "this is what was last known"
	return known, nil
}

// saveView keeps the view for when there is no quorum. That it could not be written is
// no matter: the next is.
func (s *Store) saveView(ctx context.Context) {
	known, err := s.ask(ctx)
	if err != nil {
		return
	}
	if data, err := json.Marshal(known); err == nil {
		_, _ = (&host.Host{}).WriteFile(filepath.Join(s.o.Dir, viewFile), append(data, '\n'), 0o600)
	}
}
