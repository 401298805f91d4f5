// SPDX-License-Identifier: Apache-2.0

// Package template builds the disks the VM tests boot and `make template` bakes:
// Debian 12 or 13 in the shape of CloudStack's SystemVM template (partitions, GRUB,
// units on and off, sshd, cloud-init), with a nodeagent package installed.
package template

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"sort"
	"strings"
	"time"

	"nodeagent/test/cache"
)

// Image is a built template. The files belong to the cache: boot a qcow2 overlay
// of Disk, never Disk itself.
type Image struct {
	Disk   string // qcow2, with a boot loader for a BIOS or, on a GPT, for UEFI firmware
	Kernel string // for QEMU's -kernel, the one on the disk
	Initrd string // for -initrd
	Append string // for -append, as in the disk's grub.cfg
}

// Options say what is in a template.
type Options struct {
	Package string // file of the nodeagent package
	// Suite is the release of Debian, one of Suites. Empty: bookworm.
	Suite string
	// Arch is the kind of machine, one of Architectures. Empty: amd64. Another than this
	// machine's needs Debian's qemu-user-static, and the first build some ten minutes.
	Arch string
	// GPT gives it the partitions of CloudStack's aarch64 template, and GRUB for UEFI
	// firmware in place of GRUB for a BIOS. There is no other arm64.
	GPT bool
	// DiskTools adds the programs that make and check what nodeagent grows.
	DiskTools bool
}

// What stays in the cache, each of about 700 MB: images for one run of all tests and
// one more, and the file systems they are made from.
const (
	keptImages = 7
	keptRoots  = 5
)

// sources is everything that shapes an image besides Debian and the package.
//
//go:embed *.go all:rootfs
var sources embed.FS

// Build returns the template with the package installed, from the cache when it
// was built before. The first build on a machine downloads
// Debian and takes about a minute, one with another package a few seconds. The
// output of the tools it runs goes to log. It needs root.
func Build(ctx context.Context, log io.Writer, options Options) (Image, error) {
	if os.Geteuid() != 0 {
		return Image{}, errors.New("cannot build template: it needs root (chroot, file owners)")
	}
	tools := runner{log: log}
	release, err := findRelease(options.Suite)
	if err != nil {
		return Image{}, fmt.Errorf("cannot build template: %w", err)
	}
	arch, err := findArchitecture(options.Arch, options.GPT)
	if err != nil {
		return Image{}, fmt.Errorf("cannot build template: %w", err)
	}
	debian, err := debianRoot(ctx, tools, arch, release.suite, options.DiskTools)
	if err != nil {
		return Image{}, err
	}
	pkg, err := cache.Files(options.Package)
	if err != nil {
		return Image{}, fmt.Errorf("cannot read package: %w", err)
	}
	own, err := sourceText()
	if err != nil {
		return Image{}, err
	}
	dir, err := cache.Dir("template", []string{debian, pkg, own, fmt.Sprint(options.GPT)}, func(dir string) error {
		return emulated(arch, func() error { return bake(ctx, tools, debian, arch, release, options, dir) })
	})
	if err != nil {
		return Image{}, err
	}
	if err := prune(dir, keptImages); err != nil {
		return Image{}, err
	}
	return Image{
		Disk:   filepath.Join(dir, "disk.qcow2"),
		Kernel: filepath.Join(dir, "vmlinuz"),
		Initrd: filepath.Join(dir, "initrd.img"),
		Append: kernelCommandLine(arch),
	}, nil
}

// bake turns Debian's root plus a package into the files of an Image in dir.
func bake(ctx context.Context, tools runner, debian string, arch architecture, r release, options Options, dir string) error {
	boot, work := filepath.Join(debian, "boot"), filepath.Join(dir, "work")
	if err := os.Mkdir(work, 0o755); err != nil {
		return err
	}
	defer os.RemoveAll(work)

	err := onOwnThread(func() error {
		root, err := copyOf(ctx, tools, filepath.Join(debian, "root"), work)
		if err != nil {
			return err
		}
		if err := configure(ctx, tools, r, options.GPT, root); err != nil {
			return err
		}
		if err := install(ctx, tools, root, options.Package); err != nil {
			return err
		}
		l, err := partition(imageSectors, options.GPT)
		if err != nil {
			return err
		}
		return makeDisk(ctx, tools, arch, l, root, boot, work, filepath.Join(dir, "disk.qcow2"))
	})
	if err != nil {
		return err
	}

	kernel, err := findKernel(boot)
	if err != nil {
		return err
	}
	return errors.Join(
		copyFile(filepath.Join(boot, kernel.image), filepath.Join(dir, "vmlinuz")),
		copyFile(filepath.Join(boot, kernel.initrd), filepath.Join(dir, "initrd.img")),
	)
}

// sourceText is this package's own code and files, as an input of the cache.
func sourceText() (string, error) {
	var text strings.Builder
	err := fs.WalkDir(sources, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() || strings.HasSuffix(name, "_test.go") {
			return err
		}
		content, err := sources.ReadFile(name)
		fmt.Fprintf(&text, "%s %d\n%s", name, len(content), content)
		return err
	})
	return text.String(), err
}

// prune marks a folder of the cache as used now and removes all of its kind but the
// most recently used. A VM that already runs keeps its open disk.
func prune(dir string, keep int) error {
	now := time.Now()
	if err := os.Chtimes(dir, now, now); err != nil {
		return err
	}
	kind, _, _ := strings.Cut(filepath.Base(dir), "-")
	found, err := filepath.Glob(filepath.Join(filepath.Dir(dir), kind+"-*"))
	if err != nil {
		return err
	}
	used := map[string]time.Time{}
	var dirs []string
	for _, name := range found {
		info, err := os.Stat(name)
		if err != nil || !info.IsDir() || strings.HasSuffix(name, ".partial") {
			continue // being removed or built by another process, or its lock
		}
		used[name] = info.ModTime()
		dirs = append(dirs, name)
	}
	sort.Slice(dirs, func(a, b int) bool { return used[dirs[a]].After(used[dirs[b]]) })
	for len(dirs) > keep {
		if err := os.RemoveAll(dirs[len(dirs)-1]); err != nil {
			return err
		}
		dirs = dirs[:len(dirs)-1]
	}
	return nil
}
