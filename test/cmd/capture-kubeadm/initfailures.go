// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net"
	"os"
	"strings"
)

// initScenarios are the ways in which kubeadm init fails.
func initScenarios() []scenario {
	plain := func(l *lab, m *machine) initConfig {
		return initConfig{api: m.api, name: m.name, address: m.address, version: l.programs.version}
	}
	// config is a machine on which only the configuration is wrong.
	config := func(change func(*initConfig)) func(*lab, *machine, *cluster) (string, error) {
		return func(l *lab, m *machine, _ *cluster) (string, error) {
			c := plain(l, m)
			change(&c)
			return c.text(), nil
		}
	}
	return []scenario{
		{name: "init-port-in-use", prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			return plain(l, m).text(), m.within(func() error {
				_, err := net.Listen("tcp", ":6443") // until the program ends
				return err
			})
		}},
		{name: "init-leftovers", prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			return plain(l, m).text(), m.startKubelet("kube-apiserver")
		}, then: func(_ *lab, m *machine, _ *cluster) error {
			// As a reboot before the kubelet is up again.
			m.kubelet.stopAll()
			return nil
		}},
		{name: "init-unfit-machine", cpus: 1, bare: true, prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			for _, name := range []string{"opt/bin/kubelet", "usr/sbin/losetup", "usr/sbin/conntrack"} {
				if err := m.remove(name); err != nil {
					return "", err
				}
			}
			if err := m.write("var/lib/etcd/member/snap/db", "", 0o600); err != nil {
				return "", err
			}
			return plain(l, m).text(), m.within(func() error {
				return os.WriteFile("/proc/sys/net/ipv4/ip_forward", []byte("0"), 0)
			})
		}},
		{name: "init-containerd-unreachable", bare: true, prepare: config(func(*initConfig) {})},
		{name: "init-containerd-without-cri", bare: true, prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			// What containerd's packages of Docker ship.
			if err := m.write("etc/containerd/config.toml", "disabled_plugins = [\"cri\"]\n", 0o644); err != nil {
				return "", err
			}
			return plain(l, m).text(), m.startContainerd()
		}},
		{name: "init-image-not-there", prepare: config(func(c *initConfig) { c.pull = "IfNotPresent" })},
		{name: "init-kubelet-not-healthy", prepare: config(func(*initConfig) {})},
		{name: "init-no-control-plane", prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			return plain(l, m).text(), m.startKubelet("etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler")
		}},
		{name: "init-no-etcd", prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			return plain(l, m).text(), m.startKubelet("etcd")
		}},
		{name: "init-node-not-registered", prepare: func(l *lab, m *machine, _ *cluster) (string, error) {
			c := plain(l, m)
			c.limit = "3m0s"
			return strings.Replace(c.text(), "timeouts:\n", "timeouts:\n  kubernetesAPICall: 10s\n", 1), m.startKubelet()
		}},
		{name: "init-bad-version", prepare: config(func(c *initConfig) { c.version = "1.34.x" })},
		{name: "init-version-too-old", prepare: config(func(c *initConfig) { c.version = "1.27.3" })},
		{name: "init-wrong-type", prepare: config(func(c *initConfig) { c.extra = "networking: 10.244.0.0/16\n" })},
		{name: "init-unknown-feature-gate", prepare: config(func(c *initConfig) { c.extra = "featureGates:\n  Wrong: true\n" })},
		{name: "init-wrong-api-version", prepare: config(func(c *initConfig) { c.api = "v1beta9" })},
		{name: "init-old-api-version", prepare: config(func(c *initConfig) { c.api = "v1beta2" })},
		{name: "init-malformed-token", prepare: config(func(c *initConfig) { c.token = "abcdef.0123456789ABCDEF" })},
		{name: "init-malformed-certificate-key", prepare: config(func(c *initConfig) { c.key = "00112233" })},
		{name: "init-malformed-network", prepare: config(func(c *initConfig) { c.extra = "networking:\n  podSubnet: 10.244.0.0\n" })},
		{name: "init-invalid-name", prepare: config(func(c *initConfig) { c.name = "node_1" })},
	}
}
