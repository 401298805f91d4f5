// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"cmp"
	"fmt"
	"maps"
	"net"
	"path"
	"slices"
	"strings"
)

// Etcd is a member of a cluster of etcd alone.
type Etcd struct {
	Name           string
	Address        string // of this member
	InitialCluster string // name=url, by commas
	State          string // new or existing
	Token          string // etcd's name for the cluster; no secret
	// Flags are all other words of etcd's command line, in order, with the URLs it
	// listens on and is reached at.
	Flags Words
}

// etcd reads the userdata of an etcd node of CloudStack.
func (p *parser) etcd(file configFile) {
	p.intent.Flavor, p.intent.Mode, p.intent.WaitInterval, p.intent.WaitAttempts = FlavorCloudStack, ModeEtcd, defaultInterval, defaultAttempts
	p.intent.set("mode", file.source().whole(""))
	script := p.script(file)
	p.iso(script, file.source())
	p.reasons = append(p.leftTo(), p.reasons...)
	for _, reason := range strangers(path.Base(etcdScript), script, etcdCommands()) {
		p.hand("%s", reason)
	}
	for _, unit := range p.config.files {
		if path.Ext(unit.path) == ".service" && p.etcdUnit(unit) {
			break
		}
	}
	if p.intent.Etcd == nil {
		p.cut(etcdScript, "it has %s but no unit that runs etcd", etcdScript)
	}
	p.runcmd()
	p.surroundings()
}

// etcdLine is what CloudStack's unit of etcd consists of, and what nodeagent's own does.
var etcdLine = pattern(`^(?:\[(?:Unit|Service|Install)\]=|Description=.*|Documentation=.*|(?:After|Wants)=network(?:-online)?\.target|` +
	`WantedBy=multi-user\.target|Type=(?:simple|exec|notify)|Restart=(?:on-failure|always)|RestartSec=\d+s?)$`)

// etcdUnit reads the command line of a unit that runs etcd.
func (p *parser) etcdUnit(file configFile) bool {
	if err := file.decode(); err != nil {
		return false
	}
	settings := unitSettings(file.content)
	at := slices.IndexFunc(settings, func(s unitSetting) bool {
		program, _, _ := strings.Cut(s.value, " ")
		return s.key == "ExecStart" && path.Base(program) == "etcd"
	})
	if at < 0 {
		return false
	}
	words := strings.Fields(settings[at].value)
	e := readEtcd(words[1:])
	p.intent.Etcd = e
	p.intent.set("etcd", file.source().line(settings[at].line, "ExecStart"))
	for i, setting := range settings {
		if i != at && !etcdLine().MatchString(setting.key+"="+setting.value) {
			p.hand("%s line %d has a setting of its own%s", path.Base(file.path), setting.line, inBrackets(settingName(setting)))
		}
	}
	if file.path != etcdUnit {
		p.hand("it runs etcd by %s; %s was expected", quote(file.path), etcdUnit)
	}
	if words[0] != "/opt/bin/etcd" {
		p.hand("it runs %s; /opt/bin/etcd was expected", quote(words[0]))
	}
	if strings.Contains(settings[at].value, "{{") {
		p.invalid(file.path, "%s: etcd's command line holds a placeholder that CloudStack has not filled in", file.path)
		return true
	}
	if e.Name == "" || e.Address == "" || e.InitialCluster == "" {
		p.invalid(file.path, "%s: etcd lacks --name, --initial-advertise-peer-urls or --initial-cluster", file.path)
		return true
	}
	if reason := e.beyond(); reason != "" {
		p.hand("%s: %s", path.Base(file.path), reason)
		return true
	}
	for _, wrong := range e.check() {
		p.invalid(file.path, "%s: etcd's command line %s", file.path, wrong)
	}
	return true
}

// readEtcd reads etcd's command line.
func readEtcd(args []string) *Etcd {
	e := &Etcd{}
	for len(args) > 0 {
		name, value, taken := flagOf(args)
		switch name {
		case "--name":
			e.Name = value
		case "--initial-cluster":
			e.InitialCluster = value
		case "--initial-cluster-state":
			e.State = value
		case "--initial-cluster-token":
			e.Token = value
		default:
			if name == "--initial-advertise-peer-urls" {
				e.Address = urlHost(value)
			}
			e.Flags = append(e.Flags, args[:taken]...)
		}
		args = args[taken:]
	}
	e.State = cmp.Or(e.State, "new")
	return e
}

// newEtcd is the member of a NodeConfig, reached at etcd's usual ports.
func newEtcd(c NodeConfigEtcd) *Etcd {
	e := &Etcd{Name: c.Name, Address: c.Address, InitialCluster: c.InitialCluster, State: cmp.Or(c.State, "new"), Token: c.Token}
	own := e.peers()[e.Name]
	scheme := "http://"
	if len(own) > 0 && strings.HasPrefix(own[0], "https:") {
		scheme = "https://"
	}
	client := scheme + net.JoinHostPort(strings.Trim(c.Address, "[]"), "2379")
	peers := strings.Join(own, ",")
	e.Flags = append(Words{"--initial-advertise-peer-urls", peers, "--listen-peer-urls", peers,
		"--advertise-client-urls", client, "--listen-client-urls", client + "," + scheme + "127.0.0.1:2379"}, c.Flags...)
	return e
}

