// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
)

// Export writes the image's disk to a compressed qcow2 file of its own. The file
// appears whole or not at all.
func Export(ctx context.Context, log io.Writer, image Image, file string) error {
	if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
		return fmt.Errorf("cannot write template: %w", err)
	}
	tools, partial := runner{log: log}, file+".partial"
	err := tools.run(ctx, "", "qemu-img", "convert", "-f", "qcow2", "-O", "qcow2", "-c", image.Disk, partial)
	if err == nil {
		err = os.Rename(partial, file)
	}
	if err != nil {
		return errors.Join(fmt.Errorf("cannot write template %q: %w", file, err), os.RemoveAll(partial))
	}
	return nil
}
