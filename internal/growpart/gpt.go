// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"io"

	"nodeagent/internal/fault"
)

func readGPT(disk io.ReaderAt, sectorSize int, sectors int64) (table, error) {
	return nil, fault.New(fault.DiskUnsupported, "the disk has a GPT, which cannot be grown yet")
}
