// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	// UpgradeLog is where the output of kubeadm upgrade goes.
	UpgradeLog = "/var/log/nodeagent/kubeadm-upgrade.log"

	upgradeFolder = "/var/lib/nodeagent/upgrade"
	newKubeadm    = upgradeFolder + "/kubeadm" // the ISO's, until it is installed
	upgradeConfig = upgradeFolder + "/kubeadm.yaml"
	keptFolder    = upgradeFolder + "/old" // what a rollback puts back

	isoLimit     = time.Minute // the ISO is attached before the upgrade begins
	factsLimit   = time.Minute
	kubeletLimit = 10 * time.Minute // for a kubelet to report after its restart
)

// keptFiles is what a kubelet consists of.
var keptFiles = []string{
	binFolder + "/kubelet", "/etc/systemd/system/" + kubeletUnit, "/etc/systemd/system/" + kubeletUnit + ".d/10-kubeadm.conf",
	kubeletDefaults, "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env",
}

// UpgradeOptions says what to upgrade.
type UpgradeOptions struct {
	Version  string // to upgrade to, with or without the v; "" is that of the only ISO
	NodeName string // of this machine in its cluster
	AddOns   bool   // apply the ISO's network plugin and dashboard too
}

// Stage is one part of an upgrade. Run blocks until it is done and may be repeated
// after a kill at any instruction.
type Stage struct {
	Name string
	Does string
	Run  func(ctx context.Context, report host.Report) error
}

// Upgrade is a planned upgrade of this node. Close it.
type Upgrade struct {
	From, To string // versions of the kubelet: v1.34.4
	Stages   []Stage
	Resumed  string // the last stage that an earlier run has done, or ""

	h       *host.Host
	options UpgradeOptions
	journal upgradeJournal
	bundle  *Bundle // nil when it is not needed any more

	// For tests.
	importImages func(ctx context.Context, want, leave []string, report host.Report) error
	configure    func(ctx context.Context, sandboxImage string, report host.Report) error
}

// PlanUpgrade finds the new binaries ISO, or what an earlier run has left to do, and
// checks that the upgrade can be made: the versions, the node, the API, etcd, the
// space. All that is in the way is in the one error. Stages are none when the node
// has the version already. It changes nothing but its own folder, and waits a minute
// at most for an ISO.
func PlanUpgrade(ctx context.Context, h *host.Host, options UpgradeOptions, report host.Report) (*Upgrade, error) {
	limited, cancel := context.WithTimeoutCause(ctx, isoLimit, errors.New("no longer awaited"))
	defer cancel()
	return planUpgradeOf(ctx, h, options, say(report), func(want string) (*Bundle, error) {
		watch, err := host.WatchBlock()
		if err != nil {
			return nil, err
		}
		defer watch.Close()
		return findUpgradeISO(limited, h, want, watch.Changed, say(report))
	}, ReadMachine)
}

// findUpgradeISO is FindISO that leaves the installed kubeadm alone.
func findUpgradeISO(ctx context.Context, h *host.Host, want string, changed <-chan struct{}, report host.Report) (*Bundle, error) {
	return awaitBundle(ctx, h, nil, changed, report, func(media []medium) (*Bundle, error) {
		return chooseBundle(ctx, h, media, want, newKubeadm)
	})
}

func planUpgradeOf(ctx context.Context, h *host.Host, options UpgradeOptions, report host.Report, find func(want string) (*Bundle, error),
	look func(context.Context, *host.Host) (Machine, error)) (planned *Upgrade, err error) {
	journal, err := readUpgradeJournal(h)
	if err != nil {
		return nil, err
	}
	if !h.Exists(KubeletConf) {
		return nil, fault.New(fault.UpgradeFailed, "cannot upgrade: this machine is no Kubernetes node (%s is not there)", KubeletConf).
			WithHint("See `nodeagent status`: the node must have been made first.")
	}
	if has := kubeletVersion(ctx, h); journal.Stage != "" && has != "" && has != journal.From && has != journal.To {
		// Others, such as CloudStack's own script, have upgraded the node since.
		if err := forgetUpgrade(h); err != nil {
			return nil, err
		}
		journal = upgradeJournal{}
	}
	u := &Upgrade{h: h, options: options, journal: journal}
	u.importImages = func(ctx context.Context, want, leave []string, report host.Report) error {
		return ImportImages(ctx, h, u.bundle, want, leave, report)
	}
	u.configure = func(ctx context.Context, sandbox string, report host.Report) error {
		_, err := ConfigureContainerd(ctx, h, sandbox, nil, report)
		return err
	}
	defer func() {
		if err != nil {
			_ = u.Close() // what is left is in nobody's way, and gone with the next run
		}
	}()
	if options.Version == "" {
		options.Version = journal.To
	}
	if journal.Stage != "" && journal.To != WithV(options.Version) {
		// Another version than the one begun: all but what was kept is done anew.
		u.journal = upgradeJournal{From: journal.From, Stage: stageKeep}
		journal = upgradeJournal{}
	}
	if journal.Stage != stageInstall { // from there on nothing of the ISO is needed
		if u.bundle, err = find(options.Version); err != nil {
			return nil, err
		}
	}
	if journal.Stage != "" {
		u.From, u.To, u.Resumed = journal.From, journal.To, journal.Stage
		u.plan()
		return u, nil
	}
	machine, err := look(ctx, h)
	if err != nil {
		return nil, err
	}
	facts, err := u.facts(ctx, machine, report)
	if err != nil {
		return nil, err
	}
	if u.From, u.To = facts.kubelet, facts.iso; facts.done() && u.journal.Stage == "" {
		return u, nil
	}
	verb, warnings, err := facts.judge()
	if err != nil {
		return nil, err
	}
	for _, warning := range warnings {
		report("%v", warning)
	}
	u.journal.To, u.journal.Verb, u.journal.Repository = u.To, verb, facts.repository
	if u.journal.From == "" {
		u.journal.From = u.From
	}
	u.plan()
	return u, nil
}

