// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"sync"
	"time"
	"unicode"
	"unicode/utf8"
)

// What a report may have at most. A cluster of CloudStack's has some hundred nodes; a
// node's boot has some thirty steps.
const (
	maxBody     = 256 << 10
	maxName     = 253 // of DNS
	maxField    = 64
	maxText     = 500
	maxSteps    = 100
	maxEvents   = 500
	maxNodes    = 1000
	maxSkew     = 10 * time.Minute
	maxOffset   = 100 * 365 * 24 * time.Hour
	maxRevision = 1 << 40
)

// decode reads one JSON value of at most maxBody bytes and nothing after it.
func decode(from io.Reader, into any) error {
	data, err := io.ReadAll(io.LimitReader(from, maxBody+1))
	if err != nil {
		return err
	}
	if len(data) > maxBody {
		return fmt.Errorf("larger than %d bytes", maxBody)
	}
	decoder := json.NewDecoder(bytes.NewReader(data))
	if err := decoder.Decode(into); err != nil {
		return err
	}
	if _, err := decoder.Token(); !errors.Is(err, io.EOF) {
		return errors.New("there is more than one value")
	}
	return nil
}

// DecodeReport reads a report and checks that every value of it is within bounds.
// Reports are from outside: whoever has the bootstrap token may have made them.
func DecodeReport(from io.Reader) (*Report, error) {
	var report Report
	if err := decode(from, &report); err != nil {
		return nil, fmt.Errorf("cannot read the report: %w", err)
	}
	if err := report.check(); err != nil {
		return nil, fmt.Errorf("cannot take the report: %w", err)
	}
	return &report, nil
}

func (r *Report) check() error {
	texts := []bounded{{"cluster", r.Cluster, 1, maxField}, {"node", r.Node, 1, maxName}, {"role", r.Role, 0, maxField},
		{"address", r.Address, 0, maxField}, {"instance", r.Instance, 0, maxName}, {"boot", r.Boot, 1, maxField},
		{"version", r.Version, 0, maxField}, {"phase", r.Phase, 1, maxField}}
	if len(r.Steps) > maxSteps || len(r.Events) > maxEvents {
		return fmt.Errorf("it has %d steps and %d events: at most %d and %d are taken", len(r.Steps), len(r.Events), maxSteps, maxEvents)
	}
	for _, s := range r.Steps {
		texts = append(texts, bounded{"step", s.Name, 1, maxField}, bounded{"status", s.Status, 1, maxField},
			bounded{"note", s.Note, 0, maxText}, bounded{"code", s.Code, 0, maxField}, bounded{"message", s.Message, 0, maxText})
	}
	for _, e := range r.Events {
		texts = append(texts, bounded{"step", e.Step, 1, maxField}, bounded{"status", e.Status, 1, maxField},
			bounded{"note", e.Note, 0, maxText}, bounded{"code", e.Code, 0, maxField})
	}
	for _, text := range texts {
		if err := text.check(); err != nil {
			return err
		}
	}
	if r.Revision < 0 || r.Revision > maxRevision {
		return fmt.Errorf("its revision is %d", r.Revision)
	}
	if limit := maxOffset.Seconds(); !(r.Offset >= -limit && r.Offset <= limit) {
		return fmt.Errorf("its clock is off by %g seconds", r.Offset)
	}
	return nil
}

type bounded struct {
	field, value string
	least, most  int
}

// check also refuses what would reach an operator's terminal as a command to it.
func (b bounded) check() error {
	if len(b.value) < b.least || len(b.value) > b.most {
		return fmt.Errorf("its %s has %d bytes: %d to %d are expected", b.field, len(b.value), b.least, b.most)
	}
	if !utf8.ValidString(b.value) {
		return fmt.Errorf("its %s is not UTF-8", b.field)
	}
	for _, r := range b.value {
		if !unicode.IsPrint(r) {
			return fmt.Errorf("its %s has the character %U", b.field, r)
		}
	}
	return nil
}

// clip makes a text fit into a report: printable, on one line, not too long.
func clip(text string, most int) string {
	var kept []rune
	size := 0
	for _, r := range text {
		if !unicode.IsPrint(r) || r == utf8.RuneError {
			r = ' '
		}
		if size += utf8.RuneLen(r); size > most {
			break
		}
		kept = append(kept, r)
	}
	return string(kept)
}

// checkTime refuses a report that was sent long ago, or in the future.
func (r *Report) checkTime(now time.Time) *Refusal {
	if apart := now.Sub(r.Sent); apart > maxSkew || apart < -maxSkew {
		return &Refusal{Code: RefusedClock, Status: http.StatusConflict, Now: now,
			Message: fmt.Sprintf("the report of %s was sent at %s: here it is %s", r.Node, r.Sent.Format(time.RFC3339), now.Format(time.RFC3339))}
	}
	return nil
}

// rates allows each sender so many requests at once and so many per second after that.
type rates struct {
	mutex   sync.Mutex
	burst   float64
	perSec  float64
	buckets map[string]*bucket
}

type bucket struct {
	tokens float64
	last   time.Duration
}

// allow takes now from a clock that does not jump.
func (r *rates) allow(sender string, now time.Duration) bool {
	r.mutex.Lock()
	defer r.mutex.Unlock()
	if r.buckets == nil {
		r.buckets = map[string]*bucket{}
	}
	b := r.buckets[sender]
	if b == nil {
		if len(r.buckets) >= 4*maxNodes {
			for name, other := range r.buckets {
				if other.tokens+(now-other.last).Seconds()*r.perSec >= r.burst {
					delete(r.buckets, name) // as good as new
				}
			}
			if len(r.buckets) >= 4*maxNodes {
				return false
			}
		}
		b = &bucket{tokens: r.burst, last: now}
		r.buckets[sender] = b
	}
	b.tokens = min(r.burst, b.tokens+(now-b.last).Seconds()*r.perSec)
	b.last = now
	if b.tokens < 1 {
		return false
	}
	b.tokens--
	return true
}
