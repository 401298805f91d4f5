// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
)

// checkHealth looks at what fails on a node long after its first boot: certificates,
// etcd, the disk, network plugins (pain-points C27, C31, C37). What does not apply to
// this machine is left out.
func checkHealth(ctx context.Context, h *host.Host, nodeName string) []gate {
	ctx, cancel := context.WithTimeout(ctx, gatesTimeout)
	defer cancel()
	var checks []check
	if h.Exists(kubeadm.KubeletConf) {
		checks = []check{
			{name: "certificates", probe: func(context.Context) (string, error) {
				ok, detail, err := kubeadm.CertificateDays(h, time.Now())
				return detail, notOK(ok, detail, err)
			}},
			{name: "disk", probe: func(context.Context) (string, error) { return probeDisk(h) }},
		}
	}
	if kubeadm.HasEtcd(h) {
		checks = append(checks, check{name: "etcd", probe: func(ctx context.Context) (string, error) {
			ok, detail, err := kubeadm.EtcdHealth(ctx, h)
			return detail, notOK(ok, detail, err)
		}})
	}
	if h.Exists(kubeadm.AdminConf) {
		checks = append(checks, check{name: "pods", probe: asking(h, kubeadm.OpenAPI, func(api *kubeadm.API) (string, error) {
			ok, detail, err := api.FailingPods(ctx, nodeName)
			return detail, notOK(ok, detail, err)
		})})
	}
	return runChecks(ctx, checks)
}

// evictionPercent is the share of free disk below which the kubelet removes images and
// then pods: imagefs.available of its hard eviction thresholds
// (kubernetes.io/docs, node-pressure-eviction).
const evictionPercent = 15

// probeDisk says how much of the disk of the images is free.
func probeDisk(h *host.Host) (string, error) {
	var fs unix.Statfs_t
	const folder = "/var/lib"
	if err := unix.Statfs(h.Path(folder), &fs); err != nil {
		return "", fmt.Errorf("cannot tell the free space of %s: %w", folder, err)
	}
	return judgeDisk(int64(fs.Bavail)*fs.Bsize, int64(fs.Blocks)*fs.Bsize)
}

func judgeDisk(free, size int64) (string, error) {
	percent := 100 * free / max(size, 1)
	detail := fmt.Sprintf("%s of %s free, %d %%", gibibytes(free), gibibytes(size), percent)
	if percent < evictionPercent {
		return "", fmt.Errorf("%s: below %d %% kubelet removes images and then pods", detail, evictionPercent)
	}
	return detail, nil
}
