// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"nodeagent/internal/fault"
	"nodeagent/internal/growpart"
	"nodeagent/internal/host"
)

// The interface of cloud-guest-utils' growpart: arguments, exit codes, and the
// lines on standard output. cloud-init, and scripts older than it, rely on them.
// docs/growpart.md says where it differs.
const (
	growpartName     = "growpart"
	growpartChanged  = 0
	growpartNoChange = 1
	growpartFailed   = 2
)

// commandLine returns the arguments of a call. Through a link with the name
// growpart the program is that command.
func commandLine(argv []string) []string {
	if len(argv) == 0 {
		return nil
	}
	if filepath.Base(argv[0]) == growpartName {
		return append([]string{growpartName}, argv[1:]...)
	}
	return argv[1:]
}

func growpartCommand(h *host.Host) *cobra.Command {
	cmd := &cobra.Command{
		Use:                growpartName + " [OPTIONS] DISK PARTITION-NUMBER",
		Short:              "Grow a partition of a disk or image, as cloud-guest-utils' growpart does",
		DisableFlagParsing: true, // -N=1 or --fudge=1 are not of the interface
		RunE: func(cmd *cobra.Command, args []string) error {
			if code := runGrowpart(cmd.Context(), h, args, os.Getenv("GROWPART_FUDGE"), cmd.OutOrStdout(), cmd.ErrOrStderr()); code != exitOK {
				return exitCode(code)
			}
			return nil
		},
	}
	cmd.SetHelpFunc(func(cmd *cobra.Command, _ []string) { fmt.Fprint(cmd.OutOrStdout(), growpartHelp()) })
	return cmd
}

// growpartHelp is the text of --help. cloud-init takes a growpart for usable only
// if it finds --update followed by a blank in there.
func growpartHelp() string {
	return `Usage: growpart [OPTIONS] DISK PARTITION-NUMBER

Grows a partition of a disk, or of an image file, up to the next partition or the
end of the disk. The file system in it is not touched.

Options:
  -h, --help              show this text
      --free-percent F    leave F percent of the disk unused (1 to 99)
      --fudge F           do nothing for a gain of less than F bytes
                          (default: ` + strconv.Itoa(growpart.MinGain) + `, or GROWPART_FUDGE)
  -N, --dry-run           only say what would be done
  -v, --verbose           say more on standard error
  -u, --update R          tell the kernel the partition's new size:
                            auto   where it has the partition (default)
                            on     fail where it does not have it
                            force  the same as on
                            off    never

Standard output has one line: CHANGED (with --dry-run: CHANGE), NOCHANGE or FAILED.
Exit codes: 0 changed, 1 nothing to do, 2 error.

Examples:
  growpart /dev/sda 1                      grow partition 1
  growpart --free-percent=10 /dev/sda 1    leave a tenth of the disk unused
  growpart -N disk.img 3                   what would happen in an image
`
}

// growpartCall is a call of growpart.
type growpartCall struct {
	disk, number string
	options      growpart.PartitionOptions
	help         bool
	verbose      bool
}

// parseGrowpart reads the arguments in their order, as the original does. A
// usageError is one that shows the usage.
func parseGrowpart(args []string, fudge string) (growpartCall, error) {
	var c growpartCall
	if fudge == "" {
		fudge = strconv.Itoa(growpart.MinGain)
	}
	for names := true; len(args) > 0; {
		arg := args[0]
		args = args[1:]
		name, value, inline := strings.Cut(arg, "=")
		if name != "--free-percent" && name != "--update" {
			name, inline = arg, false
		}
		// next returns the value of an option, "" where there is none.
		next := func() string {
			if !inline {
				value = ""
				if len(args) > 0 {
					value, args = args[0], args[1:]
				}
			}
			return value
		}
		switch {
		case !names || !strings.HasPrefix(arg, "-"):
			switch {
			case c.disk == "":
				c.disk = arg
			case c.number == "":
				c.number = arg
			default:
				return c, fmt.Errorf("confused by arg %s", arg)
			}
		case name == "-h" || name == "--help":
			c.help = true
			return c, nil
		case name == "--free-percent":
			percent, err := strconv.Atoi(next())
			if err != nil || percent < 1 || percent > 99 {
				return c, fmt.Errorf("unknown/invalid --free-percent option: %s", value)
			}
			c.options.FreePercent = percent
		case name == "--fudge":
			fudge = next()
		case name == "-N" || name == "--dry-run":
			c.options.DryRun = true
		case name == "-v" || name == "--verbose":
			c.verbose = true
		case name == "-u" || name == "--update":
			switch next() {
			case "auto":
				c.options.Kernel = growpart.UpdateKnown
			case "on", "force":
				c.options.Kernel = growpart.UpdateRequired
			case "off":
				c.options.Kernel = growpart.UpdateNone
			default:
				return c, fmt.Errorf("unknown --update option: %s", value)
			}
		case name == "--":
			names = false
		default:
			return c, fmt.Errorf("unknown option %s", arg)
		}
	}
	switch {
	case c.disk == "":
		return c, usageError{errors.New("must supply disk and partition-number")}
	case c.number == "":
		return c, usageError{errors.New("must supply partition-number")}
	}
	var err error
	if c.options.MinGain, err = strconv.ParseInt(fudge, 0, 64); err != nil || c.options.MinGain < 0 {
		return c, fmt.Errorf("unknown/invalid --fudge option: %s", fudge)
	}
	return c, nil
}

