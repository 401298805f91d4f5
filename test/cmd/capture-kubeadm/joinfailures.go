// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"net"
	"os"
	"regexp"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	otherToken = "fedcba.fedcba9876543210"
	otherKey   = "ffeeddccbbaa99887766554433221100ffeeddccbbaa99887766554433221100"
)

// joinScenarios are the ways in which kubeadm join fails, those that leave the
// cluster as it is first.
func joinScenarios() []scenario {
	type change = func(m *machine, c *cluster, j *joinConfig) error
	// with is a join that differs in the configuration or in the machine.
	with := func(changes ...change) func(*lab, *machine, *cluster) (string, error) {
		return func(_ *lab, m *machine, c *cluster) (string, error) {
			j := joinConfig{api: m.api, name: m.name, address: m.address}
			for _, change := range changes {
				if err := change(m, c, &j); err != nil {
					return "", err
				}
			}
			return j.text(), nil
		}
	}
	set := func(fn func(*joinConfig)) change {
		return func(_ *machine, _ *cluster, j *joinConfig) error { fn(j); return nil }
	}
	in := func(fn func(c *cluster) error) change {
		return func(_ *machine, c *cluster, _ *joinConfig) error { return fn(c) }
	}
	lose := func(args ...string) change { return in(func(c *cluster) error { return c.lose(args...) }) }
	control := set(func(j *joinConfig) { j.control = true })
	pinned := change(func(_ *machine, c *cluster, j *joinConfig) (err error) { j.hash, err = c.caHash(); return err })
	kubelet := func(refuse ...string) change {
		return func(m *machine, _ *cluster, _ *joinConfig) error { return m.startKubelet(refuse...) }
	}
	endpoint := func(address string) change { return set(func(j *joinConfig) { j.endpoint = address + ":6443" }) }
	// version makes the cluster's own record say that it has this version.
	version := func(v string) change {
		return in(func(c *cluster) error {
			text, err := c.get("-n", "kube-system", "configmap", "kubeadm-config")
			if err != nil {
				return err
			}
			return c.apply(regexp.MustCompile(`kubernetesVersion: v[0-9.]+`).ReplaceAllString(text, "kubernetesVersion: v"+v))
		})
	}
	now := time.Now()
	return []scenario{
		{name: "join-api-refused", join: true, prepare: with(set(func(j *joinConfig) { j.endpoint = clusterHost + ":6444" }))},
		{name: "join-api-refused-killed", join: true, kill: 10 * time.Second, prepare: with(set(func(j *joinConfig) {
			j.endpoint, j.wait = clusterHost+":6444", "5m"
		}))},
		{name: "join-api-no-host", join: true, prepare: with(endpoint("10.1.1.99"))},
		{name: "join-api-no-route", join: true, prepare: with(endpoint("192.0.2.7"), func(m *machine, _ *cluster, _ *joinConfig) error {
			return m.within(func() error {
				return netlink.RouteAdd(&netlink.Route{Dst: &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}, Type: 7 /* unreachable */})
			})
		})},
		{name: "join-api-silent", join: true, prepare: with(endpoint("10.1.1.30"), func(m *machine, _ *cluster, _ *joinConfig) error {
			// A neighbour that takes every packet and answers none.
			return m.within(func() error {
				eth0, err := netlink.LinkByName("eth0")
				if err != nil {
					return err
				}
				return netlink.NeighAdd(&netlink.Neigh{LinkIndex: eth0.Attrs().Index, State: netlink.NUD_PERMANENT,
					IP: net.ParseIP("10.1.1.30"), HardwareAddr: net.HardwareAddr{2, 0, 0, 0, 0, 0x30}})
			})
		})},
		{name: "join-api-unknown-name", join: true, prepare: with(endpoint("api.example.invalid"))},
		{name: "join-api-not-tls", join: true, prepare: with(endpoint("10.1.1.20"), func(m *machine, _ *cluster, _ *joinConfig) error {
			return m.within(func() error {
				listener, err := net.Listen("tcp", "10.1.1.20:6443")
				if err != nil {
					return err
				}
				go func() {
					for {
						conn, err := listener.Accept()
						if err != nil {
							return
						}
						fmt.Fprint(conn, "HTTP/1.1 400 Bad Request\r\n\r\n")
						conn.Close()
					}
				}()
				return nil
			})
		})},
		{name: "join-token-unknown", join: true, prepare: with(set(func(j *joinConfig) { j.token = otherToken }))},
		{name: "join-token-wrong-secret", join: true, prepare: with(set(func(j *joinConfig) { j.token = "abcdef.fedcba9876543210" }))},
		{name: "join-token-no-authentication", join: true, prepare: with(set(func(j *joinConfig) { j.tlsToken = otherToken }))},
		{name: "join-token-malformed", join: true, prepare: with(set(func(j *joinConfig) { j.token = "ABCDEF.fedcba9876543210" }))},
		{name: "join-ca-mismatch", join: true, prepare: with(set(func(j *joinConfig) { j.hash = "sha256:" + strings.Repeat("0", 64) }))},
		{name: "join-ca-hash-malformed", join: true, prepare: with(set(func(j *joinConfig) { j.hash = "sha256:zz" }))},
		{name: "join-api-address-not-in-certificate", join: true, prepare: with(pinned, endpoint("10.1.1.11"), in(func(c *cluster) error {
			return c.within(func() error { return c.addAddress("10.1.1.11") })
		}))},
		{name: "join-containerd-unreachable", join: true, bare: true, prepare: with()},
		{name: "join-leftovers", join: true, prepare: with(func(m *machine, _ *cluster, _ *joinConfig) error {
			for _, name := range []string{"etc/kubernetes/kubelet.conf", "etc/kubernetes/pki/ca.crt"} {
				if err := m.write(name, "x", 0o600); err != nil {
					return err
				}
			}
			return nil
		})},
		{name: "join-ca-pinned-kubelet-not-healthy", join: true, prepare: with(pinned)},
		{name: "join-kubelet-no-certificate", join: true, prepare: with(kubelet())},
		{name: "join-certificate-key-wrong", join: true, prepare: with(control, set(func(j *joinConfig) { j.key = otherKey }))},
		{name: "join-certificate-key-malformed", join: true, prepare: with(control, set(func(j *joinConfig) { j.key = "0011" }))},

		{name: "join-certificate-key-expired", join: true, prepare: with(control, lose("-n", "kube-system", "secret", "kubeadm-certs"))},
		{name: "join-token-expired", join: true, ruins: true, prepare: with(in(func(c *cluster) error {
			if err := expire(c); err != nil {
				return err
			}
			return wait(func() error { // until the controller manager has taken the signature away
				text, err := c.kubectl("-n", "kube-public", "get", "configmap", "cluster-info", "-o", "yaml")
				if err == nil && strings.Contains(text, "jws-kubeconfig-abcdef") {
					err = fmt.Errorf("the signature is still there")
				}
				return err
			})
		}))},
		{name: "join-token-expired-still-signed", join: true, ruins: true, prepare: with(in(func(c *cluster) error {
			if err := c.remove("etc/kubernetes/manifests/kube-controller-manager.yaml"); err != nil {
				return err
			}
			time.Sleep(2 * time.Second) // until its pod has ended
			return expire(c)
		}))},
		{name: "join-token-without-rights", join: true, prepare: with(
			lose("-n", "kube-system", "rolebinding", "kubeadm:nodes-kubeadm-config"))},
		{name: "join-kubelet-config-forbidden", join: true, prepare: with(
			lose("-n", "kube-system", "rolebinding", "kubeadm:kubelet-config"))},
		{name: "join-nodes-forbidden", join: true, prepare: with(
			lose("clusterrolebinding", "kubeadm:get-nodes"))},
		{name: "join-cluster-info-missing", join: true, ruins: true, prepare: with(lose("-n", "kube-public", "configmap", "cluster-info"))},
		{name: "join-cluster-info-forbidden", join: true, prepare: with(
			lose("-n", "kube-public", "rolebinding", "kubeadm:bootstrap-signer-clusterinfo"))},
		{name: "join-cluster-config-missing", join: true, prepare: with(lose("-n", "kube-system", "configmap", "kubeadm-config"))},
		{name: "join-kubelet-config-missing", join: true, prepare: with(lose("-n", "kube-system", "configmap", "kubelet-config"))},
		{name: "join-name-taken", join: true, prepare: with(func(m *machine, c *cluster, _ *joinConfig) error { return c.ready(m.name) })},
		{name: "join-cluster-too-old", join: true, prepare: with(control, version("1.30.2"))},
		{name: "join-clock-behind", join: true, prepare: with(in(func(c *cluster) error {
			return c.reserve(serving{notBefore: now.AddDate(0, 0, 1), notAfter: now.AddDate(1, 0, 0)})
		}))},
		{name: "join-clock-behind-pinned", join: true, prepare: with(pinned, in(func(c *cluster) error {
			return c.reserve(serving{notBefore: now.AddDate(0, 0, 1), notAfter: now.AddDate(1, 0, 0)})
		}))},
		{name: "join-clock-ahead", join: true, prepare: with(in(func(c *cluster) error {
			return c.reserve(serving{notBefore: now.AddDate(-1, 0, 0), notAfter: now.AddDate(0, 0, -1)})
		}))},
		{name: "join-ca-unknown-authority", join: true, prepare: with(in(func(c *cluster) error {
			return c.reserve(serving{notBefore: now.AddDate(0, 0, -1), notAfter: now.AddDate(1, 0, 0), strangeCA: true})
		}))},
		{name: "join-no-control-plane-endpoint", join: true, prepare: with(control, in(func(c *cluster) error {
			text, err := c.get("-n", "kube-system", "configmap", "kubeadm-config")
			if err != nil {
				return err
			}
			return c.apply(strings.ReplaceAll(text, "    controlPlaneEndpoint: "+clusterHost+":6443\n", ""))
		}))},
		{name: "join-etcd-unreachable", join: true, prepare: with(control, func(_ *machine, c *cluster, _ *joinConfig) error {
			c.undo = append(c.undo, c.register)
			_, err := c.kubectl("-n", "kube-system", "annotate", "--overwrite", "pod", "etcd-control-1",
				"kubeadm.kubernetes.io/etcd.advertise-client-urls=https://"+clusterHost+":12379")
			return err
		})},
		{name: "join-etcd-quorum-lost", join: true, ruins: true, prepare: func(l *lab, m *machine, c *cluster) (string, error) {
			// A second control node joined and died.
			if err := other(l, "2m0s"); err != nil {
				return "", err
			}
			return with(control)(l, m, c)
		}},
		{name: "join-etcd-learner-not-started", join: true, ruins: true, prepare: with(control, kubelet("etcd"))},
		{name: "join-etcd-learner-limit", join: true, ruins: true, prepare: func(l *lab, m *machine, c *cluster) (string, error) {
			// Another control node is joining: its etcd is not in step yet.
			if err := other(l, "15s", "etcd"); err != nil {
				return "", err
			}
			return with(control, kubelet())(l, m, c)
		}},
		{name: "join-control-plane-not-healthy", join: true, ruins: true, prepare: with(control, kubelet("kube-apiserver"), bootstraps,
			set(func(j *joinConfig) { j.etcd = "2m0s" }))},
	}
}

