// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// version is set by the linker (-X main.version=...).
var version = ""

// Exit codes that are the same for all commands.
const (
	exitOK    = 0
	exitFail  = 1
	exitUsage = 64
)

// exitCode is an error that only carries the exit code of a command that has
// already said what there is to say.
type exitCode int

func (e exitCode) Error() string { return fmt.Sprintf("exit code %d", int(e)) }

// usageError is a wrong call of a command.
type usageError struct{ error }

// run runs one command line and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what does not heed the first
	root := rootCommand(host.New())
	root.SetArgs(args)
	root.SetOut(stdout)
	root.SetErr(stderr)

	err := root.ExecuteContext(ctx)
	var code exitCode
	var usage usageError
	switch {
	case err == nil:
		return exitOK
	case errors.As(err, &code):
		return int(code)
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "nodeagent: %v (see nodeagent --help)\n", err)
		return exitUsage
	}
	fmt.Fprintf(stderr, "nodeagent: %v\n", err)
	var failure *fault.Error
	if errors.As(err, &failure) {
		fmt.Fprintf(stderr, "What to do: %s\n", fault.As(err).Hint)
	}
	return exitFail
}

func rootCommand(h *host.Host) *cobra.Command {
	root := &cobra.Command{
		Use:   "nodeagent",
		Short: "Boots CloudStack system VMs and Kubernetes nodes, and says what happened",
		Example: `  nodeagent status                 what happened on this machine
  nodeagent status -o json         the same for programs
  nodeagent timeline               where the time of this boot went
  nodeagent diag                   all of it in one file, without secrets
  nodeagent plan --boot-args FILE  what a boot would do, without doing it`,
		SilenceUsage:  true,
		SilenceErrors: true,
		Args: func(_ *cobra.Command, args []string) error {
			if len(args) > 0 {
				return usageError{fmt.Errorf("unknown command %q", args[0])}
			}
			return nil
		},
		RunE: func(cmd *cobra.Command, _ []string) error {
			cmd.SetOut(cmd.ErrOrStderr())
			if err := cmd.Help(); err != nil {
				return err
			}
			return exitCode(exitUsage)
		},
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	root.AddCommand(runCommand(h), statusCommand(h), timelineCommand(h), diagCommand(h), planCommand(), growCommand(h), growpartCommand(h), isoCommand(h), upgradeCommand(h), resetCommand(h), versionCommand())
	return root
}

// noArgs refuses arguments with the exit code of wrong usage.
func noArgs(_ *cobra.Command, args []string) error {
	if len(args) > 0 {
		return usageError{fmt.Errorf("unexpected argument %q", args[0])}
	}
	return nil
}

// printJSON is how every command prints with -o json.
func printJSON(out io.Writer, value any) error {
	encoder := json.NewEncoder(out)
	encoder.SetIndent("", "  ")
	return encoder.Encode(value)
}

func versionCommand() *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Print the version",
		Args:  noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			fmt.Fprintln(cmd.OutOrStdout(), versionText())
			return nil
		},
	}
}

func versionText() string {
	text := version
	if text == "" {
		text = "development"
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		text += " " + info.GoVersion
		for _, setting := range info.Settings {
			if setting.Key == "GOARCH" {
				text += " " + setting.Value
			}
		}
	}
	return "nodeagent " + text
}
