// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"net/url"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	etcdUnit    = "etcd.service"
	etcdProgram = binFolder + "/etcd"
	etcdService = "/etc/systemd/system/" + etcdUnit
	// etcdFolder is where the data of a member are unless the userdata say otherwise.
	etcdFolder = "/var/lib/etcd"
	// etcdRestart outlives a kill between a change of the unit and etcd's restart.
	etcdRestart = "/run/nodeagent/etcd-restart"
	journalctl  = "/usr/bin/journalctl"
)

// EtcdPlan is what a member of a cluster of etcd alone is made with.
type EtcdPlan struct {
	Name           string
	InitialCluster string // name=url, by commas
	State          string // new or existing, where there are no data yet
	Token          string // etcd's name for the cluster, or "" for its own
	// Flags are the further words of etcd's command line, with its URLs.
	Flags []string
}

// InstallEtcd unpacks etcd and its tools from the ISO, whatever the folder in the
// archive. It reports whether anything changed. An ISO without etcd is
// fault.ISOIncomplete: CloudStack's builder puts it there only when asked to.
func InstallEtcd(ctx context.Context, h *host.Host, bundle *Bundle) (changed bool, err error) {
	files, err := bundle.open(ctx, h)
	if err != nil {
		return false, withCode(fault.InstallFailed, err, "cannot read the binaries ISO")
	}
	defer files.Close()
	names, err := archivesFor(files, "etcd/etcd*.tar.gz")
	if err != nil {
		return false, withCode(fault.InstallFailed, err, "cannot read the binaries ISO")
	}
	if len(names) != 1 {
		return false, fault.New(fault.ISOIncomplete, "the binaries ISO in %s has %d archives etcd/etcd*.tar.gz; one was expected", bundle.Device, len(names)).
			WithHint("Build the ISO with create-kubernetes-binaries-iso.sh of CloudStack 4.21 or later and its last argument, the version of etcd.")
	}
	// As installArchive does: it takes effect while it is read.
	if err := files.verify(names[0]); err != nil {
		return false, withCode(fault.InstallFailed, err, "cannot install etcd")
	}
	file, err := files.Open(names[0])
	if err != nil {
		return false, withCode(fault.InstallFailed, err, "cannot install etcd")
	}
	defer file.Close()
	var failed error // of writing, which is not the ISO's fault
	seen := false
	err = untar(file, func(entry string, _ fs.FileMode, content []byte) error {
		name := path.Base(entry)
		if !slices.Contains([]string{"etcd", "etcdctl", "etcdutl"}, name) || strings.Count(entry, "/") > 1 {
			return ctx.Err()
		}
		// CloudStack's ISO names amd64 whatever the machine.
		if err := checkProgram(content, runtime.GOARCH); err != nil {
			return fmt.Errorf("%s: %w", entry, err)
		}
		var wrote bool
		wrote, failed = h.WriteFile(path.Join(binFolder, name), content, 0o755)
		changed, seen = changed || wrote, seen || name == "etcd"
		return failed
	})
	if err == nil {
		_, err = io.Copy(io.Discard, file)
	}
	switch {
	case failed != nil:
		return changed, fault.Wrap(fault.InstallFailed, failed, "cannot install etcd")
	case err != nil:
		return changed, withCode(fault.ISOInvalid, err, "cannot use %s of the binaries ISO", names[0])
	case !seen:
		return changed, fault.New(fault.ISOInvalid, "%s of the binaries ISO has no etcd in it", names[0])
	}
	return changed, nil
}

// MakeEtcd makes this machine the member and waits until its cluster has a quorum,
// which takes the other members: as long as ctx lasts. A member that is there already
// goes on with its data; data of another cluster or member are fault.EtcdDataForeign
// and stay untouched, as does the unit (C29). A member that does not start is
// fault.EtcdFailed, with the last lines of its log.
func MakeEtcd(ctx context.Context, h *host.Host, plan EtcdPlan, report host.Report) (EtcdMember, error) {
	plan, there, err := plan.withData(h)
	if err != nil {
		return EtcdMember{}, err
	}
	if there {
		plan.State = stateExisting
	} else if err := plan.notLost(h); err != nil {
		return EtcdMember{}, err
	}
	if err := writeEtcdUnit(ctx, h, plan, there); err != nil {
		return EtcdMember{}, err
	}
	member, err := RunEtcd(ctx, h, report)
	if err != nil {
		return member, err
	}
	// From now on a folder without data is one that was lost: no start makes another
	// member in it.
	h.Kernel.Sync()
	plan.State = stateExisting
	return member, writeEtcdUnit(ctx, h, plan, true)
}

