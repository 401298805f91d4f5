// SPDX-License-Identifier: Apache-2.0

package main

import (
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/rsa"
	"crypto/sha256"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"math/big"
	"net"
	"os"
	"regexp"
	"slices"
	"strings"
	"time"
)

const (
	configFile  = "/run/nodeagent/kubeadm.yaml" // as nodeagent has it
	clusterHost = "10.1.1.10"
	joinerHost  = "10.1.1.20"
	labToken    = "abcdef.0123456789abcdef"
	labKey      = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

// cluster is a control node that kubeadm init has made.
type cluster struct {
	*machine
	undo []func() error // what a failure needed
}

// theCluster returns the lab's cluster, which joins are tried with.
func (l *lab) theCluster() (*cluster, error) {
	if l.cluster != nil {
		return l.cluster, nil
	}
	c, err := l.newCluster()
	if err != nil {
		return nil, fmt.Errorf("cannot make a cluster to join: %w", err)
	}
	l.cluster = c
	return c, nil
}

func (l *lab) newCluster() (*cluster, error) {
	m, err := l.machine("control-1", clusterHost)
	if err != nil {
		return nil, err
	}
	c := &cluster{machine: m}
	if err := m.startContainerd(); err != nil {
		return nil, err
	}
	if err := m.startKubelet(); err != nil {
		return nil, err
	}
	if err := m.write(configFile, initConfig{api: m.api, address: clusterHost, name: m.name, version: l.programs.version, limit: "5m0s"}.text(), 0o600); err != nil {
		return nil, err
	}
	// What a kubelet tells the API.
	registered := make(chan error, 1)
	go func() { registered <- wait(c.register) }()
	if _, err := m.output("kubeadm", "init", "--config", configFile, "--upload-certs", "--v=5"); err != nil {
		select {
		case failed := <-registered:
			err = errors.Join(err, failed)
		default:
		}
		return nil, err
	}
	if err := <-registered; err != nil {
		return nil, err
	}
	// The controller manager signs cluster-info a little later.
	return c, wait(func() error {
		info, err := c.kubectl("-n", "kube-public", "get", "configmap", "cluster-info", "-o", "yaml")
		if err == nil && !strings.Contains(info, "jws-kubeconfig-") {
			err = errors.New("cluster-info has no signature")
		}
		return err
	})
}

// drop ends the cluster; the next join gets a new one.
func (l *lab) drop() {
	if l.cluster != nil {
		l.cluster.off()
		l.cluster = nil
	}
}

func (c *cluster) kubectl(args ...string) (string, error) {
	return c.output("kubectl", append([]string{"--kubeconfig=/etc/kubernetes/super-admin.conf"}, args...)...)
}

func (c *cluster) apply(manifest string) error {
	if err := c.write("tmp/manifest.yaml", manifest, 0o600); err != nil {
		return err
	}
	_, err := c.kubectl("apply", "-f", "/tmp/manifest.yaml")
	return err
}

// restore makes the cluster what it was before a failure.
func (c *cluster) restore() error {
	var problems []error
	for _, undo := range slices.Backward(c.undo) {
		problems = append(problems, undo())
	}
	c.undo = nil
	return errors.Join(problems...)
}

// serverFields are what an object has that is not its author's.
var serverFields = regexp.MustCompile(`(?m)^  (?:uid|resourceVersion|creationTimestamp): .*\n`)

// get returns an object's manifest; the arguments are kubectl's. Restoring the
// cluster makes it anew.
func (c *cluster) get(args ...string) (string, error) {
	text, err := c.kubectl(append([]string{"get", "-o", "yaml"}, args...)...)
	text = serverFields.ReplaceAllString(text, "")
	c.undo = append(c.undo, func() error {
		if _, err := c.kubectl(append([]string{"delete", "--ignore-not-found"}, args...)...); err != nil {
			return err
		}
		return c.apply(text)
	})
	return text, err
}

// lose deletes an object.
func (c *cluster) lose(args ...string) error {
	if _, err := c.get(args...); err != nil {
		return err
	}
	_, err := c.kubectl(append([]string{"delete"}, args...)...)
	return err
}

// register makes the node and the mirror of the etcd pod, in which kubeadm looks
// for etcd's address.
func (c *cluster) register() error {
	if err := c.registerNode(c.name); err != nil {
		return err
	}
	return c.apply(fmt.Sprintf(`apiVersion: v1
kind: Pod
metadata:
  name: etcd-%[1]s
  namespace: kube-system
  labels: {component: etcd, tier: control-plane}
  annotations:
    kubeadm.kubernetes.io/etcd.advertise-client-urls: https://%[2]s:2379
    kubernetes.io/config.mirror: lab
spec:
  nodeName: %[1]s
  hostNetwork: true
  containers: [{name: etcd, image: etcd}]
`, c.name, c.address))
}

func (c *cluster) registerNode(name string) error {
	return c.apply("apiVersion: v1\nkind: Node\nmetadata: {name: " + name + ", labels: {kubernetes.io/hostname: " + name + "}}\n")
}

// ready makes a node that is Ready.
func (c *cluster) ready(name string) error {
	if err := c.registerNode(name); err != nil {
		return err
	}
	c.undo = append(c.undo, func() error { _, err := c.kubectl("delete", "node", name); return err })
	_, err := c.kubectl("patch", "node", name, "--subresource=status",
		`--patch={"status":{"conditions":[{"type":"Ready","status":"True","reason":"Lab","message":"lab"}]}}`)
	return err
}

// caHash is what a join pins.
func (c *cluster) caHash() (string, error) {
	certificate, err := readPEM(c.path("etc/kubernetes/pki/ca.crt"))
	if err != nil {
		return "", err
	}
	ca, err := x509.ParseCertificate(certificate)
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(ca.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(sum[:]), nil
}

func readPEM(path string) ([]byte, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	block, _ := pem.Decode(text)
	if block == nil {
		return nil, fmt.Errorf("%s has no PEM block", path)
	}
	return block.Bytes, nil
}

// serving says which certificate the API server is to show.
type serving struct {
	notBefore, notAfter time.Time
	strangeCA           bool // signed by another CA of the same name
}

// reserve gives the API server another certificate and restarts it.
func (c *cluster) reserve(s serving) error {
	for _, name := range []string{"etc/kubernetes/pki/apiserver.crt", "etc/kubernetes/pki/apiserver.key"} {
		text, err := os.ReadFile(c.path(name))
		if err != nil {
			return err
		}
		c.undo = append(c.undo, func() error { return c.write(name, string(text), 0o600) })
	}
	c.undo = slices.Insert(c.undo, 0, func() error { return c.restart("kube-apiserver") }) // undone last
	certificate, err := readPEM(c.path("etc/kubernetes/pki/ca.crt"))
	if err != nil {
		return err
	}
	ca, err := x509.ParseCertificate(certificate)
	if err != nil {
		return err
	}
	var signer any
	if s.strangeCA {
		signer, err = rsa.GenerateKey(rand.Reader, 2048)
		if err != nil {
			return err
		}
	} else {
		key, err := readPEM(c.path("etc/kubernetes/pki/ca.key"))
		if err != nil {
			return err
		}
		if signer, err = x509.ParsePKCS1PrivateKey(key); err != nil {
			return err
		}
	}
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return err
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()),
		Subject:      pkix.Name{CommonName: "kube-apiserver"},
		NotBefore:    s.notBefore, NotAfter: s.notAfter,
		KeyUsage:    x509.KeyUsageDigitalSignature,
		ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth},
		DNSNames:    []string{c.name, "kubernetes", "kubernetes.default", "kubernetes.default.svc", "kubernetes.default.svc.cluster.local"},
		IPAddresses: []net.IP{net.ParseIP(c.address), net.ParseIP("10.96.0.1")},
	}
	parent := *ca
	if s.strangeCA {
		parent.PublicKey, parent.SubjectKeyId = nil, nil
	}
	made, err := x509.CreateCertificate(rand.Reader, template, &parent, &key.PublicKey, signer)
	if err != nil {
		return err
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return err
	}
	text := func(kind string, bytes []byte) string {
		return string(pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: bytes}))
	}
	if err := c.write("etc/kubernetes/pki/apiserver.crt", text("CERTIFICATE", made), 0o644); err != nil {
		return err
	}
	if err := c.write("etc/kubernetes/pki/apiserver.key", text("PRIVATE KEY", der), 0o600); err != nil {
		return err
	}
	return c.restart("kube-apiserver")
}

// restart ends the pod and waits until the API answers again, with whatever
// certificate.
func (c *cluster) restart(pod string) error {
	c.kubelet.restart(pod)
	return wait(func() error {
		_, err := c.kubectl("--insecure-skip-tls-verify", "get", "--raw", "/readyz")
		return err
	})
}
