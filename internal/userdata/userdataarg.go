// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
)

const bootArgSource = "boot arg userdata="

// decodeBootArg reads the boot arg userdata= of newer system VMs: base64 of gzip.
// It tells no metadata; as in CloudStack's own script (postinit.sh) the machine's
// name is the instance id.
func decodeBootArg(text, name string) (Userdata, error) {
	packed, err := base64.StdEncoding.Strict().DecodeString(text)
	if err != nil {
		return Userdata{}, fmt.Errorf("cannot read it as base64: %w", err)
	}
	reader, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return Userdata{}, fmt.Errorf("cannot unpack it: %w", err)
	}
	raw, err := io.ReadAll(io.LimitReader(reader, MaxUserdata+1))
	switch {
	case err != nil:
		return Userdata{}, fmt.Errorf("cannot unpack it: %w", err)
	case len(raw) > MaxUserdata:
		return Userdata{}, fmt.Errorf("it unpacks to more than %d bytes", MaxUserdata)
	case len(bytes.TrimSpace(raw)) == 0:
		return Userdata{}, errors.New("it is empty")
	}
	held := Userdata{Raw: raw, Meta: map[string]string{"instance-id": name, "local-hostname": name}, Source: bootArgSource}
	return held, checkInstanceID(held.Meta)
}