const stateExisting = "existing"

// notLost fails where this member has joined its cluster before.
func (p EtcdPlan) notLost(h *host.Host) error {
	old, err := h.ReadFile(etcdService)
	if err != nil {
		return nil
	}
	text, err := p.unit(true)
	if err != nil || !settled(string(old)) || commandOf(string(old)) != commandOf(text) {
		return nil
	}
	return p.member().dataMissing()
}

func (m EtcdMember) dataMissing() error {
	return fault.New(fault.EtcdDataMissing, "the data of etcd's member %s are gone from %s", m.Name, m.dataDirs.wal)
}

// EtcdMember is a member as its unit describes it.
type EtcdMember struct {
	Name, DataDir string
	Members       int
	URLs          []string // where others reach it

	endpoint string // of its own to ask without credentials, or ""
	peers    []string
	dataDirs etcdDirs
}

func (m EtcdMember) String() string {
	tolerates := fmt.Sprintf("it goes on without %d of them", (m.Members-1)/2)
	if m.Members < 3 { // pain-point C28
		tolerates = "it stops when one of them does"
	}
	return fmt.Sprintf("member %s of %d, data in %s; %s", m.Name, m.Members, m.DataDir, tolerates)
}

// RunEtcd starts the member as its unit is and waits until its cluster has a quorum.
func RunEtcd(ctx context.Context, h *host.Host, report host.Report) (EtcdMember, error) {
	member, text, err := readEtcdUnit(h)
	if err != nil {
		return EtcdMember{}, fault.Wrap(fault.EtcdFailed, err, "cannot run etcd")
	}
	if settled(text) && !member.dataDirs.hasData(h) {
		return member, member.dataMissing()
	}
	joins := !settled(text) && strings.Contains(text, "--initial-cluster-state "+stateExisting)
	if err := startEtcd(ctx, h, member, joins, say(report)); err != nil {
		return member, err
	}
	if member.endpoint == "" { // systemd's word counts: etcd says it is ready when it has joined
		return member, nil
	}
	client, err := etcdHTTP(h, EtcdTLS{})
	if err != nil {
		return member, fault.Wrap(fault.EtcdFailed, err, "cannot ask etcd")
	}
	defer client.CloseIdleConnections()
	_, err = awaitEtcd(ctx, client, []string{member.endpoint}, say(report))
	return member, err
}

// EtcdHealthy asks the member once whether its cluster has a quorum.
func EtcdHealthy(ctx context.Context, h *host.Host) (detail string, err error) {
	member, _, err := readEtcdUnit(h)
	if err != nil {
		return "", err
	}
	unit, err := h.Units.State(ctx, etcdUnit)
	if err != nil {
		return "", err
	}
	if unit.ActiveState != "active" {
		return "", fmt.Errorf("%s is %s", etcdUnit, unit.ActiveState)
	}
	if member.endpoint == "" {
		return etcdUnit + " is active", nil
	}
	client, err := etcdHTTP(h, EtcdTLS{})
	if err != nil {
		return "", err
	}
	defer client.CloseIdleConnections()
	return member.endpoint + " has a quorum", askEtcd(ctx, client, member.endpoint)
}

// etcdAloneHealth is EtcdHealth of a node for etcd alone.
func etcdAloneHealth(ctx context.Context, h *host.Host) (ok bool, detail string, err error) {
	member, _, err := readEtcdUnit(h)
	if err != nil {
		return false, "", fmt.Errorf("cannot ask etcd: %w", err)
	}
	if member.endpoint == "" { // with certificates that are not ours
		detail, err = EtcdHealthy(ctx, h)
		return err == nil, detail, err
	}
	client, err := etcdHTTP(h, EtcdTLS{})
	if err != nil {
		return false, "", fmt.Errorf("cannot ask etcd: %w", err)
	}
	defer client.CloseIdleConnections()
	return etcdHealth(ctx, client, member.endpoint)
}

// peerReportInterval is between two looks which of the others answer.
const peerReportInterval = 5 * time.Second