// kubeletVersion asks the installed kubelet for its version, such as v1.34.4; "" is one
// that does not run.
func kubeletVersion(ctx context.Context, h *host.Host) string {
	out, err := h.Run.Run(ctx, host.Command{Path: binFolder + "/kubelet", Args: []string{"--version"}})
	if words := strings.Fields(string(out)); err == nil && len(words) == 2 {
		return words[1] // of "Kubernetes v1.34.4"
	}
	return ""
}

// facts asks what is to be known before anything changes.
func (u *Upgrade) facts(ctx context.Context, machine Machine, report host.Report) (f upgradeFacts, err error) {
	ctx, cancel := context.WithTimeout(ctx, factsLimit)
	defer cancel()
	api, err := OpenNodeAPI(u.h)
	if err != nil {
		return f, fault.Wrap(fault.UpgradeFailed, err, "cannot upgrade")
	}
	defer api.Close()
	report("asking the cluster for its versions")
	f.iso = u.bundle.Version
	f.controlPlane = u.h.Exists(apiManifest)
	node, err := api.awaitNode(ctx, u.options.NodeName)
	if err != nil {
		return f, fault.Wrap(fault.APIUnreachable, err, "cannot upgrade: the cluster does not say what it knows of this node")
	}
	f.kubelet = node.Status.NodeInfo.KubeletVersion
	f.ready, f.notReady = node.ready(api.bootID)
	if f.cluster, f.repository, err = api.clusterConfiguration(ctx); err != nil {
		return f, fault.Wrap(fault.UpgradeFailed, err, "cannot upgrade")
	}
	if f.api, err = api.Version(ctx); err != nil {
		return f, fault.Wrap(fault.APIUnreachable, err, "cannot upgrade")
	}
	switch {
	case HasEtcd(u.h):
		var ok bool
		var detail string
		if ok, detail, f.etcd = EtcdHealth(ctx, u.h); !ok && f.etcd == nil {
			f.etcd = errors.New(detail)
		}
	case f.controlPlane: // its etcd is elsewhere
		_, f.etcd = api.exists(ctx, "/readyz/etcd")
	}
	f.machine = machine
	f.machine.Blobs = 0 // they are those of the old version
	for _, image := range u.bundle.Images {
		if _, others := ForWorker([]string{image.Name}); f.controlPlane || len(others) == 0 {
			f.imageBytes += image.Bytes
		}
	}
	return f, nil
}

// Names of the stages that the journal knows, in order.
const (
	stageKeep    = "keep"
	stageImages  = "images"
	stageKubeadm = "kubeadm"
	stageInstall = "install"
)

// plan lists the stages that are left.
func (u *Upgrade) plan() {
	call := "kubeadm " + strings.Join(u.kubeadmArgs(), " ")
	all := []Stage{
		{stageKeep, "keep the kubelet " + u.journal.From + " and its settings", u.keep},
		{stageImages, "import the ISO's images, set containerd's sandbox image if it is another", u.images},
		{stageKubeadm, "install kubeadm, run " + call, u.kubeadm},
		{stageInstall, "install kubelet, kubectl, crictl, CNI plugins, units and manifests", u.install},
		{"kubelet", "restart the kubelet, wait until it reports " + u.To + " and is Ready, else put the old one back", u.kubelet},
	}
	if u.options.AddOns {
		all = append(all, Stage{"add-ons", "apply the ISO's network plugin and dashboard", func(ctx context.Context, report host.Report) error {
			return ApplyAddOns(ctx, u.h, AddOns{}, report)
		}})
	}
	all = append(all, Stage{"finish", "remove what was kept", func(context.Context, host.Report) error { return forgetUpgrade(u.h) }})
	for i, stage := range all {
		if stage.Name == u.journal.Stage {
			all = all[i+1:]
			break
		}
	}
	u.Stages = all
}

