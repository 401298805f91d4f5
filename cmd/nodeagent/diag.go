// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"
	"golang.org/x/term"

	"nodeagent/internal/diag"
	"nodeagent/internal/host"
	"nodeagent/internal/redact"
)

// diagTimeout bounds all parts together: a machine on which all tools hang still gets
// its archive.
const diagTimeout = 3 * time.Minute

func diagCommand(h *host.Host) *cobra.Command {
	var output string
	cmd := &cobra.Command{
		Use:   "diag",
		Short: "Pack what is known about this machine, without secrets, into one file",
		Long: `Pack what is known about this machine into one tar.gz of less than 20 MB: status and
state, journals, kubelet and containerd, kubeadm's output, network, disks, versions,
the last lines of pods. Secrets are struck out: those this machine was given, in every
form they are written in, and all that looks like one. Look through it before you send
it all the same. manifest.txt in it says what each file is and what was left out.

It works while nodeagent runs, and when it does not. Without root it collects what it
may and says what is missing. The file is only for its owner to read (0600); one that is
there already is not overwritten.`,
		Example: `  nodeagent diag
  nodeagent diag -o /mnt/usb/node.tar.gz
  ssh -p 22 cloud@NODE sudo nodeagent diag -o - >node.tar.gz`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			d := &diagnosis{host: h, now: time.Now(), root: os.Geteuid() == 0, progress: func(int, int, string) {}}
			if file, ok := cmd.ErrOrStderr().(*os.File); ok && term.IsTerminal(int(file.Fd())) {
				d.progress = func(number, of int, name string) {
					if fmt.Fprint(file, "\r\x1b[K"); number > 0 {
						fmt.Fprintf(file, "%d of %d: %s", number, of, cut(name, 60))
					}
				}
			}
			if !d.root {
				fmt.Fprintln(cmd.ErrOrStderr(), "nodeagent: "+needsRoot)
			}
			if output == "-" {
				if file, ok := cmd.OutOrStdout().(*os.File); ok && term.IsTerminal(int(file.Fd())) {
					return usageError{errors.New("-o -: standard output is a terminal, which an archive is not for")}
				}
				_, err := d.write(cmd.Context(), cmd.OutOrStdout())
				return err
			}
			name := cmp.Or(output, d.name()+".tar.gz")
			ctx := cmd.Context()
			if !signal.Ignored(syscall.SIGHUP) { // not under nohup(1)
				var stop context.CancelFunc
				ctx, stop = signal.NotifyContext(ctx, syscall.SIGHUP)
				defer stop()
			}
			size, summary, err := d.writeFile(ctx, name)
			if err != nil {
				return err
			}
			fmt.Fprintf(cmd.OutOrStdout(), "%s\n%.2f MB, %d files; %d left out, manifest.txt says why\n", name, float64(size)/1e6, summary.Files, summary.LeftOut)
			return nil
		},
	}
	cmd.Flags().StringVarP(&output, "output", "o", "", "`file` to make, - for standard output (default ./nodeagent-diag-HOST-TIME.tar.gz)")
	return cmd
}

const needsRoot = "not run as root: most journals, logs and settings cannot be read and are missing (use sudo)"

// diagnosis is one run of nodeagent diag.
type diagnosis struct {
	host     *host.Host
	now      time.Time
	root     bool
	progress func(number, of int, name string) // number 0 takes it away
}

// name is what the archive is called, and the folder in it.
func (d *diagnosis) name() string {
	name := "node"
	if text, err := d.host.ReadFile("/proc/sys/kernel/hostname"); err == nil {
		name = strings.Map(func(c rune) rune {
			if 'a' <= c && c <= 'z' || 'A' <= c && c <= 'Z' || '0' <= c && c <= '9' || c == '-' {
				return c
			}
			return -1
		}, string(text))
	}
	return fmt.Sprintf("nodeagent-diag-%.63s-%s", cmp.Or(name, "node"), d.now.UTC().Format("20060102T150405Z"))
}

func (d *diagnosis) write(ctx context.Context, out io.Writer) (diag.Summary, error) {
	d.progress(1, 1, "what is secret here")
	defer d.progress(0, 0, "")
	secrets, missed, err := knownSecrets(ctx, d.host)
	if err != nil {
		return diag.Summary{}, err
	}
	parts := d.parts()
	head := fmt.Sprintf("%s on %s, role and state: status.txt", versionText(), d.name())
	if !d.root {
		head += "\n" + needsRoot
	}
	for _, file := range missed {
		head += "\nNot looked through for secrets: " + file
	}
	return diag.Write(ctx, out, parts, diag.Options{
		Folder: d.name(), Head: head, Made: d.now, Timeout: diagTimeout,
		Redact:   redact.New(secrets).Writer,
		Progress: func(number int, name string) { d.progress(number, len(parts), name) },
	})
}

// writeFile makes the archive, for its owner only. What is at that name already, a
// symbolic link too, is an error; of a failure nothing is left.
func (d *diagnosis) writeFile(ctx context.Context, name string) (size int64, summary diag.Summary, err error) {
	part := name + ".part"
	if _, err := os.Lstat(name); err == nil {
		return 0, summary, explainWrite(name, os.ErrExist)
	}
	file, err := os.OpenFile(part, os.O_WRONLY|os.O_CREATE|os.O_EXCL|unix.O_NOFOLLOW, 0o600)
	if errors.Is(err, os.ErrExist) {
		return 0, summary, explainWrite(part, err)
	}
	if err != nil {
		return 0, summary, explainWrite(name, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(explainWrite(name, err), file.Close(), os.Remove(part))
		}
	}()
	buffer := bufio.NewWriter(file)
	if summary, err = d.write(ctx, buffer); err != nil {
		return 0, summary, err
	}
	if err = errors.Join(buffer.Flush(), file.Sync()); err != nil {
		return 0, summary, err
	}
	info, err := file.Stat()
	if err != nil {
		return 0, summary, err
	}
	if err = moveTo(part, name); err != nil {
		return 0, summary, err
	}
	return info.Size(), summary, file.Close()
}

// moveTo gives a file its name unless there is one of that name.
func moveTo(part, name string) error {
	err := unix.Renameat2(unix.AT_FDCWD, part, unix.AT_FDCWD, name, unix.RENAME_NOREPLACE)
	if errors.Is(err, unix.EINVAL) || errors.Is(err, unix.ENOSYS) { // such as on NFS
		if err = os.Link(part, name); err == nil {
			err = os.Remove(part)
		}
	}
	return err
}

func explainWrite(name string, err error) error {
	switch {
	case errors.Is(err, os.ErrExist):
		return fmt.Errorf("cannot write %s: there is such a file already; name another one with -o", name)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("cannot write %s: the disk is full; name a file on another disk with -o, or have it written to your own machine: ssh NODE sudo nodeagent diag -o - >node.tar.gz", name)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("cannot write %s: the file system is read-only; name a file elsewhere with -o, such as /run/%s", name, filepath.Base(name))
	}
	return fmt.Errorf("cannot write %s: %w", name, err)
}
