// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"strconv"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// What kubeadm upgrade does: the first control node changes the cluster, all others
// follow it.
const (
	verbApply = "apply"
	verbNode  = "node"
)

// upgradeFacts is what is known before an upgrade. Versions are as v1.34.4.
type upgradeFacts struct {
	iso          string
	kubelet      string // as the node reports it
	cluster      string // of the ClusterConfiguration in kubeadm-config
	api          string // of the API server that answers this node
	repository   string // of the cluster's images; "" is kubeadm's own
	controlPlane bool
	ready        bool
	notReady     string // why not
	etcd         error
	machine      Machine
	imageBytes   int64 // of the archives that this node takes
}

// done says that there is nothing to upgrade.
func (f upgradeFacts) done() bool { return f.iso == f.kubelet && f.iso == f.cluster }

// judge decides how to upgrade, or names all that is in the way. The rules of the
// versions are kubeadm's (kubernetes.io/releases/version-skew-policy). It is pure.
func (f upgradeFacts) judge() (verb string, warnings []error, err error) {
	var problems []error
	problem := func(code fault.Code, format string, args ...any) {
		problems = append(problems, fault.New(code, format, args...))
	}
	versions := map[string]version{}
	for what, text := range map[string]string{"ISO": f.iso, "kubelet": f.kubelet, "cluster": f.cluster, "API server": f.api} {
		if versions[what], err = parseVersion(text); err != nil {
			return "", nil, fault.Wrap(fault.VersionSkew, err, "cannot compare the version of the %s", what)
		}
	}
	iso, cluster := versions["ISO"], versions["cluster"]
	verb = verbNode
	switch order := iso.compare(cluster); {
	case order < 0:
		problem(fault.VersionSkew, "the ISO's Kubernetes %s is older than the cluster's %s", f.iso, f.cluster)
	case order > 0 && !f.controlPlane:
		problem(fault.VersionSkew, "the cluster has Kubernetes %s: its control nodes are upgraded to %s before its workers", f.cluster, f.iso)
	case order > 0:
		verb = verbApply
		if iso.major != cluster.major || iso.minor > cluster.minor+1 {
			problem(fault.VersionSkew, "the cluster has Kubernetes %s: kubeadm goes up one minor version at a time, not to %s", f.cluster, f.iso)
		}
	}
	if iso.compare(versions["kubelet"]) < 0 {
		problem(fault.VersionSkew, "the ISO's Kubernetes %s is older than this node's kubelet, %s", f.iso, f.kubelet)
	}
	if server := versions["API server"]; !f.controlPlane && iso.minor > server.minor {
		problem(fault.VersionSkew, "the API server that answers has Kubernetes %s: a kubelet %s must not be newer", f.api, f.iso)
	}
	if !f.ready {
		problem(fault.NodeNotReady, "this node is not Ready: %s", f.notReady)
	}
	if f.etcd != nil {
		problem(fault.EtcdUnhealthy, "etcd must be whole before a member of it stops: %v", f.etcd)
	}
	unfit, warnings := f.machine.UnfitFor(f.iso, f.imageBytes)
	if problems = append(problems, unfit...); len(problems) > 0 {
		return "", nil, fault.Join(fault.UpgradeFailed, problems)
	}
	return verb, warnings, nil
}

// version is one that Kubernetes releases: v1.34.4, v1.35.0-rc.1.
type version struct {
	major, minor, patch int
	pre                 string // "" is the release itself
}

var versionForm = pattern(`^v?(\d{1,4})\.(\d{1,4})\.(\d{1,4})(?:-([0-9A-Za-z.-]{1,40}))?(?:\+[0-9A-Za-z.-]{1,40})?$`)

func parseVersion(text string) (version, error) {
	found := versionForm().FindStringSubmatch(text)
	if found == nil {
		return version{}, fmt.Errorf("cannot read the version %.100q: want one like v1.34.4", text)
	}
	number := func(digits string) int {
		n, _ := strconv.Atoi(digits) // at most four digits
		return n
	}
	return version{number(found[1]), number(found[2]), number(found[3]), found[4]}, nil
}

// compare orders versions; of pre-releases it only knows that they come before.
func (v version) compare(other version) int {
	rank := func(v version) string { return cmp.Or(v.pre, "~") } // sorts after all letters
	return cmp.Or(cmp.Compare(v.major, other.major), cmp.Compare(v.minor, other.minor),
		cmp.Compare(v.patch, other.patch), cmp.Compare(rank(v), rank(other)))
}

// clusterConfiguration returns the Kubernetes version that the cluster was last
// brought to, and the registry of its images, from where kubeadm keeps both.
func (a *API) clusterConfiguration(ctx context.Context) (kubernetes, repository string, err error) {
	var object struct{ Data map[string]string }
	if err := a.getJSON(ctx, a.admin, "/api/v1/namespaces/kube-system/configmaps/kubeadm-config", &object); err != nil {
		return "", "", fmt.Errorf("cannot read the ConfigMap kubeadm-config: %w", err)
	}
	var config clusterDocument
	if err := yaml.Unmarshal([]byte(object.Data["ClusterConfiguration"]), &config); err != nil {
		return "", "", errors.New("cannot read the ConfigMap kubeadm-config: its ClusterConfiguration is no YAML")
	}
	if repository = config.ImageRepository; repository == "registry.k8s.io" || repository == "k8s.gcr.io" {
		repository = "" // kubeadm's own, which moved once
	}
	return config.KubernetesVersion, repository, nil
}

const upgradeJournalFile = "/var/lib/nodeagent/upgrade.json"

// upgradeJournal is how far an upgrade has come. It is there from when what is kept
// for a rollback is whole until all is done.
type upgradeJournal struct {
	From       string `json:"from"`
	To         string `json:"to"`
	Verb       string `json:"verb"` // of kubeadm upgrade; what is true of the cluster changes on the way
	Repository string `json:"repository,omitempty"`
	Stage      string `json:"stage"` // the last one that is done
}

func readUpgradeJournal(h *host.Host) (upgradeJournal, error) {
	var j upgradeJournal
	text, err := h.ReadFile(upgradeJournalFile)
	if errors.Is(err, fs.ErrNotExist) {
		return j, nil
	}
	if err == nil {
		err = json.Unmarshal(text, &j)
	}
	if err == nil && j.Stage == "" {
		err = errors.New("it names no stage")
	}
	if err != nil {
		return j, fault.Wrap(fault.StateUnreadable, err, "cannot read %s", upgradeJournalFile)
	}
	return j, nil
}

func (j upgradeJournal) write(h *host.Host) error {
	text, err := json.Marshal(j)
	if err == nil {
		_, err = h.WriteFile(upgradeJournalFile, append(text, '\n'), 0o600)
	}
	if err != nil {
		return fault.Wrap(fault.UpgradeFailed, err, "cannot keep a record of the upgrade")
	}
	return nil
}
