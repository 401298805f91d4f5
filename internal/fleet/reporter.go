// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"context"
	"encoding/json"
	"errors"
	"math/rand/v2"
	"net"
	"net/http"
	"slices"
	"time"
)

// Reporter tells the control nodes what a node does. It holds nothing on disk: all it
// says is taken from the node's state, and what is not in the journal is sent again.
type Reporter struct {
	Keys *Keys
	// Servers are control nodes that may be there; it learns of others from them.
	Servers []string
	// State reads what the node does now, and the events of this boot that it knows of, oldest first.
	State func() (State, []Event, error)
	// Changed is sent to when State may have something new. It may be nil.
	Changed <-chan struct{}
	// Warn is told what an operator should know. It may be nil.
	Warn func(format string, args ...any)
	// Heartbeat is how often it says that the node lives; 0 is two minutes.
	Heartbeat time.Duration
	Now       func() time.Time // nil is the machine's clock
	From      net.Addr         // the local address; nil is the kernel's choice

	client   *http.Client
	servers  []string // the one that answered last is first
	acked    map[int64]bool
	database string
	revision int64
	last     string        // the state that revision is of
	offset   time.Duration // what this clock is slow by, where it is much
}

const defaultHeartbeat = 2 * time.Minute

// Run reports until ctx ends. Whatever fails is tried again, and costs one warning.
func (r *Reporter) Run(ctx context.Context) {
	r.prepare()
	defer r.client.CloseIdleConnections()
	const shortest, longest = time.Second, time.Minute
	pause, warned := shortest, false
	timer := time.NewTimer(0)
	defer timer.Stop()
	changed := r.Changed
	for {
		select {
		case <-ctx.Done():
			return
		case _, open := <-changed:
			if !open {
				changed = nil
				continue
			}
			if pause > shortest {
				continue // the timer comes soon enough; many nodes may be waiting like this one
			}
		case <-timer.C:
		}
		if err := r.Once(ctx); err != nil && ctx.Err() == nil {
			if pause = min(2*pause, longest); pause >= 16*shortest && !warned && r.Warn != nil {
				warned = true
				r.Warn("no control node takes this node's reports: %v", err)
			}
			timer.Reset(jitter(pause))
			continue
		}
		pause, warned = shortest, false
		timer.Reset(jitter(r.Heartbeat))
	}
}

// jitter keeps nodes that began together from staying together.
func jitter(d time.Duration) time.Duration { return d/2 + rand.N(d/2+1) }

func (r *Reporter) prepare() {
	if r.client == nil {
		r.client = r.Keys.clientFrom(r.From, protocolReport)
		r.acked = map[int64]bool{}
		r.servers = slices.Clone(r.Servers)
	}
	if r.Now == nil {
		r.Now = time.Now
	}
	if r.Heartbeat == 0 {
		r.Heartbeat = defaultHeartbeat
	}
}

// Once reports all that is new, to the first control node that takes it. When it returns
// nil the journal has it.
func (r *Reporter) Once(ctx context.Context) error {
	r.prepare()
	state, events, err := r.State()
	if err != nil {
		return err
	}
	state.clip()
	if now := fingerprint(state); now != r.last {
		r.last = now
		r.revision++
	}
	for {
		var fresh []Event
		for _, e := range events {
			if e.clip(); !r.acked[state.Key(e)] && len(fresh) < maxEvents {
				fresh = append(fresh, e)
			}
		}
		again, err := r.send(ctx, state, fresh)
		if err != nil || !again {
			return err
		}
	}
}

// send sends one report. again says that there is more to send now.
func (r *Reporter) send(ctx context.Context, state State, events []Event) (again bool, err error) {
	var ack Ack
	report := Report{Cluster: r.Keys.Cluster(), State: state, Events: events}
	if err := r.ask(ctx, &report, &ack); err != nil {
		return false, err
	}
	if r.database != ack.Database { // begun anew: it has nothing of this node but this report
		r.acked = map[int64]bool{}
		r.database, again = ack.Database, true
	}
	for _, e := range events {
		r.acked[state.Key(e)] = true
	}
	if ack.Revision > r.revision { // an earlier reporter of this boot was further
		r.revision, again = ack.Revision+1, true
	}
	for _, server := range ack.Servers {
		if !slices.Contains(r.servers, server) && len(r.servers) < 20 {
			r.servers = append(r.servers, server)
		}
	}
	return again || len(events) == maxEvents, nil
}

// ask tries all control nodes once.
func (r *Reporter) ask(ctx context.Context, report *Report, ack *Ack) error {
	var failures []error
	for _, server := range slices.Clone(r.servers) {
		for try := 0; try < 2; try++ {
			report.Revision = r.revision
			report.Offset = r.offset.Seconds()
			report.Sent = r.Now().Add(r.offset).UTC()
			err := call(ctx, r.client, server, "/v1/report", report, ack)
			if err == nil {
				at := slices.Index(r.servers, server)
				r.servers = append([]string{server}, slices.Delete(r.servers, at, at+1)...)
				return nil
			}
			var refused *Refusal
			if errors.As(err, &refused) && refused.Code == RefusedClock && try == 0 {
				// This clock is off, or that one. The times of the control node count.
				r.offset = refused.Now.Sub(r.Now()).Round(time.Second)
				r.revision++ // the journal has the offset with the state
				continue
			}
			failures = append(failures, err)
			break
		}
	}
	if len(failures) == 0 {
		return errors.New("cannot report: no control node is known")
	}
	return errors.Join(failures...)
}

// Lease asks for leave to upgrade, renews it or gives it back. A *Refusal with the code
// lease-denied names who has it; any other error means that no control node could say.
func (r *Reporter) Lease(ctx context.Context, lease Lease) error {
	r.prepare()
	var failures []error
	for _, server := range r.servers {
		var answer struct{}
		err := call(ctx, r.client, server, "/v1/lease", lease, &answer)
		var refused *Refusal
		if err == nil || errors.As(err, &refused) && (refused.Code == RefusedLease || refused.Code == RefusedInvalid) {
			return err
		}
		failures = append(failures, err)
	}
	return errors.Join(append(failures, ErrNoQuorum)...)
}

// clip makes a state fit into a report.
func (s *State) clip() {
	for _, text := range []*string{&s.Role, &s.Address, &s.Boot, &s.Version, &s.Phase} {
		*text = clip(*text, maxField)
	}
	s.Node, s.Instance = clip(s.Node, maxName), clip(s.Instance, maxName)
	s.Steps = slices.Clone(s.Steps[:min(len(s.Steps), maxSteps)])
	for i := range s.Steps {
		step := &s.Steps[i]
		step.Name, step.Status, step.Code = clip(step.Name, maxField), clip(step.Status, maxField), clip(step.Code, maxField)
		step.Note, step.Message = clip(step.Note, maxText), clip(step.Message, maxText)
	}
}

func (e *Event) clip() {
	e.Step, e.Status, e.Code, e.Note = clip(e.Step, maxField), clip(e.Status, maxField), clip(e.Code, maxField), clip(e.Note, maxText)
}

// fingerprint tells two states apart.
func fingerprint(s State) string {
	data, err := json.Marshal(s)
	if err != nil { // texts, numbers and times of this millennium: it does not happen
		return err.Error()
	}
	return string(data)
}
