// SPDX-License-Identifier: Apache-2.0

// Package kubeadm turns a machine into a Kubernetes node from CloudStack's
// binaries ISO: it finds the ISO (bundle.go), installs its programs
// (install.go), gives containerd the settings Kubernetes needs (containerd.go)
// and the ISO's images (images.go), runs kubeadm (config.go, node.go), applies
// the add-ons (addons.go) and asks the API what became of it (api.go).
//
// Every step can be repeated after a kill at any instruction and then does what
// is left to do.
package kubeadm

import (
	"context"
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// Where things are on a node. CloudStack's scripts name the same paths
// (cloudstack-contract.md, section 4).
const (
	Kubeadm   = "/opt/bin/kubeadm"
	Kubectl   = "/opt/bin/kubectl"
	CRISocket = "/run/containerd/containerd.sock"
	AdminConf = "/etc/kubernetes/admin.conf"
	// KubeletConf is there once kubelet is a member of the cluster.
	KubeletConf = "/etc/kubernetes/kubelet.conf"
	Manifests   = "/var/lib/nodeagent/manifests" // the ISO's *.yaml files
	InitLog     = "/var/log/nodeagent/kubeadm-init.log"
	JoinLog     = "/var/log/nodeagent/kubeadm-join.log"
	binFolder   = "/opt/bin"
	cniFolder   = "/opt/cni/bin"
	configFile  = "/run/nodeagent/kubeadm.yaml" // tmpfs: it holds secrets
)

// Images returns the images a cluster of that version (with or without the v)
// is made of, as kubeadm names them. repository is the registry to take them
// from, or "" for kubeadm's own. It runs the installed kubeadm.
func Images(ctx context.Context, h *host.Host, version, repository string) ([]string, error) {
	return imagesOf(ctx, h, Kubeadm, version, repository)
}

func imagesOf(ctx context.Context, h *host.Host, program, version, repository string) ([]string, error) {
	args := []string{"config", "images", "list", "--kubernetes-version", WithV(version)}
	if repository != "" {
		args = append(args, "--image-repository", repository)
	}
	out, err := h.Run.Run(ctx, host.Command{Path: program, Args: args})
	if err != nil {
		return nil, fmt.Errorf("cannot list the images of Kubernetes %s: %w", version, err)
	}
	images := strings.Fields(string(out))
	if len(images) == 0 {
		return nil, fmt.Errorf("cannot list the images of Kubernetes %s: kubeadm named none", version)
	}
	return images, nil
}

// SandboxImage returns the one of kubeadm's images that holds a pod's
// namespaces (pain-points C19 and C20: never the last one in some order).
func SandboxImage(images []string) (string, error) {
	var found []string
	for _, image := range images {
		name, _, _ := strings.Cut(path.Base(image), ":")
		if name == "pause" {
			found = append(found, image)
		}
	}
	if len(found) != 1 {
		return "", fmt.Errorf("cannot tell the sandbox image: kubeadm's list %q has %d named pause", images, len(found))
	}
	return found[0], nil
}

// installedVersion asks the kubeadm installed as program for its version, such as v1.34.4.
func installedVersion(ctx context.Context, h *host.Host, program string) (string, error) {
	out, err := h.Run.Run(ctx, host.Command{Path: program, Args: []string{"version", "-o", "short"}})
	if err != nil {
		return "", fault.Wrap(fault.ISOInvalid, err, "cannot run the ISO's kubeadm")
	}
	version := strings.TrimSpace(string(out))
	if _, _, err := minorVersion(version); err != nil {
		return "", fault.Wrap(fault.ISOInvalid, err, "cannot use the ISO's kubeadm")
	}
	return version, nil
}

// WithV writes a version as Kubernetes does: v1.34.4.
func WithV(version string) string {
	if version == "" || strings.HasPrefix(version, "v") {
		return version
	}
	return "v" + version
}

// minorVersion reads the first two numbers of a version such as v1.34.4.
func minorVersion(version string) (major, minor int, err error) {
	parts := strings.Split(strings.TrimPrefix(version, "v"), ".")
	if len(parts) < 2 || slices.Contains(parts, "") {
		return 0, 0, fmt.Errorf("cannot read the version %q: want one like v1.34.4", version)
	}
	if major, err = strconv.Atoi(parts[0]); err == nil {
		minor, err = strconv.Atoi(parts[1])
	}
	if err != nil || major < 0 || minor < 0 {
		return 0, 0, fmt.Errorf("cannot read the version %q: want one like v1.34.4", version)
	}
	return major, minor, nil
}

// say is report, or nothing when the caller wants no reports.
func say(report host.Report) host.Report {
	if report == nil {
		return func(string, ...any) {}
	}
	return report
}