// value is that of a flag that is one of Flags; of several the last holds.
func (e *Etcd) value(flag string) (value string, given bool) {
	for args := []string(e.Flags); len(args) > 0; {
		name, text, taken := flagOf(args)
		if name == flag {
			value, given = text, true
		}
		args = args[taken:]
	}
	return value, given
}

// peers are the members' URLs by their names.
func (e *Etcd) peers() map[string][]string {
	peers := map[string][]string{}
	for item := range strings.SplitSeq(e.InitialCluster, ",") {
		name, url, _ := strings.Cut(item, "=")
		peers[name] = append(peers[name], url)
	}
	return peers
}

var (
	etcdName = pattern(`^[A-Za-z0-9][A-Za-z0-9._-]*$`)
	// unitWord is a word that means the same to systemd and to etcd.
	unitWord = pattern(`^[A-Za-z0-9_./:,=@+\[\]*-]+$`)
	etcdURL  = pattern(`^https?://` + `(?:[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?|\[[0-9A-Fa-f:.]+\]):[0-9]{1,5}$`)
)

// beyond says why nodeagent would not run etcd as the userdata do, "" when it would.
func (e *Etcd) beyond() string {
	words := append([]string{e.Name, e.InitialCluster, e.State, e.Token}, e.Flags...)
	for _, word := range words {
		if word != "" && !unitWord().MatchString(word) {
			return "a word of etcd's command line has a quote, blank, $ or % in it"
		}
		if strings.Contains(word, "@") {
			return "a URL of etcd has a user or a password in it"
		}
	}
	for _, flag := range []string{"--config-file", "--discovery", "--discovery-endpoints", "--discovery-srv", "--discovery-token", "--force-new-cluster",
		"--initial-cluster", "--initial-cluster-state", "--initial-cluster-token", "--name", "--proxy"} {
		if _, given := e.value(flag); given {
			return "etcd is given " + flag
		}
	}
	for _, flag := range []string{"--data-dir", "--wal-dir"} {
		if folder, given := e.value(flag); given && (!path.IsAbs(folder) || path.Clean(folder) == "/") {
			return fmt.Sprintf("etcd is given %s %s, which is no absolute path", flag, quote(folder))
		}
	}
	return ""
}

// maxMembers is more than any cluster of etcd has.
const maxMembers = 64

// check says what etcd would refuse.
func (e *Etcd) check() []string {
	var wrong []string
	no := func(format string, args ...any) { wrong = append(wrong, fmt.Sprintf(format, args...)) }
	if !etcdName().MatchString(e.Name) {
		no("has the name %s; letters, digits, dots and hyphens were expected", quote(e.Name))
	}
	if e.State != "new" && e.State != "existing" {
		no("has the state %s; new or existing was expected", quote(e.State))
	}
	peers := e.peers()
	if len(peers) > maxMembers {
		no("has %d members; %d at most were expected", len(peers), maxMembers)
		return wrong
	}
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		for _, url := range peers[name] {
			if name == "" || !etcdURL().MatchString(url) {
				no("has the member %s; name=http://address:port was expected", quote(name+"="+url))
			}
		}
	}
	for _, flag := range []string{"--initial-advertise-peer-urls", "--listen-peer-urls", "--advertise-client-urls", "--listen-client-urls"} {
		value, _ := e.value(flag)
		for url := range strings.SplitSeq(value, ",") {
			if value != "" && !etcdURL().MatchString(url) {
				no("has %s %s; http://address:port was expected", flag, quote(url))
			}
		}
	}
	own := slices.Sorted(slices.Values(peers[e.Name]))
	value, _ := e.value("--initial-advertise-peer-urls")
	switch {
	case len(own) == 0:
		no("does not name this member, %s, among those of the initial cluster", quote(e.Name))
	case !slices.Equal(own, slices.Sorted(strings.SplitSeq(value, ","))):
		no("has this member at %s in the initial cluster, and at %s elsewhere", quote(strings.Join(own, ",")), quote(value))
	}
	return wrong
}

// flagOf splits the first flag of args from its value; taken is how many words
// they are. One hyphen is as good as two.
func flagOf(args []string) (name, value string, taken int) {
	name, value, given := strings.Cut(args[0], "=")
	if strings.HasPrefix(name, "-") {
		name = "--" + strings.TrimLeft(name, "-")
	}
	if given || len(args) == 1 || strings.HasPrefix(args[1], "-") || !strings.HasPrefix(args[0], "-") {
		return name, value, 1
	}
	return name, args[1], 2
}

// urlHost returns the host of the first of some URLs.
func urlHost(urls string) string {
	first, _, _ := strings.Cut(urls, ",")
	_, rest, _ := strings.Cut(first, "://")
	if at := strings.LastIndexByte(rest, ':'); at > strings.LastIndexByte(rest, ']') {
		rest = rest[:at]
	}
	return strings.Trim(rest, "[]")
}
