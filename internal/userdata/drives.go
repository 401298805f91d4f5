// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// medium is what a look at a block device showed.
type medium struct {
	device string
	label  string
	kind   mediumKind
	held   Userdata // Raw is empty when there is no userdata on it
	err    error    // why a medium that is ours, or may be, cannot be used
}

type mediumKind int

const (
	mediumForeign mediumKind = iota // a file system that is neither, or none known
	mediumNone                      // no medium in the drive
	mediumConfigDrive
	mediumNoCloud    // a drive with a NoCloud seed
	mediumUnreadable // nobody knows what it is
)

// name is how a medium is spoken of: config drive /dev/sr1 (label config-2).
func (m medium) name() string {
	what := map[mediumKind]string{mediumConfigDrive: "config drive ", mediumNoCloud: "NoCloud drive "}[m.kind]
	if m.label == "" {
		return what + m.device
	}
	return fmt.Sprintf("%s%s (label %s)", what, m.device, m.label)
}

// state is why a medium does not help; "" for one nobody asks about.
func (m medium) state() string {
	switch {
	case m.err != nil:
		return "cannot be read: " + m.err.Error()
	case (m.kind == mediumConfigDrive || m.kind == mediumNoCloud) && m.held.Raw == nil:
		return "it has no userdata"
	case m.kind == mediumConfigDrive:
		return fmt.Sprintf("it is for %s and not labelled %s", quote(m.held.Meta["local-hostname"]), configDriveLabel)
	case m.kind == mediumNone && host.IsOptical(m.device):
		return "no medium"
	case m.kind == mediumForeign && host.IsOptical(m.device):
		return "no config drive"
	}
	return ""
}

// readMedium looks at a device. It may block for as long as the device does.
func readMedium(path, device string) medium {
	m := medium{device: device}
	file, err := os.Open(path)
	var v volume
	if err == nil {
		defer file.Close()
		v, err = openVolume(file)
	}
	switch {
	case errors.Is(err, unix.ENOMEDIUM) || errors.Is(err, unix.ENXIO) || errors.Is(err, fs.ErrNotExist):
		m.kind = mediumNone
		return m
	case err != nil:
		m.kind, m.err = mediumUnreadable, shortPathError(err)
		return m
	case v == nil:
		return m
	}
	m.label = v.label()
	return m.read(v)
}

// read tells the medium by label and content. A config drive is also one under
// another label, as CloudStack's hidden setting may give it: chooseConfigDrive
// asks more of it.
func (m medium) read(v volume) medium {
	if strings.EqualFold(m.label, noCloudLabel) {
		m.kind = mediumNoCloud
		m.held, m.err = readNoCloud(func(name string, most int) ([]byte, error) { return readVolume(v, name, most) })
	} else {
		m.kind = mediumConfigDrive
		m.held, m.err = readConfigDrive(v)
		if m.err != nil && !m.labelled() {
			m.kind, m.err = mediumForeign, nil
		}
	}
	m.err = shortPathError(m.err)
	return m
}

func (m medium) labelled() bool { return strings.EqualFold(m.label, configDriveLabel) }

// shortPathError leaves out the path, which whoever shows the error names.
func shortPathError(err error) error {
	if path := (*fs.PathError)(nil); errors.As(err, &path) {
		return path.Err
	}
	return err
}

const (
	// stallLimit is how long a drive may take to answer: its host's storage may
	// hang (pain-point C14). The network's answer waits for it at most.
	stallLimit = 10 * time.Second
	// rereadInterval is when a medium that could not be read is tried again: of that
	// the kernel sends no event.
	rereadInterval = 5 * time.Second
)

// finder looks for userdata on this machine.
type finder struct {
	host    *host.Host
	options FetchOptions
	stall   time.Duration // stallLimit
	reread  time.Duration // rereadInterval
	read    func(path, device string) medium
	reading map[string]chan medium // looks at devices that have not ended
}

func newFinder(h *host.Host, options FetchOptions) *finder {
	return &finder{host: h, options: options, stall: stallLimit, reread: rereadInterval,
		read: readMedium, reading: map[string]chan medium{}}
}

