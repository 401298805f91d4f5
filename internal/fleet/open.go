// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"time"
)

// change changes what this node is in which database, durably. Run's goroutine alone
// calls it; others read under the lock.
func (s *Store) change(do func(*identity)) error {
	s.mutex.Lock()
	changed := *s.identity
	do(&changed)
	s.identity = &changed
	s.mutex.Unlock()
	return changed.save(s.o.Dir)
}

// start opens the database where it is not open.
func (s *Store) start(ctx context.Context) error {
	if member, _, _ := s.current(); member != nil {
		return nil
	}
	err := s.open(ctx)
	if err != nil {
		s.mutex.Lock()
		s.why = err
		s.mutex.Unlock()
	}
	return err
}

func (s *Store) open(ctx context.Context) error {
	dir := filepath.Join(s.o.Dir, databaseDir)
	if err := s.haveSpace(); err != nil {
		return err
	}
	who := s.identity
	reason := ""
	switch {
	case who.Starts >= attempts:
		reason = fmt.Sprintf("nodeagent ended %d times while it was started", who.Starts)
	case who.Database == "":
		reason = "it is not known whose it is"
	case who.Address != s.o.Address:
		reason = fmt.Sprintf("it is of %s, and this node is %s", who.Address, s.o.Address)
	}
	if reason != "" {
		if _, err := os.Stat(dir); err == nil {
			if err := s.setAside(reason); err != nil {
				return err
			}
		}
		if err := s.begin(ctx); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if err := s.change(func(i *identity) { i.Starts++ }); err != nil {
		return err
	}
	member, err := openMember(memberOptions{dir: dir, id: s.identity.ID, address: s.o.Address, peers: s.identity.Peers, latency: s.o.Latency, dial: s.dialPeer})
	// It came back, so it did not end the process.
	saved := s.change(func(i *identity) { i.Starts = 0 })
	if err != nil {
		if !errors.Is(err, errFiles) || s.haveSpace() != nil {
			return err // a full disk is no damage
		}
		return errors.Join(err, s.setAside(err.Error()))
	}
	if saved == nil && !s.identity.Joined {
		saved = s.join(ctx)
	}
	if saved != nil {
		return errors.Join(saved, member.Close())
	}
	s.mutex.Lock()
	s.member, s.journal, s.why = member, journal{member.DB()}, nil
	s.failing, s.migrated = 0, false
	s.mutex.Unlock()
	return nil
}

func (s *Store) haveSpace() error {
	free, err := freeBytes(s.o.Dir)
	if err == nil && free < minimumFree {
		err = fmt.Errorf("cannot start the database: %s has %d MB free, %d MB are needed", s.o.Dir, free>>20, minimumFree>>20)
	}
	return err
}

// setAside moves the database out of the way, but not one after the other: when a new one
// does not start either, something else is wrong.
func (s *Store) setAside(reason string) error {
	if now := s.o.Since(); s.asides > 0 && now-s.lastAside < time.Hour {
		return fmt.Errorf("the cluster's database is not set aside again so soon: %s", reason)
	}
	s.asides, s.lastAside = s.asides+1, s.o.Since()
	var name string
	s.mutex.Lock()
	changed := *s.identity
	name, err := changed.setAside(s.o.Dir, s.o.Now())
	if err == nil {
		s.identity = &changed
	}
	s.mutex.Unlock()
	if err == nil {
		s.o.Warn("the cluster's database is set aside as %s: %s. It is made again of the nodes' reports", name, reason)
	}
	return err
}

// begin decides whose database this node is to have: that of the others, or one of its
// own. A second one of its own is begun only when all others say that theirs is lost.
func (s *Store) begin(ctx context.Context) error {
	database, id := "", uint64(0)
	peers := s.peers()
	if len(peers) > 0 && s.o.Keys.CanPeer() {
		answers, err := s.askPeers(ctx, peers, joinRequest{})
		if found := slices.IndexFunc(answers, func(a joinAnswer) bool { return a.Quorum }); found >= 0 {
			database, id = answers[found].Database, randomID()
		} else if err != nil || len(s.o.Peers) > 0 {
			return fmt.Errorf("%w: no other has a database with a quorum: %w", ErrNotJoined, err)
		}
	}
	joined := database == ""
	if joined {
		database = randomName()
	}
	return s.change(func(i *identity) {
		*i = identity{Database: database, ID: id, Address: s.o.Address, Joined: joined, Peers: i.Peers, Damaged: i.Damaged}
	})
}

// peers are all control nodes that are known of.
func (s *Store) peers() (peers []string) {
	for _, address := range slices.Concat(s.o.Peers, s.identity.Peers) {
		if address != s.o.Address && !slices.Contains(peers, address) {
			peers = append(peers, address)
		}
	}
	return peers
}

// joinRequest asks which database a control node has and, with an ID, to be let in.
type joinRequest struct {
	ID      uint64 `json:"id,omitempty"`
	Address string `json:"address,omitempty"`
}

type joinAnswer struct {
	Database string   `json:"database"`
	Quorum   bool     `json:"quorum"`
	Members  []string `json:"members,omitempty"`
}

func (s *Store) join(ctx context.Context) error {
	answers, err := s.askPeers(ctx, s.peers(), joinRequest{ID: s.identity.ID, Address: s.o.Address})
	for _, answer := range answers {
		if answer.Database != s.identity.Database {
			err = errors.Join(err, fmt.Errorf("the others have another database now"), s.change(func(i *identity) { i.Database = "" }))
		} else if len(answer.Members) > 0 {
			return s.change(func(i *identity) { i.Joined, i.Peers = true, answer.Members })
		}
	}
	return fmt.Errorf("%w: %w", ErrNotJoined, err)
}

// askPeers asks all; err has those who did not answer.
func (s *Store) askPeers(ctx context.Context, peers []string, request joinRequest) (answers []joinAnswer, err error) {
	client := s.o.Keys.client(protocolJoin)
	defer client.CloseIdleConnections()
	for _, address := range peers {
		var answer joinAnswer
		if callErr := call(ctx, client, address, "/v1/join", request, &answer); callErr != nil {
			err = errors.Join(err, fmt.Errorf("%s: %w", address, callErr))
			continue
		}
		answers = append(answers, answer)
		if len(answer.Members) > 0 {
			break // it is let in
		}
	}
	return answers, err
}

// admit answers another control node.
func (s *Store) admit(ctx context.Context, request joinRequest) (answer joinAnswer, err error) {
	member, _, err := s.current()
	if err != nil {
		return answer, err
	}
	answer.Database = s.database()
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if request.ID != 0 {
		if host, _, err := net.SplitHostPort(request.Address); err != nil || net.ParseIP(host) == nil || len(request.Address) > maxField {
			return answer, fmt.Errorf("cannot let in %q: an address and a port are expected", clip(request.Address, maxField))
		}
		if err := member.Admit(ctx, request.ID, request.Address); err != nil {
			return answer, err
		}
	}
	members, err := member.Members(ctx)
	answer.Quorum = err == nil
	if request.ID == 0 {
		return answer, nil
	}
	for _, m := range members {
		answer.Members = append(answer.Members, m.Address)
	}
	return answer, err
}