// String is what is going to be done.
func (u *Upgrade) String() string {
	if len(u.Stages) == 0 {
		return fmt.Sprintf("Kubernetes %s runs here already: nothing to do\n", u.To)
	}
	text := fmt.Sprintf("upgrade of node %s from Kubernetes %s to %s\n", u.options.NodeName, u.From, u.To)
	if u.Resumed != "" {
		text += fmt.Sprintf("  an earlier run has done all up to %q\n", u.Resumed)
	}
	for _, stage := range u.Stages {
		text += fmt.Sprintf("  %-9s%s\n", stage.Name, stage.Does)
	}
	return text
}

// Close lets go of the ISO.
func (u *Upgrade) Close() error {
	var errs []error
	if u.bundle != nil {
		errs = append(errs, u.bundle.Release(u.h, false))
		u.bundle = nil
	}
	if !u.h.Exists(upgradeJournalFile) {
		errs = append(errs, os.RemoveAll(u.h.Path(upgradeFolder)))
	}
	return errors.Join(errs...)
}

// ended journals that a stage is done, once it is on the disk.
func (u *Upgrade) ended(stage string) error {
	u.h.Kernel.Sync()
	u.journal.Stage = stage
	return u.journal.write(u.h)
}

// keep copies what a rollback puts back.
func (u *Upgrade) keep(context.Context, host.Report) error {
	for _, name := range keptFiles {
		if _, err := copyFile(u.h, name, path.Join(keptFolder, name)); err != nil {
			return fault.Wrap(fault.UpgradeFailed, err, "cannot keep %s", name)
		}
	}
	return u.ended(stageKeep)
}

// copyFile copies a file with its mode; there is false where there is none.
func copyFile(h *host.Host, from, to string) (there bool, err error) {
	file, err := os.Open(h.Path(from))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	defer file.Close()
	info, err := file.Stat()
	if err != nil {
		return false, err
	}
	return true, h.WriteFrom(to, file, info.Mode().Perm())
}

func (u *Upgrade) images(ctx context.Context, report host.Report) error {
	all, err := imagesOf(ctx, u.h, newKubeadm, u.To, u.journal.Repository)
	if err != nil {
		return fault.Wrap(fault.UpgradeFailed, err, "cannot ask the new kubeadm for its images")
	}
	sandbox, err := SandboxImage(all)
	if err != nil {
		return fault.Wrap(fault.SandboxMismatch, err, "cannot tell the sandbox image")
	}
	want, leave := all, []string(nil)
	if !u.h.Exists(apiManifest) {
		want, leave = ForWorker(all)
	}
	// The image is there before containerd is told to make pods of it.
	if err := u.importImages(ctx, want, leave, report); err != nil {
		return err
	}
	if err := u.configure(ctx, sandbox, report); err != nil {
		return err
	}
	return u.ended(stageImages)
}

func (u *Upgrade) kubeadmArgs() []string {
	args := []string{"upgrade", verbNode}
	if u.journal.Verb == verbApply {
		// As CloudStack's own script does: an edited CoreDNS stops no upgrade.
		args = []string{"upgrade", verbApply, u.To, "-y", "--ignore-preflight-errors=CoreDNSUnsupportedPlugins"}
	}
	if takes, err := takesV1beta4(u.To); err == nil && takes {
		args = append(args, "--config", upgradeConfig)
	}
	return args
}

// writeConfig gives kubeadm the patience that it is given at init and join: a busy
// machine needs more than five minutes to change etcd, and kubeadm then takes it back.
func (u *Upgrade) writeConfig() error {
	text := "apiVersion: " + apiV1beta4 + "\nkind: UpgradeConfiguration\ntimeouts:\n  kubernetesAPICall: " + apiCallLimit + "\n  upgradeManifests: " + upgradeLimit + "\n"
	_, err := u.h.WriteFile(upgradeConfig, []byte(text), 0o600)
	return err
}

const upgradeLimit = "15m0s"

