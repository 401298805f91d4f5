// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"path"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
)

func isoCommand(h *host.Host) *cobra.Command {
	cmd := &cobra.Command{
		Use:   "iso",
		Short: "Check a Kubernetes binaries ISO, or write its manifest",
		Example: `  nodeagent iso check setup-v1.34.4.iso   is it complete, and of which version
  nodeagent iso manifest /tmp/iso         sha256 sums, before the ISO is made`,
		Args: noArgs,
		RunE: func(*cobra.Command, []string) error {
			return usageError{fmt.Errorf("want iso check or iso manifest")}
		},
	}
	cmd.AddCommand(isoCheckCommand(), isoManifestCommand(h))
	return cmd
}

// oneArg wants exactly one argument.
func oneArg(what string) cobra.PositionalArgs {
	return func(_ *cobra.Command, args []string) error {
		if len(args) != 1 {
			return usageError{fmt.Errorf("want one %s, got %d", what, len(args))}
		}
		return nil
	}
}

func isoCheckCommand() *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "check PATH|DEVICE",
		Short: "Say whether a binaries ISO is complete, and for which version and architecture",
		Long: `Say whether a binaries ISO is complete, and for which version and architecture of
Kubernetes. PATH is an ISO, a device that holds one, or a folder that is to become
one. All of it is read: the programs' headers, every part of every image, the
archives, the manifests; and the sha256 sum of every file, where there is a file
SHA256SUMS. Nothing is mounted, nothing of it is run, no root is needed.

Exit codes: 0 complete, 1 not complete or not readable.`,
		Example: `  nodeagent iso check setup-v1.34.4.iso
  nodeagent iso check /dev/sr0
  nodeagent iso check -o json /tmp/iso | jq -r '.problems[].message'`,
		Args: oneArg("PATH or DEVICE"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := oneOf(output, "text", "json"); err != nil {
				return err
			}
			found, err := kubeadm.InspectISO(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			if output == "json" {
				if err := printJSON(cmd.OutOrStdout(), found); err != nil {
					return err
				}
			} else {
				newScreen(cmd.OutOrStdout()).iso(found)
			}
			if !found.Complete {
				return exitCode(exitFail)
			}
			return nil
		},
	}
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

func isoManifestCommand(h *host.Host) *cobra.Command {
	return &cobra.Command{
		Use:   "manifest DIR",
		Short: "Write SHA256SUMS into a folder that is to become a binaries ISO",
		Long: `Write DIR/SHA256SUMS, the sha256 sum of every file in DIR, in place of one that is
there. Nodes then check every file of the ISO before they use it. Run it last, right
before the ISO is made; "sha256sum -c SHA256SUMS" in DIR checks the same.

A folder without k8s/ and docker/ is refused, and so is one with links in it.`,
		Example: `  nodeagent iso manifest /tmp/iso
  mkisofs -o setup-v1.34.4.iso -V CDROM -J -R -l /tmp/iso`,
		Args: oneArg("DIR"),
		RunE: func(cmd *cobra.Command, args []string) error {
			// A path below the current folder stays one below the host's root.
			folder, err := filepath.Abs(args[0])
			if err != nil {
				return err
			}
			count, bytes, err := kubeadm.WriteManifest(cmd.Context(), h, folder)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s: %s, %s\n", filepath.Join(args[0], kubeadm.SumsFile), plural(count, "file"), megabytes(bytes))
			return nil
		},
	}
}

func megabytes(bytes int64) string {
	switch {
	case bytes < 1e3:
		return fmt.Sprintf("%d B", bytes)
	case bytes < 1e6:
		return fmt.Sprintf("%d kB", bytes/1e3)
	}
	return fmt.Sprintf("%d MB", bytes/1e6)
}

// plural writes "1 file", "2 files".
func plural(count int, what string) string {
	if count != 1 {
		what += "s"
	}
	return fmt.Sprintf("%d %s", count, what)
}

// iso writes what is on a binaries ISO for people.
func (s *screen) iso(c *kubeadm.ISOContents) {
	verdict := s.paint(green, "complete")
	if !c.Complete {
		verdict = s.paint(red, "NOT COMPLETE")
	}
	fmt.Fprintf(s.out, "%s: %s\n\n", c.Path, verdict)

	s.field("Kubernetes", words(" ", orNone(c.Version, "version not known"), c.Architecture))
	label := ""
	if c.Kind != kubeadm.ISOFolder {
		label = fmt.Sprintf("label %q", c.Label)
	}
	s.field("Medium", words(", ", string(c.Kind), megabytes(c.Bytes), label))
	s.field("SHA256SUMS", manifestText(c.Manifest))
	s.field("Programs", orNone(strings.Join(c.Programs, ", "), "none"))
	for i, archive := range c.Archives {
		s.field([]string{"Archives", ""}[min(i, 1)], words(", ", archive.File, archive.Version, plural(archive.Files, "file")))
	}
	s.field("Add-ons", addOnText(c.AddOns))
	images := plural(len(c.Images), "archive")
	if len(c.MissingImages) > 0 {
		images += ", lacking " + strings.Join(c.MissingImages, ", ")
	} else if len(c.Images) > 0 {
		images += ", all that kubeadm needs"
	}
	s.field("Images", images)
	for _, image := range c.Images {
		name := orNone(strings.Join(image.Names, " "), path.Base(image.File)+": cannot be read")
		fmt.Fprintln(s.out, cut(fmt.Sprintf("  %12s%8s  %s", "", megabytes(image.Bytes), name), s.width))
	}
	s.problems("Problems", red, c.Problems)
	s.problems("Warnings", yellow, c.Warnings)
}

// field writes a name and a text, which goes on in further lines below its beginning.
func (s *screen) field(name, text string) {
	s.hanging(fmt.Sprintf("  %-12s", name), 14, text, 100)
}

func (s *screen) problems(title, colour string, problems []kubeadm.ISOProblem) {
	if len(problems) == 0 {
		return
	}
	fmt.Fprintln(s.out, "\n"+s.paint(colour, title))
	told := map[fault.Code]bool{}
	for _, problem := range problems {
		s.paragraph("  ", fmt.Sprintf("%s: %s", problem.Code, problem.Message))
	}
	for _, problem := range problems {
		if colour == red && !told[problem.Code] {
			told[problem.Code] = true
			s.paragraph("  ", "What to do: "+problem.Code.Remedy())
		}
	}
}

func manifestText(m kubeadm.ISOManifest) string {
	switch {
	case !m.Present:
		return "none: nodes will say \"not verified\""
	case m.Verified:
		return plural(m.Files, "file") + ", all as listed"
	}
	return "does not fit the files"
}

func addOnText(a kubeadm.ISOAddOns) string {
	var there []string
	for _, addOn := range []struct {
		name    string
		present bool
	}{{"network", a.Network}, {"dashboard", a.Dashboard}, {"headlamp", a.Headlamp},
		{"autoscaler", a.Autoscaler}, {"provider", a.Provider}, {"csi", a.CSI}} {
		if addOn.present {
			there = append(there, addOn.name)
		}
	}
	return orNone(strings.Join(there, ", "), "none")
}

func orNone(text, none string) string {
	if text == "" {
		return none
	}
	return text
}

// words joins those that are not empty.
func words(between string, texts ...string) string {
	var all []string
	for _, text := range texts {
		if text != "" {
			all = append(all, text)
		}
	}
	return strings.Join(all, between)
}
