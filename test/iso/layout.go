// SPDX-License-Identifier: Apache-2.0

package iso

import (
	"context"
	"embed"
	"errors"
	"fmt"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"nodeagent/test/cache"
)

// texts are the unit files and manifests at the ISO's root.
//
//go:embed files
var texts embed.FS

// payload is what has to be built for an ISO; the rest of it is texts.
type payload struct {
	programs []entry // k8s/
	plugins  []entry // cni/
	crictl   entry   // cri-tools/
	images   []image // docker/
	etcd     entry   // etcd/
}

// payload builds everything.
func (b builder) payload(ctx context.Context, version string) (payload, error) {
	kubernetes, err := b.kubernetes(ctx, version)
	if err != nil {
		return payload{}, err
	}
	plugins, err := b.recipe(ctx, "cni", nil)
	if err != nil {
		return payload{}, err
	}
	programs, err := b.ownPrograms(ctx, version)
	if err != nil {
		return payload{}, err
	}
	images, err := b.images(ctx, version, kubernetes, programs)
	if err != nil {
		return payload{}, err
	}

	contents := payload{
		crictl: entry{name: "crictl", mode: 0o755, source: filepath.Join(programs, "crictl")},
		images: images,
	}
	// etcd's own release has more in it, but the program is what an etcd node needs.
	for _, img := range images {
		if release, is := etcdRelease(img.name); is {
			contents.etcd = entry{name: release + "/etcd", mode: 0o755, source: img.files[0].source}
		}
	}
	for _, name := range []string{"kubeadm", "kubelet", "kubectl"} {
		contents.programs = append(contents.programs, entry{name: name, source: filepath.Join(kubernetes, name)})
	}
	found, err := os.ReadDir(plugins)
	if err != nil {
		return payload{}, err
	}
	for _, plugin := range found {
		contents.plugins = append(contents.plugins,
			entry{name: plugin.Name(), mode: 0o755, source: filepath.Join(plugins, plugin.Name())})
	}
	return contents, nil
}

// etcdRelease is the folder in etcd's release of an image's version, where it is etcd's.
func etcdRelease(image string) (folder string, is bool) {
	name, tag, _ := strings.Cut(path.Base(image), ":")
	release, _, _ := strings.Cut(tag, "-")
	return "etcd-v" + release + "-linux-amd64", name == "etcd"
}

// ownPrograms builds the programs of this repository that the ISO carries.
func (b builder) ownPrograms(ctx context.Context, version string) (string, error) {
	files, err := cache.Files(b.path("programs"), filepath.Join(b.root, "go.mod"), filepath.Join(b.root, "go.sum"))
	if err != nil {
		return "", err
	}
	variable := "main.version=v" + version + "-standin"
	return cache.Dir("programs", []string{files, variable}, func(dir string) error {
		return b.goBuild(ctx, b.root, dir, []string{variable}, "./test/iso/programs/...")
	})
}

// smallPayload is a payload of the same shape whose programs only tell their
// version.
func smallPayload(version string) payload {
	says := func(name, line string) entry {
		return entry{name: name, mode: 0o755, content: []byte("#!/bin/sh\necho '" + line + "'\n")}
	}
	contents := payload{
		programs: []entry{
			says("kubeadm", "v"+version),
			says("kubelet", "Kubernetes v"+version),
			says("kubectl", "Client Version: v"+version),
		},
		crictl: says("crictl", "crictl version v"+version),
		etcd:   says("etcd-v3.6.5-linux-amd64/etcd", "etcd Version: 3.6.5"),
	}
	for _, name := range []string{"bridge", "firewall", "host-local", "loopback", "portmap"} {
		contents.plugins = append(contents.plugins, says(name, "CNI "+name+" plugin"))
	}
	for _, name := range []string{
		"registry.k8s.io/kube-apiserver:v" + version,
		"registry.k8s.io/kube-controller-manager:v" + version,
		"registry.k8s.io/kube-scheduler:v" + version,
		"registry.k8s.io/kube-proxy:v" + version,
		"registry.k8s.io/coredns/coredns:v1.12.1",
		"registry.k8s.io/pause:3.10.1",
		"registry.k8s.io/etcd:3.6.5-0",
		podnetImage,
		dashboardImage,
	} {
		contents.images = append(contents.images, image{name: name, files: []entry{{name: "name", mode: 0o644, content: []byte(name)}}})
	}
	return contents
}

// writeTree writes the files of the ISO below tree: the layout of CloudStack's
// create-kubernetes-binaries-iso.sh from 4.16 on.
func writeTree(tree string, contents payload) error {
	for _, folder := range []string{"k8s", "cni", "cri-tools", "docker", "etcd"} {
		if err := os.MkdirAll(filepath.Join(tree, folder), 0o755); err != nil {
			return err
		}
	}
	for _, program := range contents.programs {
		// CloudStack's builder ships them without the executable bit.
		if err := copyEntry(filepath.Join(tree, "k8s", program.name), program); err != nil {
			return err
		}
	}
	if err := writeTarGz(filepath.Join(tree, "cni", "cni-plugins-amd64.tgz"), contents.plugins); err != nil {
		return err
	}
	if err := writeTarGz(filepath.Join(tree, "cri-tools", "crictl-linux-amd64.tar.gz"), []entry{contents.crictl}); err != nil {
		return err
	}
	if err := writeTarGz(filepath.Join(tree, "etcd", "etcd-linux-amd64.tar.gz"), []entry{contents.etcd}); err != nil {
		return err
	}
	for _, img := range contents.images {
		if err := writeImage(filepath.Join(tree, "docker", path.Base(img.name)+".tar"), img); err != nil {
			return err
		}
	}
	return writeTexts(tree)
}

func writeTexts(tree string) error {
	found, err := texts.ReadDir("files")
	if err != nil {
		return err
	}
	for _, file := range found {
		content, err := texts.ReadFile("files/" + file.Name())
		if err != nil {
			return err
		}
		if err := os.WriteFile(filepath.Join(tree, file.Name()), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

func copyEntry(target string, e entry) error {
	content, _, err := e.open()
	if err != nil {
		return err
	}
	defer content.Close()
	return createFile(target, func(w io.Writer) error { _, err := io.Copy(w, content); return err })
}

// omit removes the named files and folders. One that is not there is an error:
// the test that omits it would test nothing.
func omit(tree string, names []string) error {
	var problems []error
	for _, name := range names {
		target := filepath.Join(tree, name)
		if _, err := os.Lstat(target); err != nil {
			problems = append(problems, fmt.Errorf("cannot omit %q: %w", name, err))
			continue
		}
		if err := os.RemoveAll(target); err != nil {
			problems = append(problems, err)
		}
	}
	return errors.Join(problems...)
}
