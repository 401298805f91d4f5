// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	recordFile = "/var/lib/nodeagent/boot-args.json"
	guestAgent = "qemu-guest-agent.service"
)

// Source tells where boot args came from.
type Source struct {
	Name       string
	Hypervisor Hypervisor
	Stale      bool          // of an earlier boot: CloudStack did not send them this time
	BootID     string        // the boot they were sent in; "" when not known
	Written    time.Time     // when the host wrote them, or they were read from where it keeps them
	Age        time.Duration // from then to the start of this boot; negative when written since
	Note       string        // what else an operator should know
	Attempts   []Attempt     // where else was looked, in order
}

// Attempt is one place where boot args were looked for and not found.
type Attempt struct {
	Source string
	Result string
}

// String is the source in one line, the most telling first.
func (s Source) String() string {
	text := fmt.Sprintf("from %s on %s", s.Name, s.Hypervisor)
	when := s.Written.UTC().Format("2006-01-02 15:04:05 MST")
	switch {
	case s.Stale:
		text = fmt.Sprintf("persisted from an earlier boot (%s), written %s, %s before this one", s.Hypervisor, when, span(s.Age))
	case s.Age < 0:
		text += fmt.Sprintf(", %s into this boot (%s)", span(-s.Age), when)
	default:
		text += ", " + when
	}
	if s.Note != "" {
		text += "; " + s.Note
	}
	return text
}

// span shows a duration to two digits or so.
func span(d time.Duration) string {
	switch {
	case d < 2*time.Minute:
		return fmt.Sprintf("%.0f s", d.Seconds())
	case d < 2*time.Hour:
		return fmt.Sprintf("%.0f min", d.Minutes())
	case d < 48*time.Hour:
		return fmt.Sprintf("%.0f h", d.Hours())
	}
	return fmt.Sprintf("%.0f days", d.Hours()/24)
}

// AwaitOptions are the deadlines of AwaitBootArgs; zero values take the defaults.
type AwaitOptions struct {
	Wait       time.Duration // for boot args when there are none yet: 60 s
	StaleGrace time.Duration // for new ones when those of an earlier boot are there: 10 s
}

// AwaitBootArgs returns the boot args as this machine's hypervisor hands them
// over (see sourcesOf). It starts the service that carries them, which on KVM
// CloudStack waits for without end (pain-point C3). Where the host sends them, it
// blocks until it has, at most options.Wait. Those of an earlier boot are
// returned, marked stale, when nothing comes (C4). What it returns it also
// records, for a boot on which nothing comes, and leaves where CloudStack's own
// programs look. The error is a fault with the code BootArgsMissing, or ctx's.
func AwaitBootArgs(ctx context.Context, h *host.Host, options AwaitOptions, report host.Report) (BootArgs, Source, error) {
	if options.Wait <= 0 {
		options.Wait = 60 * time.Second
	}
	if options.StaleGrace <= 0 {
		options.StaleGrace = 10 * time.Second
	}
	bootID, err := h.BootID()
	if err != nil {
		return BootArgs{}, Source{}, err
	}
	uptime, err := host.Uptime()
	if err != nil {
		return BootArgs{}, Source{}, err
	}
	w := &waiter{host: h, options: options, report: report, bootID: bootID,
		began: time.Now(), booted: time.Now().Add(-uptime),
		hypervisor: readHypervisorFacts(h).hypervisor()}
	w.sources = sourcesOf(w.hypervisor)
	w.record, w.note = readRecord(h)

	// The host writes as soon as the carrier runs: watch first.
	watching, unwatch := context.WithCancel(ctx)
	defer unwatch()
	if err := w.watch(watching); err != nil {
		return BootArgs{}, Source{}, err
	}
	w.startCarrier(ctx)
	for {
		w.attempts = nil
		for _, source := range w.sources.held {
			w.report("looking for them: %s", source.name)
			text, err := source.read(ctx, h)
			if err == nil {
				return w.acceptHeld(source.name, text)
			}
			w.attempts = append(w.attempts, Attempt{source.name, err.Error()})
		}
		if ctx.Err() != nil {
			return BootArgs{}, Source{}, w.interrupted(ctx)
		}
		if w.sources.delivery != nil {
			return w.await(ctx)
		}
		// What the machine holds does not come later, but the carrier may have
		// loaded what it takes to read it.
		if w.job.Result == nil {
			return w.fallBack(ctx, delivered{})
		}
		if err := w.awaitCarrier(ctx); err != nil {
			return BootArgs{}, Source{}, err
		}
	}
}

// carrierWait is how long the carrier may take to start.
const carrierWait = 3 * time.Minute

