// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

// goneAfter is how long a voter may be unreachable before another takes its place.
const goneAfter = 5 * time.Minute

// pruneEvery is in how many rounds the leader lets go of what is old.
const pruneEvery = 30

// lookAfter sees to the schema, the voters and what is kept, once.
func (s *Store) lookAfter(ctx context.Context) error {
	member, journal, err := s.current()
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 2*patience)
	defer cancel()
	// A member that could not write its disk keeps away from the others until it is started
	// again. Asking it is quick, also without a quorum.
	if err := member.Awake(ctx); err != nil {
		return fmt.Errorf("%w: %w", ErrNoQuorum, errors.Join(err, s.restart(ctx)))
	}
	members, err := member.Members(ctx)
	if err != nil {
		return errors.Join(err, s.restart(ctx))
	}
	s.failing = 0
	if !s.migrated {
		if _, err := journal.migrate(ctx, s.database()); err != nil {
			return err
		}
		s.migrated = true
	}
	s.remember(member, members)
	leads := slices.ContainsFunc(members, func(m Member) bool { return m.Leader && m.Address == s.o.Address })
	if leads {
		if err := s.adjust(ctx, member, members); err != nil {
			return err
		}
	}
	s.mutex.Lock()
	heard := s.heard
	s.heard = map[string]time.Time{}
	s.mutex.Unlock()
	if len(heard) > 0 {
		if err := journal.seen(ctx, heard); err != nil {
			return err
		}
	}
	if s.rounds++; leads && s.rounds%pruneEvery == 1 {
		if err := journal.prune(ctx, s.o.Now(), keep); err != nil {
			return err
		}
	}
	s.saveView(ctx)
	return nil
}

// restart starts the database again after some rounds without a leader, since it does not
// go on by itself after a disk was full. When the others have begun another, this one is
// set aside.
func (s *Store) restart(ctx context.Context) error {
	s.failing++
	if s.failing < 3 || len(s.peers()) > 0 && s.failing < 10 {
		return nil
	}
	if len(s.peers()) > 0 {
		answers, _ := s.askPeers(ctx, s.peers(), joinRequest{})
		if slices.ContainsFunc(answers, func(a joinAnswer) bool { return a.Quorum && a.Database != s.identity.Database }) {
			s.stop()
			return s.setAside("the other control nodes have begun another")
		}
	}
	s.stop()
	return nil
}

func (s *Store) remember(member member, members []Member) {
	var addresses []string
	for _, m := range members {
		if m.Address != s.o.Address {
			addresses = append(addresses, m.Address)
		}
	}
	member.Remember(addresses)
	s.mutex.Lock()
	s.members = members
	s.mutex.Unlock()
	if !slices.Equal(addresses, s.identity.Peers) {
		_ = s.change(func(i *identity) { i.Peers = addresses }) // it is tried again in the next round
	}
}

// adjust makes the members voters or spares; only the leader does it.
func (s *Store) adjust(ctx context.Context, member member, members []Member) error {
	gone := map[uint64]bool{}
	now := s.o.Since()
	for _, m := range members {
		if m.Address == s.o.Address {
			continue
		}
		dialCtx, cancel := context.WithTimeout(ctx, 2*time.Second)
		conn, err := s.dialPeer(dialCtx, m.Address)
		cancel()
		if err == nil {
			conn.Close()
			delete(s.missing, m.ID)
			continue
		}
		since, known := s.missing[m.ID]
		if !known {
			since = now
			s.missing[m.ID] = now
		}
		gone[m.ID] = now-since >= goneAfter || !m.Voter
	}
	for {
		id, to, ok := nextRole(members, gone)
		if !ok {
			return nil
		}
		if err := member.Assign(ctx, id, to); err != nil {
			return fmt.Errorf("cannot change the database's voters: %w", err)
		}
		for i := range members {
			if members[i].ID == id {
				members[i].Voter = to == voter
			}
		}
	}
}
