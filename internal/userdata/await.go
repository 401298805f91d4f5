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

// CmdlineFile is where CloudStack puts and looks for the boot args.
const CmdlineFile = "/var/cache/cloud/cmdline"

const (
	recordFile = "/var/lib/nodeagent/boot-args.json"
	fwCfgFile  = "/sys/firmware/qemu_fw_cfg/by_name/opt/cloudstack/cmdline/raw"
	guestAgent = "qemu-guest-agent.service"
)

// Names of a Source.
const (
	SourceGuestAgent = "guest agent"
	SourceFile       = "file" // somebody else than the guest agent wrote CmdlineFile
	SourceFWCfg      = "fw_cfg"
	SourcePersisted  = "persisted" // from an earlier boot
)

// Source tells where boot args came from.
type Source struct {
	Name    string
	Stale   bool      // of an earlier boot: CloudStack did not send them this time
	BootID  string    // the boot they were sent in; "" when not known
	Written time.Time // when the host wrote them
	Note    string    // what else an operator should know
}

// AwaitOptions are the deadlines of AwaitBootArgs; zero values take the defaults.
type AwaitOptions struct {
	Wait       time.Duration // for boot args when there are none yet: 60 s
	StaleGrace time.Duration // for new ones when those of an earlier boot are there: 10 s
}

// AwaitBootArgs returns the boot args as a KVM host delivers them: in QEMU's
// fw_cfg, or as a file the guest agent writes. It starts the guest agent, which
// CloudStack waits for without end (pain-point C3), and blocks until the host has
// written, at most options.Wait. Those of an earlier boot are returned, marked
// stale, when nothing comes (C4). What it returns it also records, for a boot on
// which nothing comes. The error is a fault with the code BootArgsMissing, or
// ctx's.
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
	// The host writes through the agent as soon as the agent runs: watch first.
	if err := os.MkdirAll(h.Path(filepath.Dir(CmdlineFile)), 0o755); err != nil {
		return BootArgs{}, Source{}, fmt.Errorf("cannot make the folder of %s: %w", CmdlineFile, err)
	}
	watch, err := h.WatchFile(CmdlineFile)
	if err != nil {
		return BootArgs{}, Source{}, err
	}
	defer watch.Close()

	w := &waiter{host: h, options: options, report: report, bootID: bootID,
		began: time.Now(), booted: time.Now().Add(-uptime)}
	w.startAgent(ctx)
	if text := w.readFWCfg(ctx); text != "" {
		return w.acceptFWCfg(text)
	}
	w.record, w.note = readRecord(h)
	return w.await(ctx, watch)
}

// agentWait is how long the guest agent may take to start.
const agentWait = 3 * time.Minute

// waiter is one wait for boot args.
type waiter struct {
	host    *host.Host
	options AwaitOptions
	report  host.Report
	bootID  string
	began   time.Time
	booted  time.Time // when the kernel started, by today's clock

	job     host.Job // the start of the guest agent; Result is nil when there is none to wait for
	agent   bool     // the guest agent exists
	agentUp time.Time
	heard   string // what systemd says of the guest agent, for reports
	record  *record
	note    string
}

// startAgent queues the start of the guest agent and waits for nothing: early in
// boot the unit may be ordered after nodeagent's own (pain-point S2).
func (w *waiter) startAgent(ctx context.Context) {
	unit, err := w.host.Units.State(ctx, guestAgent)
	if err == nil && unit.Exists() {
		w.agent = true
		w.job, err = w.host.Units.Start(ctx, guestAgent)
	}
	if err != nil {
		w.report("cannot start the guest agent: %v", err)
	}
	if w.job.Result == nil {
		w.agentUp = time.Now()
	}
}

// agentState describes the guest agent for a message. A start that systemd took
// is not yet an agent that runs (pain-point C3), so it asks systemd.
func (w *waiter) agentState(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 5*time.Second)
	defer cancel()
	unit, err := w.host.Units.State(ctx, guestAgent)
	switch {
	case err != nil:
		return fmt.Sprintf("the state of %s is not known: %v", guestAgent, err)
	case !unit.Exists():
		return fmt.Sprintf("%s is not installed", guestAgent)
	case unit.Result != "" && unit.Result != "success":
		return fmt.Sprintf("%s is %s (%s)", guestAgent, unit.ActiveState, unit.Result)
	}
	return fmt.Sprintf("%s is %s", guestAgent, unit.ActiveState)
}

func (w *waiter) readFWCfg(ctx context.Context) string {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	// Without the module there is no fw_cfg; on other machines there is no module.
	_, _ = w.host.Run.Run(ctx, host.Command{Path: "/sbin/modprobe", Args: []string{"qemu_fw_cfg"}})
	data, err := w.host.ReadFile(fwCfgFile)
	if err != nil || strings.Trim(string(data), " \t\r\n\x00") == "" {
		return ""
	}
	return strings.TrimRight(string(data), "\r\n\x00")
}

// acceptFWCfg also puts the args where CloudStack's scripts, which run as root,
// look for them.
func (w *waiter) acceptFWCfg(text string) (BootArgs, Source, error) {
	source := Source{Name: SourceFWCfg, BootID: w.bootID, Written: w.booted}
	if _, err := w.host.WriteFile(CmdlineFile, []byte(text+"\n"), 0o600); err != nil {
		source.Note = err.Error()
	}
	return w.accept(readCmdline(w.host), text, source)
}