// waiter is one wait for boot args.
type waiter struct {
	host       *host.Host
	options    AwaitOptions
	report     host.Report
	bootID     string
	began      time.Time
	booted     time.Time // when the kernel started, by today's clock
	hypervisor Hypervisor
	sources    sources

	written  chan struct{} // a file of the delivery was closed by its writer
	carrier  string        // the unit that brings them; "" when the hypervisor needs none
	carries  bool          // it is installed
	job      host.Job      // its start; Result is nil when there is none to wait for
	up       time.Time     // when it was up
	heard    string        // what systemd says of it, for reports
	record   *record
	note     string
	attempts []Attempt
}

// watch listens to the files of the delivery until ctx ends.
func (w *waiter) watch(ctx context.Context) error {
	if w.sources.delivery == nil {
		return nil
	}
	w.written = make(chan struct{}, 1)
	for i, name := range w.sources.delivery.files {
		folder := w.host.Path(filepath.Dir(name))
		if _, err := os.Stat(folder); err != nil && i > 0 {
			continue // an alternative that this template does not have
		}
		if err := os.MkdirAll(folder, 0o755); err != nil {
			return fmt.Errorf("cannot make the folder of %s: %w", name, err)
		}
		watch, err := w.host.WatchFile(name)
		if err != nil {
			return err
		}
		go func() {
			defer watch.Close()
			for {
				select {
				case <-watch.Written:
				case <-ctx.Done():
					return
				}
				select {
				case w.written <- struct{}{}:
				default:
				}
			}
		}()
	}
	return nil
}

// startCarrier queues the start of the carrier and waits for nothing: early in
// boot the unit may be ordered after nodeagent's own (pain-point S2).
func (w *waiter) startCarrier(ctx context.Context) {
	var err error
	for _, name := range w.sources.carriers {
		var unit host.Unit
		if unit, err = w.host.Units.State(ctx, name); err != nil {
			break
		}
		if w.carrier == "" || unit.Exists() {
			w.carrier = name
		}
		if unit.Exists() {
			w.carries = true
			w.job, err = w.host.Units.Start(ctx, name)
			break
		}
	}
	if err != nil {
		w.report("cannot start %s: %v", strings.Join(w.sources.carriers, " or "), err)
	}
	if w.job.Result == nil {
		w.up = time.Now()
	}
}

// awaitCarrier waits until the start of the carrier has ended, one way or the
// other.
func (w *waiter) awaitCarrier(ctx context.Context) error {
	w.report("waiting for %s to start", w.carrier)
	timer := time.NewTimer(w.options.Wait)
	defer timer.Stop()
	select {
	case <-w.job.Result:
	case <-timer.C:
	case <-ctx.Done():
		return w.interrupted(ctx)
	}
	w.job.Result = nil
	return nil
}

func (w *waiter) interrupted(ctx context.Context) error {
	return fmt.Errorf("cannot wait for the boot args (%s): %w", w.state(ctx), context.Cause(ctx))
}

// state describes hypervisor and carrier for a message. A start that systemd took
// is not yet a service that runs (pain-point C3), so it asks systemd.
func (w *waiter) state(ctx context.Context) string {
	if len(w.sources.carriers) == 0 {
		return "hypervisor " + string(w.hypervisor)
	}
	return fmt.Sprintf("hypervisor %s, %s", w.hypervisor, w.carrierState(ctx))
}

func (w *waiter) carrierState(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	name := w.carrier
	if name == "" {
		name = w.sources.carriers[0]
	}
	unit, err := w.host.Units.State(ctx, name)
	switch {
	case err != nil:
		return fmt.Sprintf("the state of %s is not known: %v", name, err)
	case !unit.Exists():
		return fmt.Sprintf("%s is not installed", name)
	case unit.Result != "" && unit.Result != "success":
		return fmt.Sprintf("%s is %s (%s)", name, unit.ActiveState, unit.Result)
	}
	return fmt.Sprintf("%s is %s", name, unit.ActiveState)
}

