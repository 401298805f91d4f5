// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"errors"
	"io"
	"io/fs"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// configFile is where an operator overrides what nodeagent does by itself. It
// need not exist.
const configFile = "/etc/nodeagent/nodeagent.yaml"

// config is the content of configFile.
type config struct {
	// RootDiskSize is how much of the root disk is used, in GiB; 0 is all of it.
	// The boot arg rootdisksize= comes before it.
	RootDiskSize int64 `yaml:"rootDiskSize"`
}

// readConfig reads configFile. A key it does not know is an error, since a typing
// error would otherwise have no effect and no message.
func readConfig(h *host.Host) (config, error) {
	var c config
	data, err := h.ReadFile(configFile)
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return c, fault.Wrap(fault.ConfigInvalid, err, "cannot read %s", configFile)
	}
	decoder := yaml.NewDecoder(bytes.NewReader(data))
	decoder.KnownFields(true)
	if err := decoder.Decode(&c); err != nil && !errors.Is(err, io.EOF) {
		return config{}, fault.Wrap(fault.ConfigInvalid, err, "cannot read %s", configFile)
	}
	const max = 1 << 20 // a PiB
	if c.RootDiskSize < 0 || c.RootDiskSize > max {
		return config{}, fault.New(fault.ConfigInvalid, "%s: rootDiskSize is %d; expected a number of GiB from 1 to %d, or 0 for the whole disk",
			configFile, c.RootDiskSize, max)
	}
	return c, nil
}
