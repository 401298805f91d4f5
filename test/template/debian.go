// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"nodeagent/test/cache"
)

// packages is what the template needs of Debian besides mmdebstrap's minbase.
//
// The cloud kernel has everything a node and kube-proxy need (virtio, sr_mod,
// isofs, qemu_fw_cfg, overlay, br_netfilter, nf_tables, ip_tables, ip_set, ip_vs,
// vxlan) and boots faster than the full one, but Debian 12's has no AHCI: a CD-ROM
// has to be on virtio-scsi, or on the IDE bus of QEMU's pc machine, not on q35's SATA.
func packages() []string {
	return []string{
		"systemd", "systemd-sysv", "systemd-timesyncd", "udev", "dbus",
		"linux-image-cloud-amd64", "initramfs-tools", "zstd",
		"containerd", "runc", "docker.io",
		"cloud-init", "cloud-guest-utils", "qemu-guest-agent", "openssh-server",
		"ifupdown", "isc-dhcp-client", "iproute2", "ethtool", "conntrack", "socat", "curl",
		"iptables", "nftables", "arptables", "ebtables", "ipset", "irqbalance",
		"e2fsprogs", "fdisk", "parted", "eject",
		"ca-certificates", "kmod", "less", "procps", "sudo",
	}
}

// diskTools are the packages with the makers and judges of partition tables, file
// systems and volumes; they are in no template of CloudStack's.
func diskTools() []string {
	return []string{"gdisk", "lvm2", "xfsprogs", "btrfs-progs"}
}

// mmdebstrap returns the command that fills a folder with Debian, without the
// folder: options, suite. The mirror is mmdebstrap's default, deb.debian.org with
// updates and security.
func mmdebstrap(packages []string, suite string) []string {
	return []string{
		"mmdebstrap", "--mode=root", "--variant=minbase", "--include=" + strings.Join(packages, ","),
		// A mirror that stands still is good enough for a test image.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
		suite,
	}
}

// initramfs returns the configuration of an initial RAM disk that finds its root on
// a virtio, SCSI or IDE disk and holds no other driver: it saves seconds of every
// boot without hardware virtualisation. Keyed by file below /etc/initramfs-tools.
func initramfs() map[string]string {
	return map[string]string{
		"conf.d/template": "MODULES=list\nRESUME=none\n",
		"modules":         "virtio_pci\nvirtio_blk\nvirtio_scsi\nsd_mod\nata_piix\n",
	}
}

// debianRoot returns a cached folder with a release of Debian as its packages left
// it: the content of /boot in boot, everything else in root.
func debianRoot(ctx context.Context, tools runner, suite string, disks bool) (string, error) {
	include := packages()
	if disks {
		include = append(include, diskTools()...)
	}
	argv := mmdebstrap(include, suite)
	inputs := append(mmdebstrap(include, suite), fmt.Sprint(initramfs()))
	dir, err := cache.Dir("debian", inputs, func(dir string) error {
		root, boot := filepath.Join(dir, "root"), filepath.Join(dir, "boot")
		if err := tools.run(ctx, "", append(argv, root)...); err != nil {
			return err
		}
		for name, content := range initramfs() {
			if err := writeFile(filepath.Join(root, "etc/initramfs-tools", name), content); err != nil {
				return err
			}
		}
		if err := tools.run(ctx, "", "chroot", root, "update-initramfs", "-u"); err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(root, "boot"), boot); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(root, "boot"), 0o755); err != nil {
			return err
		}
		_, err := findKernel(boot)
		return err
	})
	if err != nil {
		return "", err
	}
	return dir, prune(dir, keptRoots)
}

// kernelFiles are the names of a kernel and its initial RAM disk below /boot.
type kernelFiles struct{ image, initrd string }

func findKernel(boot string) (kernelFiles, error) {
	images, err := filepath.Glob(filepath.Join(boot, "vmlinuz-*"))
	if err != nil {
		return kernelFiles{}, err
	}
	if len(images) != 1 {
		return kernelFiles{}, fmt.Errorf("cannot choose kernel in %q: want 1, found %q", boot, images)
	}
	image := filepath.Base(images[0])
	initrd := "initrd.img-" + strings.TrimPrefix(image, "vmlinuz-")
	if _, err := os.Stat(filepath.Join(boot, initrd)); err != nil {
		return kernelFiles{}, fmt.Errorf("cannot find initial RAM disk of kernel %q: %w", image, err)
	}
	return kernelFiles{image: image, initrd: initrd}, nil
}