// await looks at what was delivered, decides, and waits for the next event.
func (w *waiter) await(ctx context.Context) (BootArgs, Source, error) {
	awaits := w.sources.delivery.awaits
	var closed bool // the file's writer has closed it since the last look
	var partial time.Time
	for {
		file, err := w.look()
		if err != nil {
			return BootArgs{}, Source{}, fault.Wrap(fault.BootArgsMissing, err, "cannot read the boot args")
		}
		verdict := judge(file, w.record, w.bootID, w.booted)
		var until time.Time
		switch verdict {
		case ours:
			args, source := w.again()
			return args, source, nil
		case fresh:
			// A file that is being written has neither been closed nor ends as it should.
			if closed || file.whole {
				return w.acceptDelivered(file, "")
			}
			if partial.IsZero() {
				partial = time.Now()
			}
			until = partial.Add(w.options.StaleGrace)
			w.report("waiting for %s to the end%s", awaits, w.heard)
		case stale:
			until = w.deadline(w.options.StaleGrace)
			w.report("waiting until %s for %s anew; those of an earlier boot are there%s", until.UTC().Format("15:04:05"), awaits, w.heard)
		case absent:
			until = w.deadline(w.options.Wait)
			w.report("waiting until %s for %s%s", until.UTC().Format("15:04:05"), awaits, w.heard)
		}
		closed = false

		timer := time.NewTimer(time.Until(until))
		select {
		case <-w.written:
			closed = true
		case <-w.job.Result:
			w.job.Result, w.up = nil, time.Now()
			w.heard = " (" + w.carrierState(ctx) + ")"
		case <-timer.C:
			if verdict == fresh {
				return w.acceptDelivered(file, "taken although the host has not ended writing")
			}
			w.attempts = append(w.attempts, Attempt{w.sources.delivery.name,
				fmt.Sprintf("nothing came into %s; %s", strings.Join(w.sources.delivery.files, " or "), w.carrierState(ctx))})
			return w.fallBack(ctx, file)
		case <-ctx.Done():
			timer.Stop()
			return BootArgs{}, Source{}, w.interrupted(ctx)
		}
		timer.Stop()
	}
}

// look reads the newest of the delivery's files that has boot args.
func (w *waiter) look() (delivered, error) {
	var newest delivered
	for _, name := range w.sources.delivery.files {
		file, err := readDelivered(w.host, name, w.sources.delivery.parse)
		if err != nil {
			return delivered{}, err
		}
		if newest.text == "" || file.text != "" && file.written.After(newest.written) {
			newest = file
		}
	}
	return newest, nil
}

// deadline counts from when the carrier runs: the host cannot write before, and a
// busy host boots slowly. One that does not start at all is waited for no longer
// than carrierWait.
func (w *waiter) deadline(wait time.Duration) time.Time {
	if w.up.IsZero() {
		return w.began.Add(carrierWait + wait)
	}
	return w.up.Add(wait)
}

// acceptHeld takes what the machine holds. Until its next start from CloudStack
// it holds the same, so a later boot asks again and nothing goes stale.
func (w *waiter) acceptHeld(name, text string) (BootArgs, Source, error) {
	text = strings.TrimRight(text, "\r\n\x00") + "\n"
	if r := w.record; r != nil && r.BootID == w.bootID && r.Source == name && r.Text == text {
		args, source := w.again()
		return args, source, nil
	}
	return w.accept(name, text, delivered{name: CmdlineFile}, time.Now(), "")
}

func (w *waiter) acceptDelivered(file delivered, note string) (BootArgs, Source, error) {
	name := w.sources.delivery.name
	if name == SourceGuestAgent && !w.carries {
		name = SourceFile
	}
	return w.accept(name, file.text, file, file.written, note)
}

// accept leaves new boot args to CloudStack's programs and records them. What of
// that cannot be written is no reason to be without them: it is noted.
func (w *waiter) accept(name, text string, file delivered, written time.Time, note string) (BootArgs, Source, error) {
	source := w.source(name, written)
	source.BootID = w.bootID
	source.note(note)
	source.note(w.note)
	byHost := file.name == CmdlineFile && file.text != ""
	if err := leave(w.host, text, byHost); err != nil {
		source.note(err.Error())
	}
	if file.name == CmdlineFile && !byHost {
		// The file is of this boot now: the record tells that it is no delivery.
		file, _ = readDelivered(w.host, CmdlineFile, parseCmdlineFile)
	}
	saved := record{BootID: w.bootID, Source: name, Written: written, File: file.name,
		ModTime: file.written.UnixNano(), Size: len(file.text), SHA256: digest(file.text), Text: text}
	data, err := json.Marshal(saved)
	if err == nil {
		_, err = w.host.WriteFile(recordFile, append(data, '\n'), 0o600)
	}
	if err != nil {
		source.note(err.Error())
	}
	return ParseBootArgs(text), source, nil
}

// again returns what an earlier run of nodeagent in this boot accepted.
func (w *waiter) again() (BootArgs, Source) {
	source := w.source(w.record.Source, w.record.Written)
	source.BootID = w.bootID
	source.note("accepted earlier in this boot")
	return ParseBootArgs(w.record.Text), source
}

