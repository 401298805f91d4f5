// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"time"

	"nodeagent/internal/host"
)

const (
	fwCfg     = "/sys/firmware/qemu_fw_cfg"
	fwCfgFile = fwCfg + "/by_name/opt/cloudstack/cmdline/raw"
)

// readFWCfg returns the boot args a KVM host has put into QEMU's firmware
// configuration.
func readFWCfg(ctx context.Context, h *host.Host) (string, error) {
	if !h.Exists(fwCfg) {
		ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
		defer cancel()
		// Without the module there is no fw_cfg; on other machines there is no module.
		_, _ = h.Run.Run(ctx, host.Command{Path: "/sbin/modprobe", Args: []string{"qemu_fw_cfg"}})
	}
	data, err := h.ReadFile(fwCfgFile)
	if errors.Is(err, fs.ErrNotExist) {
		return "", errors.New("no item opt/cloudstack/cmdline")
	}
	if err != nil {
		return "", err
	}
	text := decodeFWCfg(string(data))
	if blank(text) {
		return "", fmt.Errorf("%s is empty", fwCfgFile)
	}
	return text, nil
}

// decodeFWCfg undoes base64: whoever passes the text on QEMU's command line, as
// CloudStack's Proxmox extension does, may not have spaces and commas in it.
func decodeFWCfg(text string) string {
	if fromCloudStack(text) {
		return text
	}
	decoded, err := base64.StdEncoding.DecodeString(strings.Trim(text, blanks))
	if err != nil || !fromCloudStack(string(decoded)) {
		return text
	}
	return string(decoded)
}