// await looks at the file, decides, and waits for the next event.
func (w *waiter) await(ctx context.Context, watch *host.FileWatch) (BootArgs, Source, error) {
	var closed bool // the file's writer has closed it since the last look
	var partial time.Time
	for {
		file := readCmdline(w.host)
		if file.err != nil {
			return BootArgs{}, Source{}, fault.Wrap(fault.BootArgsMissing, file.err, "cannot read the boot args")
		}
		verdict := judge(file, w.record, w.bootID, w.booted)
		var until time.Time
		switch verdict {
		case ours:
			return w.again(file)
		case fresh:
			// A file that is being written has neither been closed nor ends in a newline.
			if closed || file.whole() {
				return w.acceptFile(file, "")
			}
			if partial.IsZero() {
				partial = time.Now()
			}
			until = partial.Add(w.options.StaleGrace)
		case stale:
			until = w.deadline(w.options.StaleGrace)
		case absent:
			until = w.deadline(w.options.Wait)
		}
		closed = false
		w.report("waiting for the host to write them through the guest agent%s", w.heard)

		timer := time.NewTimer(time.Until(until))
		select {
		case <-watch.Written:
			closed = true
		case <-w.job.Result:
			w.job.Result, w.agentUp = nil, time.Now()
			w.heard = " (" + w.agentState(ctx) + ")"
		case <-timer.C:
			switch verdict {
			case fresh:
				return w.acceptFile(file, "taken although the host has not ended writing")
			case stale:
				return w.fallBack(ctx, file)
			default:
				return BootArgs{}, Source{}, fault.New(fault.BootArgsMissing,
					"no boot args after %s: the host has not written %s through the guest agent; %s",
					w.options.Wait, CmdlineFile, w.agentState(ctx))
			}
		case <-ctx.Done():
			timer.Stop()
			return BootArgs{}, Source{}, fmt.Errorf("cannot wait for the boot args (%s): %w", w.agentState(ctx), context.Cause(ctx))
		}
		timer.Stop()
	}
}

// deadline counts from when the guest agent runs: the host cannot write before,
// and a busy host boots slowly. An agent that does not start at all is waited for
// no longer than agentWait.
func (w *waiter) deadline(wait time.Duration) time.Time {
	if w.agentUp.IsZero() {
		return w.began.Add(agentWait + wait)
	}
	return w.agentUp.Add(wait)
}

func (w *waiter) acceptFile(file cmdline, note string) (BootArgs, Source, error) {
	name := SourceFile
	if w.agent {
		name = SourceGuestAgent
	}
	return w.accept(file, file.text, Source{Name: name, BootID: w.bootID, Written: file.written, Note: note})
}

// accept records new boot args. A record that cannot be written is no reason to
// be without them: it is noted.
func (w *waiter) accept(file cmdline, text string, source Source) (BootArgs, Source, error) {
	source.note(w.note)
	saved := record{BootID: w.bootID, Source: source.Name, Written: source.Written,
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
func (w *waiter) again(file cmdline) (BootArgs, Source, error) {
	return ParseBootArgs(w.record.Text), Source{Name: w.record.Source, BootID: w.bootID, Written: w.record.Written,
		Note: "accepted earlier in this boot"}, nil
}

// fallBack returns the args of an earlier boot. The record stays as it is: they
// are stale for the rest of this boot.
func (w *waiter) fallBack(ctx context.Context, file cmdline) (BootArgs, Source, error) {
	source := Source{Name: SourcePersisted, Stale: true, Written: file.written,
		Note: "the host sent none on this boot; " + w.agentState(ctx)}
	source.note(w.note)
	text := file.text
	if w.record != nil {
		source.BootID = w.record.BootID
		if text == "" || !file.whole() && len(w.record.Text) > len(text) {
			text, source.Written = w.record.Text, w.record.Written
		}
	}
	return ParseBootArgs(text), source, nil
}

func (s *Source) note(text string) {
	if s.Note != "" && text != "" {
		s.Note += "; "
	}
	s.Note += text
}

// cmdline is CmdlineFile at one moment; text is "" when there is none.
type cmdline struct {
	text    string
	written time.Time
	err     error
}

// whole says that the text ends as the host's text does: patch.sh echoes it.
func (c cmdline) whole() bool { return strings.HasSuffix(c.text, "\n") }

func readCmdline(h *host.Host) cmdline {
	file, err := os.Open(h.Path(CmdlineFile))
	if errors.Is(err, fs.ErrNotExist) {
		return cmdline{}
	}
	if err != nil {
		return cmdline{err: err}
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return cmdline{err: err}
	}
	data, err := io.ReadAll(io.LimitReader(file, MaxBootArgs+1))
	if err != nil {
		return cmdline{err: err}
	}
	if strings.Trim(string(data), " \t\r\n\x00") == "" {
		return cmdline{}
	}
	return cmdline{text: string(data), written: info.ModTime()}
}

// record is what nodeagent remembers of the boot args it accepted last. It holds
// their secrets, so its file is only root's.
type record struct {
	BootID  string    `json:"bootID"`
	Source  string    `json:"source"`
	Written time.Time `json:"written"`
	ModTime int64     `json:"modTime"` // of CmdlineFile, nanoseconds
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

func (r *record) describes(file cmdline) bool {
	return file.written.UnixNano() == r.ModTime && len(file.text) == r.Size && digest(file.text) == r.SHA256
}

func digest(text string) string {
	sum := sha256.Sum256([]byte(text))
	return hex.EncodeToString(sum[:])
}

// verdict is what a look at CmdlineFile tells.
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
func judge(file cmdline, r *record, bootID string, booted time.Time) verdict {
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
