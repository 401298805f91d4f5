// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"

	"github.com/spf13/cobra"

	"nodeagent/internal/growpart"
	"nodeagent/internal/host"
)

func growCommand(h *host.Host) *cobra.Command {
	var options growpart.Options
	cmd := &cobra.Command{
		Use:   "grow [--dry-run] [MOUNTPOINT]",
		Short: "Grow the partition and the file system of a mount point, online",
		Example: `  nodeagent grow --dry-run   what would happen to /
  nodeagent grow             do it`,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 1 {
				return usageError{fmt.Errorf("unexpected argument %q", args[1])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, args []string) error {
			mountPoint := "/"
			if len(args) == 1 {
				mountPoint = args[0]
			}
			result, err := growpart.Grow(cmd.Context(), h, mountPoint, options)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n", mountPoint, result.Note)
			if result.Warning != nil {
				fmt.Fprintf(cmd.ErrOrStderr(), "nodeagent: %v\n", result.Warning)
			}
			return nil
		},
	}
	cmd.Flags().BoolVar(&options.DryRun, "dry-run", false, "say what would be done, write nothing")
	return cmd
}
