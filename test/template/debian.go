// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"nodeagent/test/cache"
)

// packages is what the template needs of Debian besides mmdebstrap's minbase, and
// besides what its architecture needs.
//
// The cloud kernel has everything a node and kube-proxy need (virtio, sr_mod,
// isofs, qemu_fw_cfg, overlay, br_netfilter, nf_tables, ip_tables, ip_set, ip_vs,
// vxlan) and boots faster than the full one, but Debian 12's has no AHCI: a CD-ROM
// has to be on virtio-scsi, or on the IDE bus of QEMU's pc machine, not on q35's SATA.
func packages() []string {
	return []string{
		"systemd", "systemd-sysv", "systemd-timesyncd", "udev", "dbus",
		"initramfs-tools", "zstd",
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
//
// It is not to look for an emulator of a foreign architecture: the kernel has it, see
// emulated.
func mmdebstrap(packages []string, arch, suite string) []string {
	argv := []string{
		"mmdebstrap", "--mode=root", "--variant=minbase", "--architectures=" + arch, "--skip=check/qemu", "--include=" + strings.Join(packages, ","),
		// A mirror that stands still is good enough for a test image.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-include=/usr/share/doc/*/copyright",
		"--dpkgopt=path-exclude=/usr/share/man/*", "--dpkgopt=path-exclude=/usr/share/locale/*",
	}
	return append(append(argv, initramfs()...), suite)
}

// initramfs makes the initial RAM disk find its root on a virtio, SCSI or IDE disk and
// hold no other driver: it saves seconds of every boot without hardware virtualisation.
// As hooks of mmdebstrap, before the kernel's package makes it.
func initramfs() []string {
	return []string{
		`--essential-hook=mkdir -p "$1/etc/initramfs-tools/conf.d" "$1/usr/share/initramfs-tools/modules.d"`,
		`--essential-hook=printf 'MODULES=list\nRESUME=none\n' >"$1/etc/initramfs-tools/conf.d/template"`,
		`--essential-hook=printf '%s\n' virtio_pci virtio_blk virtio_scsi sd_mod ata_piix >"$1/usr/share/initramfs-tools/modules.d/template"`,
	}
}

// debianRoot returns a cached folder with a release of Debian as its packages left
// it: the content of /boot in boot, everything else in root.
func debianRoot(ctx context.Context, tools runner, arch architecture, suite string, disks bool) (string, error) {
	include := append(packages(), arch.packages...)
	if disks {
		include = append(include, diskTools()...)
	}
	argv := mmdebstrap(include, arch.name, suite)
	dir, err := cache.Dir("debian", argv, func(dir string) error {
		root, boot := filepath.Join(dir, "root"), filepath.Join(dir, "boot")
		err := emulated(arch, func() error { return tools.run(ctx, "", append(slices.Clone(argv), root)...) })
		if err != nil {
			return err
		}
		if err := os.Rename(filepath.Join(root, "boot"), boot); err != nil {
			return err
		}
		if err := os.Mkdir(filepath.Join(root, "boot"), 0o755); err != nil {
			return err
		}
		_, err = findKernel(boot)
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
