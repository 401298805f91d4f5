// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/pelletier/go-toml/v2"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// ResetLog is where the output of kubeadm reset goes.
const ResetLog = "/var/log/nodeagent/kubeadm-reset.log"

// ResetOptions says how much of a node goes.
type ResetOptions struct {
	// Clone takes away what a copied disk has of another machine, and that only:
	// its cluster is not called, for there the other machine lives on.
	Clone  bool
	Images bool // the container images too
}

// ResetStep is one part of a reset; it may be repeated.
type ResetStep struct {
	verb   resetVerb
	target string // a file, a folder, a unit or a link
}

type resetVerb string

const (
	resetStop        resetVerb = "stop and disable"
	resetKubeadm     resetVerb = "run"
	resetRemove      resetVerb = "remove"
	resetLink        resetVerb = "delete the link"
	resetCredentials resetVerb = "take the registry's credentials out of"
	resetImages      resetVerb = "remove all images of containerd's namespace"
	resetReload      resetVerb = "have systemd read its unit files again"
)

// String says what the step does.
func (s ResetStep) String() string { return strings.TrimSpace(string(s.verb) + " " + s.target) }

// resetFacts is what a machine has.
type resetFacts struct {
	there       func(name string) bool // a file, or a folder that is not empty
	links       []string               // network interfaces
	credentials bool                   // of a registry, in containerd's configuration
}

var (
	// identity is what makes a machine one node of one cluster. kubeadm reset removes
	// some of it.
	identity = []string{"/etc/kubernetes", "/var/lib/kubelet", "/var/lib/etcd", "/etc/cni/net.d", "/var/lib/cni", "/run/flannel",
		rootKubeconfig, "/home/cloud/.kube/config", "/var/log/pods", "/var/log/containers", upgradeJournalFile, upgradeFolder, journalFile}
	// fromISO is the rest. kubeadm goes last: without it nothing more can be reset.
	fromISO = []string{binFolder + "/kubelet", binFolder + "/kubectl", binFolder + "/crictl", binFolder + "/etcd", binFolder + "/etcdctl", binFolder + "/etcdutl",
		"/opt/cni", "/opt/autoscaler", "/opt/provider", "/opt/csi", Manifests, downloads, suspect,
		"/etc/systemd/system/" + kubeletUnit, "/etc/systemd/system/" + kubeletUnit + ".d", "/etc/systemd/system/" + etcdUnit, Kubeadm}
)

// podLinks are names of links that network plugins make.
var podLinks = []string{"cni*", "flannel.*", "cali*", "vxlan.calico", "cilium_*", "lxc*", "weave", "datapath", "vxlan-*", "vethwe-*", "kube-ipvs0", "kube-bridge", "nodelocaldns"}

// noKubeconfig keeps kubeadm reset from calling a cluster: there is no such file.
const noKubeconfig = "/run/nodeagent/no-kubeconfig"

// resetPlan decides what is to be removed, in an order in which every step can be the
// last before a kill. It is pure.
func resetPlan(f resetFacts, options ResetOptions) []ResetStep {
	var steps []ResetStep
	add := func(verb resetVerb, target string) { steps = append(steps, ResetStep{verb, target}) }
	remove := func(names []string) {
		for _, name := range names {
			if f.there(name) {
				add(resetRemove, name)
			}
		}
	}
	for _, unit := range []string{kubeletUnit, etcdUnit} {
		if f.there("/etc/systemd/system/" + unit) {
			add(resetStop, unit)
		}
	}
	if f.there(Kubeadm) && slices.ContainsFunc(leftovers, f.there) {
		call := "kubeadm reset --force --cri-socket unix://" + CRISocket
		if options.Clone {
			call += " --kubeconfig " + noKubeconfig
		}
		add(resetKubeadm, call)
	}
	for _, link := range f.links {
		if slices.ContainsFunc(podLinks, func(pattern string) bool { ok, _ := path.Match(pattern, link); return ok }) {
			add(resetLink, link)
		}
	}
	remove(identity)
	if options.Clone {
		return steps
	}
	if f.credentials {
		add(resetCredentials, containerdConfig)
	}
	if options.Images {
		add(resetImages, imageNamespace)
	}
	remove(fromISO)
	if len(steps) > 0 {
		add(resetReload, "")
	}
	return steps
}

