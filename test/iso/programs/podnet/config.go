// SPDX-License-Identifier: Apache-2.0

package main

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
)

// podSubnet is the subnet of the pods on the node with that IPv4 address.
func podSubnet(node netip.Addr) netip.Prefix {
	last := node.As4()[3]
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 244, last, 0}), 24)
}

// configList is a CNI network configuration list: see the CNI specification,
// section 1, and the plugins' own pages for the keys.
type configList struct {
	CNIVersion string `json:"cniVersion"`
	Name       string `json:"name"`
	Plugins    []any  `json:"plugins"`
}

type bridgePlugin struct {
	Type        string        `json:"type"`
	Bridge      string        `json:"bridge"`
	IsGateway   bool          `json:"isGateway"`
	IPMasq      bool          `json:"ipMasq"`
	HairpinMode bool          `json:"hairpinMode"`
	IPAM        hostLocalIPAM `json:"ipam"`
}

type hostLocalIPAM struct {
	Type    string         `json:"type"`
	DataDir string         `json:"dataDir"`
	Ranges  [][]rangeEntry `json:"ranges"`
	Routes  []routeEntry   `json:"routes"`
}

type rangeEntry struct {
	Subnet netip.Prefix `json:"subnet"`
}

type routeEntry struct {
	Destination string `json:"dst"`
}

type portmapPlugin struct {
	Type         string          `json:"type"`
	Capabilities map[string]bool `json:"capabilities"`
}

// networkConfig is the configuration of a node's pod network.
func networkConfig(subnet netip.Prefix) ([]byte, error) {
	content, err := json.MarshalIndent(configList{
		CNIVersion: "1.0.0",
		Name:       "podnet",
		Plugins: []any{
			bridgePlugin{
				Type: "bridge", Bridge: "cni0", IsGateway: true, IPMasq: true, HairpinMode: true,
				IPAM: hostLocalIPAM{
					Type: "host-local",
					// In /run, so that a power cut leaves no address taken.
					DataDir: "/run/podnet",
					Ranges:  [][]rangeEntry{{{Subnet: subnet}}},
					Routes:  []routeEntry{{Destination: "0.0.0.0/0"}},
				},
			},
			portmapPlugin{Type: "portmap", Capabilities: map[string]bool{"portMappings": true}},
		},
	}, "", "  ")
	return append(content, '\n'), err
}

// writeConfig puts the configuration into dir in one step: the container
// runtime watches the folder.
func writeConfig(dir string, subnet netip.Prefix) error {
	content, err := networkConfig(subnet)
	if err != nil {
		return err
	}
	target := filepath.Join(dir, "10-podnet.conflist")
	// The runtime reads names that end in .conf, .conflist or .json only.
	temp, err := os.CreateTemp(dir, ".podnet-*.tmp")
	if err != nil {
		return fmt.Errorf("cannot write %s: %w", target, err)
	}
	_, err = temp.Write(content)
	if err = errors.Join(err, temp.Chmod(0o644), temp.Sync(), temp.Close()); err == nil {
		err = os.Rename(temp.Name(), target)
	}
	if err != nil {
		os.Remove(temp.Name())
		return fmt.Errorf("cannot write %s: %w", target, err)
	}
	return nil
}
