// SPDX-License-Identifier: Apache-2.0

package iso

import (
	"archive/tar"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"nodeagent/test/cache"
)

// Images of our own, under the names that files/*.yaml use.
const (
	podnetImage    = "nodeagent.test/podnet:v1"
	dashboardImage = "nodeagent.test/dashboard:v1"
)

// images returns the images that kubeadm asks for and those of the manifests.
// kubernetes and programs are the folders with what was built.
func (b builder) images(ctx context.Context, version, kubernetes, programs string) ([]image, error) {
	names, err := b.imageNames(ctx, filepath.Join(kubernetes, "kubeadm"), version)
	if err != nil {
		return nil, err
	}
	images := []image{
		programImage(podnetImage, filepath.Join(programs, "podnet"), "podnet"),
		programImage(dashboardImage, filepath.Join(programs, "dashboard"), "dashboard"),
	}
	for _, name := range names {
		img, err := b.kubeadmImage(ctx, name, kubernetes, programs)
		if err != nil {
			return nil, err
		}
		images = append(images, img)
	}
	return images, nil
}

// kubeadmImage returns the image of that name in kubeadm's list.
func (b builder) kubeadmImage(ctx context.Context, name, kubernetes, programs string) (image, error) {
	program, tag, _ := strings.Cut(path.Base(name), ":")
	switch program {
	case "kube-apiserver":
		return programImage(name, filepath.Join(kubernetes, program), program), nil
	case "kube-controller-manager", "kube-scheduler":
		img := programImage(name, filepath.Join(programs, "leader"), program)
		img.files = append(img.files, entry{name: "usr/local/bin/" + program + ".real", mode: 0o755, source: filepath.Join(kubernetes, program)})
		return img, nil
	case "kube-proxy":
		img := programImage(name, filepath.Join(kubernetes, program), program)
		tools, err := b.proxyTools(ctx)
		img.files = append(img.files, tools...)
		return img, err
	case "pause":
		return programImage(name, filepath.Join(programs, program), program), nil
	case "coredns":
		dir, err := b.recipe(ctx, filepath.Join("coredns", strings.TrimPrefix(tag, "v")), nil)
		return programImage(name, filepath.Join(dir, "coredns"), program), err
	case "etcd":
		// The tag has the image's revision behind etcd's version: 3.6.5-0.
		release, _, _ := strings.Cut(tag, "-")
		dir, err := b.recipe(ctx, filepath.Join("etcd", release), nil)
		img := programImage(name, filepath.Join(dir, "server"), program)
		// Ten times etcd's own, in milliseconds: members on CPUs that are emulated and
		// shared would elect leaders all the time.
		img.environment = []string{"ETCD_HEARTBEAT_INTERVAL=1000", "ETCD_ELECTION_TIMEOUT=10000"}
		return img, err
	}
	return image{}, fmt.Errorf("cannot build image %q: nothing here makes a %q", name, program)
}

// programImage is an image with one static program, where kubeadm's manifests
// look for it, and a /tmp.
func programImage(name, source, program string) image {
	target := "usr/local/bin/" + program
	return image{
		name:       name,
		entrypoint: []string{"/" + target},
		files: []entry{
			{name: target, mode: 0o755, source: source},
			{name: "tmp/.keep", mode: 0o644},
		},
	}
}

// proxyTools returns iptables and nft with the libraries they load: kube-proxy
// runs them. They come from Debian's packages.
func (b builder) proxyTools(ctx context.Context) ([]entry, error) {
	const packages, suite = "iptables,nftables", "bookworm"
	dir, err := cache.Dir("proxy-tools", []string{packages, suite}, func(dir string) error {
		b.logf("fetching %s for kube-proxy's image", packages)
		archive := filepath.Join(dir, "tools.tar")
		if err := b.run(ctx, dir, nil, "mmdebstrap", "--variant=extract", "--include="+packages, suite, archive); err != nil {
			return err
		}
		return unpackTools(archive, dir)
	})
	if err != nil {
		return nil, err
	}
	return readTools(dir)
}

// toolFolders are the parts of the packages that kube-proxy needs; the rest is
// documentation, character sets, settings and device nodes.
var toolFolders = []string{"lib/x86_64-linux-gnu", "lib64", "usr/lib/x86_64-linux-gnu", "usr/lib/x86_64-linux-gnu/xtables", "usr/sbin"}

// unpackTools writes the files of the archive that are wanted below dir.
func unpackTools(archive, dir string) error {
	file, err := os.Open(archive)
	if err != nil {
		return err
	}
	defer file.Close()
	reader := tar.NewReader(file)
	for {
		header, err := reader.Next()
		if errors.Is(err, io.EOF) {
			return os.Remove(archive)
		}
		if err != nil {
			return fmt.Errorf("cannot read %s: %w", archive, err)
		}
		name := path.Clean(header.Name)
		if !slices.Contains(toolFolders, path.Dir(name)) {
			continue
		}
		target := filepath.Join(dir, "files", name)
		if err := os.MkdirAll(filepath.Dir(target), 0o755); err != nil {
			return err
		}
		switch header.Typeflag {
		case tar.TypeSymlink:
			err = os.Symlink(header.Linkname, target)
		case tar.TypeReg:
			err = createFile(target, func(w io.Writer) error { _, err := io.Copy(w, reader); return err })
		}
		if err != nil {
			return err
		}
	}
}

// readTools returns the files that unpackTools wrote, with the links that
// Debian's maintainer scripts would make. The nft flavour of iptables: its
// kernel modules are loaded by the kernel, the legacy one runs modprobe.
func readTools(dir string) ([]entry, error) {
	root := filepath.Join(dir, "files")
	var tools []entry
	err := filepath.WalkDir(root, func(source string, found os.DirEntry, err error) error {
		if err != nil || found.IsDir() {
			return err
		}
		name, err := filepath.Rel(root, source)
		if err != nil {
			return err
		}
		tool := entry{name: filepath.ToSlash(name), mode: 0o755, source: source}
		if found.Type()&os.ModeSymlink != 0 {
			if tool.link, err = os.Readlink(source); err != nil {
				return err
			}
		}
		tools = append(tools, tool)
		return nil
	})
	for _, name := range []string{"iptables", "iptables-save", "iptables-restore", "ip6tables", "ip6tables-save", "ip6tables-restore"} {
		tools = append(tools, entry{name: "usr/sbin/" + name, link: "xtables-nft-multi"})
	}
	return tools, err
}