// look looks at everything once and returns the source to use: a config drive, the
// boot arg, a NoCloud drive, a seed folder, in this order; or nil, with what was
// seen. again says that another look may show more though no event comes. It
// blocks for stallLimit at most.
func (f *finder) look(ctx context.Context) (found *Userdata, seen []attempt, again bool, err error) {
	media, err := f.media(ctx)
	if err != nil {
		seen = append(seen, attempt{who: "drives", what: err.Error()})
	}
	for _, m := range media {
		again = again || m.err != nil
		if state := m.state(); state != "" {
			seen = append(seen, attempt{who: m.name(), what: state})
		}
	}
	drive, err := chooseConfigDrive(media, f.options)
	if drive != nil || err != nil {
		return drive, nil, false, err
	}
	if f.options.BootArg != "" {
		held, err := decodeBootArg(f.options.BootArg, f.options.Name)
		if err == nil {
			return &held, nil, false, nil
		}
		seen = append(seen, attempt{who: bootArgSource, what: err.Error()})
	}
	for _, m := range media {
		if m.kind == mediumNoCloud && m.err == nil && m.held.Raw != nil {
			m.held.Source = m.name()
			return &m.held, nil, false, nil
		}
	}
	held, folder, err := readSeedFolders(f.host)
	if err == nil && held.Raw != nil {
		held.Source = "NoCloud seed " + folder
		return &held, nil, false, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		what := "it has no userdata"
		if err != nil {
			what = shortPathError(err).Error()
		}
		seen = append(seen, attempt{who: "NoCloud seed " + folder, what: what})
	}
	if len(seen) == 0 {
		seen = append(seen, attempt{who: "config drive", what: "none attached"})
	}
	return nil, seen, again, nil
}

// media looks at all devices side by side. A device that does not answer is left
// to itself, and asked again only when it has.
func (f *finder) media(ctx context.Context) ([]medium, error) {
	devices, err := f.host.BlockDevices()
	if err != nil {
		return nil, err
	}
	for _, device := range devices {
		if f.reading[device] == nil {
			answer := make(chan medium, 1)
			f.reading[device] = answer
			go func() { answer <- f.read(f.host.Path(device), device) }()
		}
	}
	ctx, cancel := context.WithTimeout(ctx, f.stall)
	defer cancel()
	var media []medium
	for _, device := range devices {
		select {
		case m := <-f.reading[device]:
			delete(f.reading, device)
			media = append(media, m)
		case <-ctx.Done():
			media = append(media, medium{device: device, kind: mediumUnreadable, err: fmt.Errorf("no answer for %v", f.stall)})
		}
	}
	return media, nil
}

// chooseConfigDrive returns the config drive to use, or nil when there is none. Of
// several that say different things it is this machine's, by host name, then by
// instance id; nothing is guessed. One under another label than config-2 must in
// any case be this machine's.
func chooseConfigDrive(media []medium, options FetchOptions) (*Userdata, error) {
	hostname := func(m medium) bool {
		return options.Name != "" && strings.EqualFold(m.held.Meta["local-hostname"], options.Name)
	}
	instance := func(m medium) bool {
		return options.Instance != "" && m.held.Meta["instance-id"] == options.Instance
	}
	var labelled, others []medium
	for _, m := range media {
		switch {
		case m.kind != mediumConfigDrive || m.err != nil || m.held.Raw == nil:
		case m.labelled():
			labelled = addDifferent(labelled, m)
		case hostname(m) || instance(m):
			others = addDifferent(others, m)
		}
	}
	drives := labelled
	if len(drives) == 0 {
		drives = others
	}
	for _, matches := range []func(medium) bool{hostname, instance} {
		if len(drives) > 1 && slices.ContainsFunc(drives, matches) {
			drives = slices.DeleteFunc(slices.Clone(drives), func(m medium) bool { return !matches(m) })
		}
	}
	switch len(drives) {
	case 0:
		return nil, nil
	case 1:
		held := drives[0].held
		held.Source = drives[0].name()
		return &held, nil
	}
	var each []string
	for _, m := range drives {
		each = append(each, fmt.Sprintf("%s is for %s, instance %s", m.name(), quote(m.held.Meta["local-hostname"]), m.held.Meta["instance-id"]))
	}
	return nil, fault.New(fault.UserdataInvalid, "cannot choose a config drive for %s: %s", quote(options.Name), strings.Join(each, "; ")).
		WithHint("Detach the config drive that is not this machine's, or stop and start the VM from CloudStack.")
}

// addDifferent adds a drive that says something else than those before.
func addDifferent(drives []medium, m medium) []medium {
	same := func(other medium) bool {
		return bytes.Equal(other.held.Raw, m.held.Raw) && other.held.Meta["instance-id"] == m.held.Meta["instance-id"]
	}
	if slices.ContainsFunc(drives, same) {
		return drives
	}
	return append(drives, m)
}
