// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"context"
	_ "embed"
	"encoding/base64"
	"fmt"
	"net/netip"
	"strconv"
	"time"
)

//go:embed upgrade-kubernetes.sh
var upgradeScript []byte

// upgradeLimit is how long one command of an upgrade may take; the management server
// gives it 10 minutes, on real CPUs.
const upgradeLimit = 30 * time.Minute

// Upgrade has the node of that name go to a version of Kubernetes, x.y.z, as the
// management server does after it has attached the new ISO (contract 5.4): by a script of
// its own, not by anything of nodeagent's. It blocks until the node is Ready with that
// version's kubelet, and returns what the script printed.
func (c Checks) Upgrade(ctx context.Context, name string, address netip.Addr, version string, first bool) (output string, err error) {
	run := func(address netip.Addr, command string) (string, error) {
		ctx, cancel := context.WithTimeout(ctx, upgradeLimit)
		defer cancel()
		output, err := c.Cloud.SSH(ctx, netip.AddrPortFrom(address, sshPort), nodeUser, c.Key, command)
		if err != nil {
			return output, fmt.Errorf("%s: %w", command, err)
		}
		return output, nil
	}
	if output, err = run(c.Control, "sudo /opt/bin/kubectl drain "+name+" --ignore-daemonsets --delete-emptydir-data"); err != nil {
		return output, err
	}
	// The server copies the file with scp.
	if _, err = run(address, "echo "+base64.StdEncoding.EncodeToString(upgradeScript)+" | base64 -d > upgrade-kubernetes.sh && chmod 0755 upgrade-kubernetes.sh"); err != nil {
		return "", fmt.Errorf("cannot copy the script: %w", err)
	}
	if output, err = run(address, "sudo ./upgrade-kubernetes.sh "+version+" "+strconv.FormatBool(first)+" false false 2>&1"); err != nil {
		return output, err
	}
	err = retry(ctx, c.pace(), "uncordon "+name, func() error {
		_, err := c.Run(ctx, "sudo /opt/bin/kubectl uncordon "+name)
		return err
	})
	if err != nil {
		return output, err
	}
	return output, retry(ctx, c.pace(), "see "+name+" Ready with v"+version, func() error {
		_, err := c.Run(ctx, "sudo /opt/bin/kubectl get nodes | awk '$1 == \""+name+"\" && $2 == \"Ready\" && $5 == \"v"+version+"\"' | grep -q .")
		return err
	})
}
