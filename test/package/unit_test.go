// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// maxExposure is what `systemd-analyze security` may say, in tenths. 10.0 is a unit
// without any bounds; what is left is root, the capabilities the unit names, and the
// machine's own files, mounts and network.
const maxExposure = "57"

func unitFile(t *testing.T) string { return filepath.Join(source(t), "systemd/nodeagent.service") }

func TestUnitIsHardened(t *testing.T) {
	t.Parallel()
	// It ends with an error above the threshold.
	output, err := exec.Command("systemd-analyze", "security", "--no-pager", "--offline=true", "--threshold="+maxExposure, unitFile(t)).CombinedOutput()
	if err != nil {
		t.Errorf("systemd-analyze security: %v\n%s", err, output)
	}
}

func TestUnitIsUnderstood(t *testing.T) {
	t.Parallel()
	output, _ := exec.Command("systemd-analyze", "verify", "--man=no", "--recursive-errors=no", unitFile(t)).CombinedOutput()
	for line := range strings.Lines(string(output)) {
		if !strings.Contains(line, "/usr/bin/nodeagent is not executable") { // it is not installed here
			t.Errorf("systemd-analyze verify: %s", line)
		}
	}
}

// Mounts that are made or undone in a mount namespace of the unit's own do not
// reach the machine: the binaries ISO, and what `kubeadm reset` unmounts. The other
// options here would take the machine's network, users or devices away.
func TestUnitSharesTheMachinesMounts(t *testing.T) {
	t.Parallel()
	private := []string{"PrivateTmp", "PrivateDevices", "PrivateMounts", "PrivateNetwork", "PrivateUsers", "PrivateIPC", "MountFlags", "MountAPIVFS",
		"ProtectSystem", "ProtectHome", "ProtectHostname", "ProtectClock", "ProtectKernelTunables", "ProtectKernelModules", "ProtectKernelLogs",
		"ProtectControlGroups", "ProtectProc", "ProcSubset", "ReadWritePaths", "ReadOnlyPaths", "InaccessiblePaths", "ExecPaths", "NoExecPaths",
		"TemporaryFileSystem", "BindPaths", "BindReadOnlyPaths", "RootDirectory", "RootImage", "MountImages", "ExtensionImages", "ExtensionDirectories",
		"DynamicUser", "NetworkNamespacePath", "IPCNamespacePath", "LogNamespace", "LoadCredential", "SetCredential", "DeviceAllow", "DevicePolicy"}
	for line := range strings.Lines(read(t, unitFile(t))) {
		name, _, _ := strings.Cut(strings.TrimSpace(line), "=")
		for _, forbidden := range private {
			if name == forbidden {
				t.Errorf("nodeagent.service has %s", strings.TrimSpace(line))
			}
		}
	}
}

// Whoever reads the unit learns what each capability is for.
func TestUnitGivesReasonsForCapabilities(t *testing.T) {
	t.Parallel()
	before, count := "", 0
	for line := range strings.Lines(read(t, unitFile(t))) {
		if value, found := strings.CutPrefix(strings.TrimSpace(line), "CapabilityBoundingSet="); found && value != "" {
			count++
			if !strings.HasPrefix(before, "# ") {
				t.Errorf("no reason for %s", value)
			}
		}
		before = line
	}
	if count == 0 {
		t.Error("the unit's capabilities have no bounds")
	}
}