// PlanReset returns what there is to do to make this machine one that was never a
// node. It changes nothing.
func PlanReset(h *host.Host, options ResetOptions) ([]ResetStep, error) {
	f := resetFacts{there: func(name string) bool {
		entries, err := os.ReadDir(h.Path(name)) // which fails for what is no folder
		return h.Exists(name) && (err != nil || len(entries) > 0)
	}}
	entries, err := os.ReadDir(h.Path("/sys/class/net"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fault.Wrap(fault.ResetFailed, err, "cannot list the network interfaces")
	}
	for _, entry := range entries {
		f.links = append(f.links, entry.Name())
	}
	old, err := h.ReadFile(containerdConfig)
	if err == nil {
		// One that cannot be read has none that containerd would use.
		text, err := withoutCredentials(old)
		f.credentials = err == nil && !bytes.Equal(text, old)
	}
	return resetPlan(f, options), nil
}

// Reset takes the steps, and stops at the first that fails, with fault.ResetFailed. It
// blocks until all is done.
func Reset(ctx context.Context, h *host.Host, steps []ResetStep, report host.Report) error {
	for _, step := range steps {
		say(report)("%s", step)
		if err := step.take(ctx, h, report); err != nil {
			return fault.Wrap(fault.ResetFailed, err, "cannot %s", step)
		}
	}
	h.Kernel.Sync()
	return nil
}

func (s ResetStep) take(ctx context.Context, h *host.Host, report host.Report) error {
	switch s.verb {
	case resetStop:
		job, err := disableAndStop(ctx, h, s.target)
		if err == nil && job != (host.Job{}) {
			_, err = h.Units.Wait(ctx, job)
		}
		return err
	case resetKubeadm:
		r := &run{h: h, verb: "reset", code: fault.ResetFailed, log: ResetLog, scrub: scrubber(nil), report: say(report)}
		if err := r.kubeadm(ctx, "kubeadm reset", strings.Fields(s.target)[1:]...); err != nil {
			return err
		}
	case resetLink:
		if !h.Exists("/sys/class/net/" + s.target) {
			return nil // it went with another
		}
		_, err := h.Run.Run(ctx, host.Command{Path: "/sbin/ip", Args: []string{"link", "delete", s.target}})
		return err
	case resetRemove:
		return removeAll(h, s.target)
	case resetCredentials:
		return removeCredentials(ctx, h)
	case resetImages:
		return removeImages(ctx, h)
	case resetReload:
		return h.Units.Reload(ctx)
	}
	return nil
}

// disableAndStop does so with a unit that is there, and does not wait for its end.
func disableAndStop(ctx context.Context, h *host.Host, unit string) (host.Job, error) {
	state, err := h.Units.State(ctx, unit)
	if err != nil || !state.Exists() {
		return host.Job{}, err
	}
	if _, err := h.Units.Disable(ctx, unit); err != nil {
		return host.Job{}, err
	}
	return h.Units.Stop(ctx, unit)
}

// removeAll removes a file or a folder, of one that is a mount point only what is in
// it. One with something mounted in it stays: that can be the data of a pod's volume.
func removeAll(h *host.Host, name string) error {
	mounts, err := h.ReadFile("/proc/self/mountinfo")
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	real, err := filepath.EvalSymlinks(h.Path(name))
	if errors.Is(err, fs.ErrNotExist) {
		real, err = h.Path(name), nil
	}
	if err != nil {
		return err
	}
	mounted := false
	for line := range strings.Lines(string(mounts)) {
		// proc_pid_mountinfo(5): the fifth word is the mount point; no name of ours
		// has a character that would be escaped there.
		words := strings.Fields(line)
		if len(words) < 5 {
			continue
		}
		mounted = mounted || h.Path(words[4]) == real
		if strings.HasPrefix(h.Path(words[4]), real+"/") {
			return fmt.Errorf("%s is mounted there; reboot, and run `nodeagent reset` again", words[4])
		}
	}
	if !mounted {
		return os.RemoveAll(h.Path(name))
	}
	entries, err := os.ReadDir(real)
	for _, entry := range entries {
		err = errors.Join(err, os.RemoveAll(filepath.Join(real, entry.Name())))
	}
	return err
}

// withoutCredentials returns containerd's configuration without registries' users and
// passwords; a text that has none comes back as it is.
func withoutCredentials(text []byte) ([]byte, error) {
	var config map[string]any
	if err := toml.Unmarshal(text, &config); err != nil {
		return nil, err
	}
	tables, err := tablesOf(config)
	if err != nil {
		return nil, err
	}
	known, _ := lookUp(config, under(tables.registry, "configs")...)
	hosts, _ := known.(map[string]any)
	found := false
	for _, settings := range hosts {
		if table, ok := settings.(map[string]any); ok && table["auth"] != nil {
			delete(table, "auth")
			found = true
		}
	}
	if !found {
		return text, nil
	}
	return toml.Marshal(config)
}

func removeCredentials(ctx context.Context, h *host.Host) error {
	old, err := h.ReadFile(containerdConfig)
	if err != nil {
		return err
	}
	text, err := withoutCredentials(old)
	if err != nil {
		return err
	}
	if _, err := h.WriteFile(containerdConfig, text, 0o644); err != nil {
		return err
	}
	return restartContainerd(ctx, h)
}

func removeImages(ctx context.Context, h *host.Host) error {
	client, err := containerd.New(h.Path(CRISocket), containerd.WithDefaultNamespace(imageNamespace), containerd.WithTimeout(dialLimit))
	if err != nil {
		return err
	}
	defer client.Close()
	store := client.ImageService()
	list, err := store.List(ctx)
	if err != nil {
		return err
	}
	for i, image := range list {
		var options []images.DeleteOpt
		if i == len(list)-1 {
			options = append(options, images.SynchronousDelete()) // the space is free when it returns
		}
		if err := store.Delete(ctx, image.Name, options...); ignoreNotFound(err) != nil {
			return err
		}
	}
	return nil
}
