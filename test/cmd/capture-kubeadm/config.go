// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
)

// initConfig is a configuration file as nodeagent writes it, with time limits that
// a lab can wait for.
type initConfig struct {
	name, address, version string
	token                  string // "" is labToken
	key                    string // "" is labKey
	pull                   string // "" is Never
	api                    string // v1beta3 or v1beta4
	limit                  string // for the control plane; "" is 15 s
	extra                  string // lines for the cluster's document
}

func (c initConfig) text() string {
	limits := "timeouts:\n  controlPlaneComponentHealthCheck: " + or(c.limit, "15s") + "\n  kubeletHealthCheck: 10s\n"
	serverLimit := ""
	if c.api == "v1beta3" {
		limits, serverLimit = strictURLs, "  timeoutForControlPlane: "+or(c.limit, "15s")+"\n"
	}
	return fmt.Sprintf(`apiVersion: kubeadm.k8s.io/%[1]s
kind: InitConfiguration
bootstrapTokens:
  - token: %[2]s
    ttl: 0s
    usages: [signing, authentication]
    groups: ["system:bootstrappers:kubeadm:default-node-token"]
certificateKey: "%[3]s"
localAPIEndpoint:
  advertiseAddress: %[4]s
nodeRegistration:
  name: %[5]s
  criSocket: unix:///run/containerd/containerd.sock
  imagePullPolicy: %[6]s
%[7]s---
apiVersion: kubeadm.k8s.io/%[1]s
kind: ClusterConfiguration
kubernetesVersion: %[8]s
controlPlaneEndpoint: %[4]s:6443
apiServer:
  certSANs:
    - %[4]s
%[10]s%[9]s---
apiVersion: kubelet.config.k8s.io/v1beta1
kind: KubeletConfiguration
cgroupDriver: systemd
`, c.api, or(c.token, labToken), or(c.key, labKey), c.address, c.name,
		or(c.pull, "Never"), limits, withV(c.version), c.extra, serverLimit)
}

// strictURLs goes on in nodeRegistration: built with a Go of today, this check of an
// old kubeadm does not get over its own address.
const strictURLs = "  ignorePreflightErrors: [HTTPProxyCIDR]\n"

// joinConfig is the same for a join.
type joinConfig struct {
	api      string
	name     string
	address  string
	endpoint string // "" is the cluster's
	token    string // "" is labToken
	tlsToken string // "" is token
	hash     string // "" does not verify the CA
	control  bool
	key      string // "" is labKey
	wait     string // for discovery; "" is 15 s
	etcd     string // for calls of etcd; "" is 15 s
}

func (c joinConfig) text() string {
	verify := "unsafeSkipCAVerification: true"
	if c.hash != "" {
		verify = "caCertHashes: [\"" + c.hash + "\"]"
	}
	limits, discoveryLimit := `timeouts:
  controlPlaneComponentHealthCheck: 15s
  kubeletHealthCheck: 10s
  etcdAPICall: `+or(c.etcd, "15s")+`
  tlsBootstrap: 10s
  discovery: `+or(c.wait, "15s")+`
  kubernetesAPICall: 10s
`, ""
	if c.api == "v1beta3" {
		limits, discoveryLimit = strictURLs, "  timeout: "+or(c.wait, "15s")+"\n"
	}
	text := fmt.Sprintf(`apiVersion: kubeadm.k8s.io/%[1]s
kind: JoinConfiguration
discovery:
  bootstrapToken:
    token: %[2]s
    apiServerEndpoint: %[3]s
    %[4]s
  tlsBootstrapToken: %[5]s
%[6]snodeRegistration:
  name: %[7]s
  criSocket: unix:///run/containerd/containerd.sock
  imagePullPolicy: Never
%[8]s`, c.api, or(c.token, labToken), or(c.endpoint, clusterHost+":6443"), verify, or(c.tlsToken, or(c.token, labToken)), discoveryLimit, c.name, limits)
	if c.control {
		text += fmt.Sprintf("controlPlane:\n  certificateKey: \"%s\"\n  localAPIEndpoint:\n    advertiseAddress: %s\n", or(c.key, labKey), c.address)
	}
	return text
}

// apiOf is the newest configuration that the version of kubeadm reads.
func apiOf(version string) string {
	var major, minor int
	if _, err := fmt.Sscanf(version, "%d.%d", &major, &minor); err == nil && major == 1 && minor < 31 {
		return "v1beta3"
	}
	return "v1beta4"
}

func or(text, otherwise string) string {
	if text == "" {
		return otherwise
	}
	return text
}

func withV(version string) string { return "v" + strings.TrimPrefix(version, "v") }
