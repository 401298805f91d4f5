// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
)

// programs is where the lab's programs are.
type programs struct {
	kubernetes string // folder: kube-apiserver, kubectl and the others
	etcd       string // folder with server
	kubeadm    string // file
	root       string // folder: the root of the template's Debian, with containerd
	version    string // of kubeadm
}

// labVersion is the version of the control plane's programs.
const labVersion = "1.34.4"

func findPrograms(o options) (programs, error) {
	p := programs{kubeadm: o.kubeadm, version: o.version}
	var err error
	if p.kubernetes, err = cached("kubernetes-"+labVersion+"-*/kube-apiserver", "go run ./test/iso/cmd/build-iso"); err != nil {
		return p, err
	}
	if p.etcd, err = cached("etcd-*/server", "go run ./test/iso/cmd/build-iso"); err != nil {
		return p, err
	}
	if p.root, err = cached("debian-*/root/usr/bin/containerd", "make test"); err != nil {
		return p, err
	}
	p.root = filepath.Dir(filepath.Dir(p.root))
	if p.kubeadm == "" {
		if o.version != labVersion {
			return p, fmt.Errorf("version %s needs -kubeadm: the cache has %s", o.version, labVersion)
		}
		p.kubeadm = filepath.Join(p.kubernetes, "kubeadm")
	}
	p.kubeadm, err = filepath.Abs(p.kubeadm)
	return p, err
}

// cached returns the folder of the newest file of the tests' cache that the
// pattern finds.
func cached(pattern, build string) (string, error) {
	base, err := os.UserCacheDir()
	if err != nil {
		return "", err
	}
	found, err := filepath.Glob(filepath.Join(base, "nodeagent", pattern))
	if err != nil {
		return "", err
	}
	modified := func(path string) int64 {
		info, err := os.Stat(path)
		if err != nil {
			return 0
		}
		return info.ModTime().UnixNano()
	}
	slices.SortFunc(found, func(a, b string) int { return int(min(max(modified(a)-modified(b), -1), 1)) })
	if len(found) == 0 {
		return "", fmt.Errorf("cannot find %s in the tests' cache: make it with `%s`", pattern, build)
	}
	return filepath.Dir(found[len(found)-1]), nil
}