// startEtcd starts the unit and waits until etcd says it is ready, which it does when
// it has joined its cluster: systemd tells. One that joins a
// cluster that runs needs the others to start at all, and is started again.
func startEtcd(ctx context.Context, h *host.Host, member EtcdMember, joins bool, report host.Report) error {
	restart := h.Exists(etcdRestart)
	for {
		start := h.Units.Start
		if restart {
			start = h.Units.Restart
		}
		job, err := start(ctx, etcdUnit)
		if err != nil {
			return fault.Wrap(fault.EtcdFailed, err, "cannot start etcd")
		}
		if _, err := h.Remove(etcdRestart); err != nil {
			return fault.Wrap(fault.EtcdFailed, err, "cannot start etcd")
		}
		restart = false
		unit, err := awaitMember(ctx, h, job, member, report)
		switch {
		case err == nil && unit.ActiveState == "active":
			return nil
		case err != nil:
			return fault.Wrap(fault.EtcdUnhealthy, err, "etcd has not joined its cluster: %s", missingPeers(context.WithoutCancel(ctx), member)).WithLog(etcdLog(h))
		case !joins:
			return fault.New(fault.EtcdFailed, "etcd did not start: %s is %s (%s)", etcdUnit, unit.ActiveState, unit.Result).WithLog(etcdLog(h))
		}
		report("etcd did not start: %s is %s (%s); trying again", etcdUnit, unit.ActiveState, unit.Result)
		if !sleep(ctx, peerReportInterval) {
			return fault.New(fault.EtcdFailed, "etcd did not start: %s is %s (%s)", etcdUnit, unit.ActiveState, unit.Result).WithLog(etcdLog(h))
		}
	}
}

// awaitMember waits for systemd's word and says meanwhile who is missing.
func awaitMember(ctx context.Context, h *host.Host, job host.Job, member EtcdMember, report host.Report) (host.Unit, error) {
	type end struct {
		unit host.Unit
		err  error
	}
	ended := make(chan end, 1)
	go func() {
		unit, err := h.Units.Wait(ctx, job)
		ended <- end{unit, err}
	}()
	ticker := time.NewTicker(peerReportInterval)
	defer ticker.Stop()
	for {
		select {
		case e := <-ended:
			return e.unit, e.err
		case <-ticker.C:
			report("waiting for the other members of etcd: %s", missingPeers(ctx, member))
		}
	}
}

// missingPeers names the members that do not answer.
func missingPeers(ctx context.Context, member EtcdMember) string {
	var missing []string
	for i, err := range dialAll(ctx, member.peers) {
		if err != nil {
			missing = append(missing, fmt.Sprintf("%s: %v", member.peers[i], err))
		}
	}
	if len(missing) == 0 {
		return "all of them answer, they have no quorum yet"
	}
	return strings.Join(missing, ", ")
}

// etcdLog returns the last lines that etcd has written, as far as there are any.
func etcdLog(h *host.Host) []string {
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	out, _ := h.Run.Run(ctx, host.Command{Path: journalctl, Args: []string{"--unit", etcdUnit, "--lines", "20", "--output", "cat", "--no-pager", "--boot"}})
	return strings.Split(strings.TrimRight(string(out), "\n"), "\n")
}

// unitWord is a word that means the same to systemd and to etcd.
var unitWord = regexp.MustCompile(`^[A-Za-z0-9_./:,=@+\[\]*-]+$`)

// unit is the unit's text. Of a member that has joined it starts only where there are data.
func (p EtcdPlan) unit(joined bool) (string, error) {
	args := []string{"--name", p.Name, "--initial-cluster", p.InitialCluster, "--initial-cluster-state", p.State}
	if p.Token != "" {
		args = append(args, "--initial-cluster-token", p.Token)
	}
	args = append(args, p.Flags...)
	for _, arg := range args {
		if !unitWord.MatchString(arg) {
			return "", fmt.Errorf("cannot write %s: the word %q cannot stand in a unit", etcdService, arg)
		}
	}
	var command strings.Builder
	for _, arg := range args {
		if strings.HasPrefix(arg, "-") {
			command.WriteString(" \\\n ")
		}
		command.WriteString(" " + arg)
	}
	condition := ""
	if joined {
		condition = "AssertDirectoryNotEmpty=" + p.dirs().wal + "\n"
	}
	return "# Written by nodeagent.\n[Unit]\nDescription=etcd\nDocumentation=https://etcd.io/docs\nAfter=network.target nodeagent.service\n" + condition +
		"\n[Service]\n# etcd is ready when it has joined its cluster, which may take the other members.\nType=notify\nTimeoutStartSec=infinity\n" +
		"ExecStart=" + etcdProgram + command.String() + "\nRestart=always\nRestartSec=5\nLimitNOFILE=65536\n\n[Install]\nWantedBy=multi-user.target\n", nil
}