// runGrowpart runs growpart and returns its exit code.
func runGrowpart(ctx context.Context, h *host.Host, args []string, fudge string, stdout, stderr io.Writer) int {
	failed := func(text string) int {
		fmt.Fprintln(stdout, "FAILED:", text)
		return growpartFailed
	}
	call, err := parseGrowpart(args, fudge)
	var usage usageError
	switch {
	case errors.As(err, &usage):
		fmt.Fprintf(stderr, "%s%v\n", growpartHelp(), err)
		return growpartFailed
	case err != nil:
		return failed(err.Error())
	case call.help:
		fmt.Fprint(stdout, growpartHelp())
		return exitOK
	}
	if _, err := os.Stat(call.disk); errors.Is(err, fs.ErrNotExist) {
		return failed(call.disk + ": does not exist")
	}
	if strings.Trim(call.number, "0123456789") != "" {
		return failed("partition-number must be a number")
	}

	result, err := growpart.GrowPartition(ctx, h, call.disk, call.number, call.options)
	if err != nil && !result.Changed {
		return failed(faultText(err))
	}
	// Scripts read both streams as one and look at its beginning.
	line, code := call.outcome(result)
	fmt.Fprintln(stdout, line)
	call.explain(stderr, result)
	if err != nil {
		return failed(faultText(err))
	}
	return code
}

// faultText is an error in a line, with what to do.
func faultText(err error) string {
	cause := fault.As(err)
	return cause.Message + ". " + cause.Hint
}

// explain says on standard error what the line on standard output does not.
func (c growpartCall) explain(stderr io.Writer, r growpart.PartitionResult) {
	if c.verbose || c.options.DryRun && r.Changed {
		fmt.Fprintf(stderr, "# %d sectors of %d bytes\n# === old partitions ===\n%s\n", r.Sectors, r.SectorSize, strings.Join(r.Old, "\n"))
		if r.Changed {
			fmt.Fprintf(stderr, "# === new partitions ===\n%s\n", strings.Join(r.New, "\n"))
		}
		for _, step := range r.Steps {
			fmt.Fprintln(stderr, "#", step)
		}
	}
	if r.Repaired != "" {
		verb := "repaired"
		if c.options.DryRun {
			verb = "would repair"
		}
		fmt.Fprintln(stderr, verb, r.Repaired)
	}
	if r.Warning != nil {
		fmt.Fprintln(stderr, "WARNING:", r.Warning)
	}
}

// outcome returns the line for standard output and the exit code.
func (c growpartCall) outcome(r growpart.PartitionResult) (line string, code int) {
	end := r.Start + r.Before // sector after the last one
	if r.Changed {
		word := "CHANGED"
		if c.options.DryRun {
			word = "CHANGE"
		}
		return fmt.Sprintf("%s: partition=%s start=%d old: size=%d end=%d new: size=%d end=%d",
			word, c.number, r.Start, r.Before, end-1, r.After, r.Start+r.After-1), growpartChanged
	}
	percent := c.options.FreePercent
	switch {
	case percent > 0 && r.Limit < end:
		line = fmt.Sprintf("partition %s could not be grown while leaving %d%% (%d sectors) free on device",
			c.number, percent, r.Sectors/100*int64(percent))
	case r.Limit == end:
		line = fmt.Sprintf("partition %s is size %d. it cannot be grown", c.number, r.Before)
	default:
		line = fmt.Sprintf("partition %s could only be grown by %d [fudge=%d]",
			c.number, r.Limit-end, c.options.MinGain/int64(r.SectorSize))
	}
	return "NOCHANGE: " + line, growpartNoChange
}