// fallBack returns the args of an earlier boot. The record stays as it is: they
// are stale for the rest of this boot.
func (w *waiter) fallBack(ctx context.Context, file delivered) (BootArgs, Source, error) {
	text, written, bootID := file.text, file.written, ""
	if w.record != nil {
		bootID = w.record.BootID
		if text == "" || !file.whole && len(w.record.Text) > len(text) {
			text, written = w.record.Text, w.record.Written
		}
	}
	if text == "" && file.name != CmdlineFile {
		// What CloudStack's scripts left before nodeagent came into the template.
		left, err := readDelivered(w.host, CmdlineFile, parseCmdlineFile)
		if err != nil {
			w.attempts = append(w.attempts, Attempt{CmdlineFile, err.Error()})
		}
		text, written = left.text, left.written
	}
	if text == "" {
		return BootArgs{}, Source{}, w.missing(ctx)
	}
	source := w.source(SourcePersisted, written)
	source.Stale, source.BootID = true, bootID
	if last := len(w.attempts) - 1; last >= 0 {
		source.note(w.attempts[last].Source + ": " + w.attempts[last].Result)
	}
	source.note(w.note)
	return ParseBootArgs(text), source, nil
}

// missing names every place that was looked at.
func (w *waiter) missing(ctx context.Context) error {
	var looked []string
	for _, attempt := range w.attempts {
		looked = append(looked, attempt.Source+": "+attempt.Result)
	}
	waited := ""
	if w.sources.delivery != nil {
		waited = fmt.Sprintf(" after %s", w.options.Wait)
	}
	err := fault.New(fault.BootArgsMissing, "no boot args%s (%s); %s", waited, w.state(ctx), strings.Join(looked, "; "))
	if w.sources.hint != "" {
		err = err.WithHint("%s", w.sources.hint)
	}
	return err
}

func (w *waiter) source(name string, written time.Time) Source {
	return Source{Name: name, Hypervisor: w.hypervisor, Written: written, Age: w.booted.Sub(written), Attempts: w.attempts}
}

func (s *Source) note(text string) {
	if s.Note != "" && text != "" {
		s.Note += "; "
	}
	s.Note += text
}

// delivered is one of a delivery's files at one moment; text is "" when it has no
// boot args.
type delivered struct {
	name    string
	text    string
	whole   bool // although its writer may not have closed it
	written time.Time
}

func readDelivered(h *host.Host, name string, parse func([]byte) (string, bool)) (delivered, error) {
	file, err := os.Open(h.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		return delivered{name: name}, nil
	}
	if err != nil {
		return delivered{}, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return delivered{}, err
	}
	data, err := io.ReadAll(io.LimitReader(file, MaxBootArgs+1))
	if err != nil {
		return delivered{}, err
	}
	text, whole := parse(data)
	return delivered{name, text, whole, info.ModTime()}, nil
}

// record is what nodeagent remembers of the boot args it accepted last. It holds
// their secrets, so its file is only root's.
type record struct {
	BootID  string    `json:"bootID"`
	Source  string    `json:"source"`
	Written time.Time `json:"written"`
	File    string    `json:"file"`    // the delivery's, whose state follows
	ModTime int64     `json:"modTime"` // nanoseconds
	Size    int       `json:"size"`
	SHA256  string    `json:"sha256"`
	Text    string    `json:"text"`
}

func readRecord(h *host.Host) (*record, string) {
	data, err := h.ReadFile(recordFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, ""
	}
	var r record
	if err == nil {
		err = json.Unmarshal(data, &r)
	}
	if err != nil || r.Text == "" || r.BootID == "" {
		return nil, fmt.Sprintf("the record %s could not be read and is not used", recordFile)
	}
	return &r, ""
}

func (r *record) describes(file delivered) bool {
	return file.name == r.File && file.written.UnixNano() == r.ModTime && len(file.text) == r.Size && digest(file.text) == r.SHA256
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// verdict is what a look at a delivery tells.
type verdict string

const (
	absent verdict = "absent" // nothing of any boot
	fresh  verdict = "fresh"  // written in this boot and not yet accepted
	ours   verdict = "ours"   // accepted in this boot
	stale  verdict = "stale"  // of an earlier boot
)

// slack allows for the coarse clock of file times.
const slack = time.Second

// judge tells new boot args from those a persistent disk still holds from an
// earlier boot. The record is the better witness: file times depend on a clock
// that may have been set since.
func judge(file delivered, r *record, bootID string, booted time.Time) verdict {
	thisBoot := r != nil && r.BootID == bootID
	switch {
	case file.text == "" && r == nil:
		return absent
	case thisBoot && (file.text == "" || r.describes(file)):
		return ours
	case thisBoot:
		return fresh // the host has written once more
	case file.text == "" || r != nil && r.describes(file):
		return stale
	case file.written.Before(booted.Add(-slack)):
		return stale
	}
	return fresh
}
