// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os/signal"
	"runtime/debug"
	"slices"
	"strings"
	"syscall"
	"unicode"
	"unicode/utf16"

	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v3"

	"nodeagent/internal/agent"
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

// run runs one command line on this machine and returns the exit code.
func run(args []string, stdout, stderr io.Writer) int {
	return runOn(host.New(), args, stdout, stderr)
}

func runOn(h *host.Host, args []string, stdout, stderr io.Writer) int {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	context.AfterFunc(ctx, stop) // a second signal ends what does not heed the first
	root := rootCommand(h)
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

// outputFlag adds -o with the formats it takes, the first of which is the default.
func outputFlag(cmd *cobra.Command, output *string, formats ...string) {
	last := len(formats) - 1
	cmd.Flags().StringVarP(output, "output", "o", formats[0], "`format`: "+strings.Join(formats[:last], ", ")+" or "+formats[last])
	completeFlag(cmd, "output", formats...)
}

// completeFlag tells shells what a flag may be; without values, that it is no file.
func completeFlag(cmd *cobra.Command, name string, values ...cobra.Completion) {
	if err := cmd.RegisterFlagCompletionFunc(name, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)); err != nil {
		panic(err) // a flag the command does not have
	}
}

// oneOf refuses a value of -o that is none of formats.
func oneOf(output string, formats ...string) error {
	if slices.Contains(formats, output) {
		return nil
	}
	last := len(formats) - 1
	return usageError{fmt.Errorf("-o %s: expected %s or %s", output, strings.Join(formats[:last], ", "), formats[last])}
}

// printJSON is how every command prints with -o json.
func printJSON(out io.Writer, value any) error {
	text, err := printableJSON(value, false)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(out, "%s\n", text)
	return err
}

// printableJSON has as an escape what a terminal would obey. YAML knows no surrogates:
// with rawAbove what is above U+FFFF stays as it is.
func printableJSON(value any, rawAbove bool) ([]byte, error) {
	text, err := json.MarshalIndent(value, "", "  ")
	if err != nil {
		return nil, err
	}
	var safe bytes.Buffer
	for _, c := range string(text) {
		if c == '\n' || unicode.IsPrint(c) || rawAbove && c > 0xffff {
			safe.WriteRune(c)
			continue
		}
		for _, unit := range utf16.AppendRune(nil, c) {
			fmt.Fprintf(&safe, `\u%04x`, unit)
		}
	}
	return safe.Bytes(), nil
}

// printYAML prints what printJSON does, in the same order, as YAML. What a terminal
// would obey is left out.
func printYAML(out io.Writer, value any) error {
	text, err := printableJSON(value, true)
	if err != nil {
		return err
	}
	var tree yaml.Node // JSON is YAML
	if err := yaml.Unmarshal(text, &tree); err != nil {
		return err
	}
	plain(&tree)
	encoder := yaml.NewEncoder(out)
	encoder.SetIndent(2)
	return errors.Join(encoder.Encode(&tree), encoder.Close())
}

// plain takes JSON's quotes and braces from a tree, where YAML can do without.
func plain(node *yaml.Node) {
	if node.Kind == yaml.ScalarNode {
		node.Value = agent.Printable(node.Value)
	}
	if node.Kind != yaml.SequenceNode && node.Kind != yaml.MappingNode || len(node.Content) > 0 {
		node.Style = 0
	}
	for _, child := range node.Content {
		plain(child)
	}
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