func (u *Upgrade) kubeadm(ctx context.Context, report host.Report) error {
	if _, err := copyFile(u.h, newKubeadm, Kubeadm); err != nil {
		return fault.Wrap(fault.InstallFailed, err, "cannot install kubeadm")
	}
	if err := u.writeConfig(); err != nil {
		return fault.Wrap(fault.UpgradeFailed, err, "cannot run kubeadm upgrade")
	}
	r := &run{h: u.h, verb: "upgrade", code: fault.UpgradeFailed, log: UpgradeLog, scrub: scrubber(nil), report: say(report)}
	what, args := "kubeadm upgrade "+u.journal.Verb, u.kubeadmArgs()
	unchecked := false
	for try := 1; ; try++ {
		failed := r.kubeadm(ctx, what, args...)
		if failed == nil {
			break
		}
		switch {
		case ctx.Err() != nil || try == upgradeTries:
			return failed
		case r.retry == retryUnchecked && !unchecked:
			report("%s; once more without this check", failed.Message)
			unchecked, args = true, append(args, "--ignore-preflight-errors=CreateJob")
		case r.retry == retryReachable:
			report("%s; once more when the API server answers", failed.Message)
			if err := u.awaitAPI(ctx); err != nil {
				return failed
			}
		default:
			return failed
		}
	}
	if u.h.Exists(AdminConf) {
		if err := r.giveRootKubeconfig(); err != nil { // kubeadm has renewed its certificate
			return err
		}
	}
	return u.ended(stageKubeadm)
}

// upgradeTries is how often kubeadm is run where the machine is too busy for its checks.
const upgradeTries = 3

// awaitAPI waits until the API server says it is ready, two minutes at most.
func (u *Upgrade) awaitAPI(ctx context.Context) error {
	api, err := OpenNodeAPI(u.h)
	if err != nil {
		return err
	}
	defer api.Close()
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	return api.waitAnswer(ctx)
}

func (u *Upgrade) install(ctx context.Context, _ host.Report) error {
	if _, err := Install(ctx, u.h, u.bundle); err != nil {
		return err
	}
	return u.ended(stageInstall)
}

// kubelet changes to the new kubelet, or back.
func (u *Upgrade) kubelet(ctx context.Context, report host.Report) error {
	failed := u.startKubelet(ctx, u.To, report)
	if failed == nil || ctx.Err() != nil { // cut short, not failed: the next run tries again
		return failed
	}
	report("the kubelet %s did not come up: %v; putting %s back", u.To, failed, u.journal.From)
	// From here on the next run has kubeadm write the new settings again.
	if err := u.ended(stageImages); err != nil {
		return errors.Join(failed, err)
	}
	if err := u.rollBack(ctx, report); err != nil {
		return fault.New(fault.KubeletFailed, "the kubelet %s did not come up: %v; nor did %s, which was put back: %v", u.To, failed, u.journal.From, err)
	}
	return fault.New(fault.KubeletRolledBack, "the kubelet %s did not come up: %v; %s was put back and is Ready", u.To, failed, u.journal.From)
}

func (u *Upgrade) rollBack(ctx context.Context, report host.Report) error {
	for _, name := range keptFiles {
		there, err := copyFile(u.h, path.Join(keptFolder, name), name)
		if err == nil && !there {
			_, err = u.h.Remove(name)
		}
		if err != nil {
			return err
		}
	}
	if err := u.h.Units.Reload(ctx); err != nil {
		return err
	}
	return u.startKubelet(ctx, u.journal.From, report)
}

// startKubelet restarts the kubelet and waits for it to report the version.
func (u *Upgrade) startKubelet(ctx context.Context, version string, report host.Report) error {
	ctx, cancel := context.WithTimeoutCause(ctx, kubeletLimit, fmt.Errorf("not within %s", kubeletLimit))
	defer cancel()
	report("restarting the kubelet")
	job, err := u.h.Units.Restart(ctx, kubeletUnit)
	if err != nil {
		return err
	}
	unit, err := u.h.Units.Wait(ctx, job)
	if err != nil {
		return err
	}
	if unit.ActiveState == "failed" {
		return fmt.Errorf("%s is failed (%s)", kubeletUnit, unit.Result)
	}
	api, err := OpenNodeAPI(u.h)
	if err != nil {
		return err
	}
	defer api.Close()
	return api.waitReady(ctx, strings.ToLower(u.options.NodeName), version, say(report))
}

// forgetUpgrade ends an upgrade; the journal goes first, for without it what is kept
// means nothing.
func forgetUpgrade(h *host.Host) error {
	if _, err := h.Remove(upgradeJournalFile); err != nil {
		return fault.Wrap(fault.UpgradeFailed, err, "cannot end the upgrade")
	}
	if err := os.RemoveAll(h.Path(upgradeFolder)); err != nil {
		return fault.Wrap(fault.UpgradeFailed, err, "cannot remove what was kept")
	}
	return nil
}
