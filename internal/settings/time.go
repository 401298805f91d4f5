// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"regexp"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// timeService is one program that keeps the clock right.
type timeService struct {
	unit, config string
	edit         func(old string, servers []string) string
}

// timeServices are those of Debian, best first. Of those in one row a template has
// one, which may also answer to the others' names.
func timeServices() [][]timeService {
	return [][]timeService{
		{{"chrony.service", "/etc/chrony/chrony.conf", withNTPServers}},
		{{"ntpsec.service", "/etc/ntpsec/ntp.conf", withNTPServers}, {"ntp.service", "/etc/ntp.conf", withNTPServers}},
		{{"openntpd.service", "/etc/openntpd/ntpd.conf", withOpenNTPDServers}},
		{{"systemd-timesyncd.service", "/etc/systemd/timesyncd.conf.d/nodeagent.conf", timesyncdServers}},
	}
}

// Time makes exactly one time service run, with the given servers or, without any,
// the template's. It returns that service, "" when the template has none, and what
// it did. Changes of services are queued, not waited for.
func Time(ctx context.Context, h *host.Host, servers []string) (service string, done []string, err error) {
	fail := func(err error) (string, []string, error) {
		return service, done, fault.Wrap(fault.HostSettingsFailed, err, "cannot set up time synchronisation")
	}
	var chosen timeService
	for _, row := range timeServices() {
		for _, candidate := range row {
			state, err := h.Units.State(ctx, candidate.unit)
			if err != nil {
				return fail(err)
			}
			if !state.Exists() || state.LoadState == "masked" {
				continue
			}
			if chosen.unit == "" {
				chosen, service = candidate, strings.TrimSuffix(candidate.unit, ".service")
				break
			}
			off, err := turnOff(ctx, h, candidate.unit)
			done = append(done, off...)
			if err != nil {
				return fail(err)
			}
		}
	}
	if chosen.unit == "" {
		return "", done, nil
	}
	state, err := h.Units.State(ctx, chosen.unit)
	if err != nil {
		return fail(err)
	}
	if state.FileState == "disabled" {
		enabled, err := h.Units.Enable(ctx, chosen.unit)
		if err != nil {
			return fail(err)
		}
		if enabled {
			done = append(done, "enabled")
		}
	}
	changed, err := reconfigure(ctx, h, chosen.unit, func() (bool, error) { return setServers(h, chosen, servers) })
	if err != nil {
		return fail(err)
	}
	if changed {
		done = append(done, chosen.config+" edited")
	}
	return service, done, nil
}

func setServers(h *host.Host, service timeService, servers []string) (changed bool, err error) {
	old, err := h.ReadFile(service.config)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	text := service.edit(string(old), servers)
	switch {
	case text == string(old):
		return false, nil
	case text == "":
		return h.Remove(service.config)
	}
	return h.WriteFile(service.config, []byte(text), 0o644)
}

// A host name as DNS has them; servers go into configuration files.
var serverName = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?(\.[A-Za-z0-9]([A-Za-z0-9_-]*[A-Za-z0-9])?)*\.?$`)

// TimeServers splits the boot arg ntpserverlist into the servers, each once, and
// what is no name or address.
func TimeServers(list string) (servers, wrong []string) {
	for _, word := range strings.FieldsFunc(list, func(r rune) bool { return r == ',' || r == '\r' || r == ' ' }) {
		_, err := netip.ParseAddr(word)
		switch {
		case strings.ContainsRune(word, '%') || err != nil && (len(word) > 253 || !serverName.MatchString(word)):
			wrong = append(wrong, word)
		case !slices.Contains(servers, word):
			servers = append(servers, word)
		}
	}
	return servers, wrong
}

// Marks of what nodeagent has changed in a configuration, so that it can be taken
// back when CloudStack names no servers any more.
const (
	blockBegin = "# Written by nodeagent from the boot arg ntpserverlist:"
	blockEnd   = "# nodeagent: end"
	commented  = "#nodeagent# "
)

// withNTPServers makes a chrony.conf(5) or ntp.conf(5) ask these servers and no
// others; without servers it takes back what it did before.
func withNTPServers(old string, servers []string) string { return withServers(old, servers, " iburst") }

// withOpenNTPDServers is the same for ntpd.conf(5) of OpenNTPD.
func withOpenNTPDServers(old string, servers []string) string { return withServers(old, servers, "") }

func withServers(old string, servers []string, option string) string {
	var b strings.Builder
	inBlock := false
	for line := range strings.Lines(old) {
		bare := strings.TrimRight(line, "\r\n")
		switch {
		case bare == blockBegin:
			inBlock = true
			continue
		case inBlock && bare == blockEnd:
			inBlock = false
			continue
		case inBlock && namesSource(line):
			continue
		}
		inBlock = false // somebody else's line
		line = strings.TrimPrefix(line, commented)
		if len(servers) > 0 && namesSource(line) {
			line = commented + line
		}
		b.WriteString(line)
	}
	if len(servers) == 0 {
		return b.String()
	}
	if text := b.String(); text != "" && !strings.HasSuffix(text, "\n") {
		b.WriteByte('\n')
	}
	b.WriteString(blockBegin + "\n")
	for _, server := range servers {
		b.WriteString("server " + server + option + "\n")
	}
	b.WriteString(blockEnd + "\n")
	return b.String()
}

// namesSource says whether a line names a source of time.
func namesSource(line string) bool {
	fields := strings.Fields(line)
	return len(fields) > 1 && slices.Contains([]string{"server", "servers", "pool", "peer"}, strings.ToLower(fields[0]))
}

// timesyncdServers is a drop-in for timesyncd.conf(5), "" for none. An empty
// assignment drops the servers named before.
func timesyncdServers(_ string, servers []string) string {
	if len(servers) == 0 {
		return ""
	}
	return fmt.Sprintf("%s\n[Time]\nNTP=\nNTP=%s\nFallbackNTP=\n", blockBegin, strings.Join(servers, " "))
}