// writeEtcdUnit brings the unit up to date. An etcd that runs with another command line
// is to be restarted, but not where only its state in the cluster differs: with data it
// does not look at that.
func writeEtcdUnit(ctx context.Context, h *host.Host, plan EtcdPlan, joined bool) error {
	fail := func(err error) error { return fault.Wrap(fault.EtcdFailed, err, "cannot set up etcd") }
	text, err := plan.unit(joined)
	if err != nil {
		return fail(err)
	}
	old, err := h.ReadFile(etcdService)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fail(err)
	}
	if string(old) != text {
		marks := []string{reloadPending}
		if commandOf(string(old)) != commandOf(text) {
			marks = append(marks, etcdRestart)
		}
		for _, mark := range marks {
			if _, err := h.WriteFile(mark, nil, 0o600); err != nil {
				return fail(err)
			}
		}
		if _, err := h.WriteFile(etcdService, []byte(text), 0o644); err != nil {
			return fail(err)
		}
	}
	if _, err := h.Units.Enable(ctx, etcdUnit); err != nil {
		return fail(err)
	}
	if h.Exists(reloadPending) {
		if err := h.Units.Reload(ctx); err != nil {
			return fail(err)
		}
		if _, err := h.Remove(reloadPending); err != nil {
			return fail(err)
		}
	}
	return nil
}

var stateFlag = regexp.MustCompile(`--initial-cluster-state\s+\S+`)

// commandOf returns etcd's command line in a unit, its state in the cluster left out.
func commandOf(unit string) string {
	_, rest, _ := strings.Cut(strings.ReplaceAll(unit, "\\\n", " "), "\nExecStart=")
	command, _, _ := strings.Cut(rest, "\n")
	return strings.Join(strings.Fields(stateFlag.ReplaceAllString(command, "")), " ")
}

// readEtcdUnit reads what nodeagent has written there, or an administrator since.
func readEtcdUnit(h *host.Host) (member EtcdMember, text string, err error) {
	data, err := h.ReadFile(etcdService)
	if err != nil {
		return EtcdMember{}, "", err
	}
	words := strings.Fields(commandOf(string(data)))
	if len(words) == 0 {
		return EtcdMember{}, "", fmt.Errorf("%s does not run etcd", etcdService)
	}
	plan := EtcdPlan{Flags: words[1:]}
	plan.Name, plan.InitialCluster = plan.flag("name"), plan.flag("initial-cluster")
	return plan.member(), string(data), nil
}

// settled says that the member of a unit has joined its cluster once.
func settled(unit string) bool { return strings.Contains(unit, "\nAssertDirectoryNotEmpty=") }

// flag returns a flag's value, the last one's if there are several.
func (p EtcdPlan) flag(name string) (value string) {
	for i, word := range p.Flags {
		given, text, has := strings.Cut(strings.TrimLeft(word, "-"), "=")
		switch {
		case !strings.HasPrefix(word, "-") || given != name:
		case has:
			value = text
		case i+1 < len(p.Flags):
			value = p.Flags[i+1]
		}
	}
	return value
}

// peerURLs are the members' URLs by their names.
func (p EtcdPlan) peerURLs() map[string][]string {
	peers := map[string][]string{}
	for item := range strings.SplitSeq(p.InitialCluster, ",") {
		name, url, _ := strings.Cut(item, "=")
		peers[name] = append(peers[name], url)
	}
	return peers
}

// member says what others need to know of the plan.
func (p EtcdPlan) member() EtcdMember {
	peers := p.peerURLs()
	m := EtcdMember{Name: p.Name, DataDir: p.dirs().data, Members: len(peers), dataDirs: p.dirs()}
	for _, name := range slices.Sorted(maps.Keys(peers)) {
		if name != p.Name {
			m.peers = append(m.peers, peers[name]...)
		}
	}
	m.URLs = append(strings.Split(p.flag("advertise-client-urls"), ","), peers[p.Name]...)
	for list := range strings.SplitSeq(p.flag("listen-metrics-urls")+","+p.flag("listen-client-urls"), ",") {
		if own := ownURL(list); own != "" && (m.endpoint == "" || strings.Contains(own, "127.0.0.1")) {
			m.endpoint = own
		}
	}
	return m
}

// ownURL is where this machine reaches what listens at a plain URL, or "".
func ownURL(listens string) string {
	u, err := url.Parse(listens)
	if err != nil || u.Scheme != "http" {
		return ""
	}
	if host := u.Hostname(); host == "0.0.0.0" || host == "::" {
		return "http://127.0.0.1:" + u.Port()
	}
	return listens
}