// expire makes the join token one of long ago.
func expire(c *cluster) error {
	if _, err := c.get("-n", "kube-system", "secret", "bootstrap-token-abcdef"); err != nil {
		return err
	}
	_, err := c.kubectl("-n", "kube-system", "patch", "secret", "bootstrap-token-abcdef", `--patch={"stringData":{"expiration":"2020-01-01T00:00:00Z"}}`)
	return err
}

// other begins to join a second control node, whose kubelet refuses some pods, and
// ends it. limit is how long it waits for etcd.
func other(l *lab, limit string, refuse ...string) error {
	m, err := l.machine("control-2", "10.1.1.21")
	if err != nil {
		return err
	}
	defer m.off()
	if err := m.startContainerd(); err != nil {
		return err
	}
	if err := m.startKubelet(refuse...); err != nil {
		return err
	}
	if err := m.write(configFile, joinConfig{api: m.api, name: m.name, address: m.address, control: true, etcd: limit}.text(), 0o600); err != nil {
		return err
	}
	// It does not end well: there is no kubelet to get a certificate for. But its
	// etcd has been added before.
	if out, err := m.output("kubeadm", "join", "--config", configFile, "--v=5"); err == nil || !strings.Contains(out, "[etcd] Announced new etcd member joining") {
		return fmt.Errorf("control-2 has not announced its etcd: %s", out)
	}
	return nil
}

// bootstraps gives the kubelet credentials once kubeadm has told it where to get
// them, and registers its node.
func bootstraps(m *machine, c *cluster, _ *joinConfig) error {
	admin, err := os.ReadFile(c.path("etc/kubernetes/super-admin.conf"))
	if err != nil {
		return err
	}
	go func() {
		err := wait(func() error {
			_, err := os.Stat(m.path("etc/kubernetes/bootstrap-kubelet.conf"))
			return err
		})
		if err == nil {
			err = m.write("etc/kubernetes/kubelet.conf", string(admin), 0o600)
		}
		if err == nil {
			err = c.registerNode(m.name)
		}
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", m.name, err)
		}
	}()
	return nil
}
