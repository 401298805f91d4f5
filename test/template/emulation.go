// SPDX-License-Identifier: Apache-2.0

package template

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

const (
	// emulator is how Debian's package qemu-user-static tells the kernel about programs
	// for arm64, in the form of binfmt.d(5).
	emulator = "/usr/lib/binfmt.d/qemu-aarch64.conf"
	// ourHandler is the name of a handler that a build registered; Debian's has another.
	ourHandler    = "nodeagent-aarch64"
	debianHandler = "qemu-aarch64"
)

// emulated runs a build that starts programs of an architecture. Where the machine
// cannot, it has the kernel start them in QEMU until build has returned. Handlers are
// the kernel's, the same in every mount namespace, so one that is there is used and
// only our own is removed. A second build waits for the first.
func emulated(arch architecture, build func() error) error {
	if arch.name == runtime.GOARCH {
		return build()
	}
	fail := func(err error) error { return fmt.Errorf("cannot run programs of %s: %w", arch.name, err) }
	file, err := os.Open(emulator)
	if err != nil {
		return fail(fmt.Errorf("package qemu-user-static: %w", err))
	}
	defer file.Close()
	if err := unix.Flock(int(file.Fd()), unix.LOCK_EX); err != nil {
		return fail(fmt.Errorf("cannot lock %q: %w", emulator, err))
	}
	description, err := io.ReadAll(file)
	if err != nil {
		return fail(err)
	}
	dir, err := os.MkdirTemp("", "binfmt-")
	if err != nil {
		return fail(err)
	}
	defer os.Remove(dir)
	return onOwnThread(func() error {
		// Whether the machine has it mounted or not: a handler ends with the last mount.
		err := privateMounts()
		if err == nil {
			err = os.NewSyscallError("mount binfmt_misc", unix.Mount("binfmt_misc", dir, "binfmt_misc", 0, ""))
		}
		if err == nil {
			err = register(dir, string(description))
		}
		if err != nil {
			return fail(err)
		}
		return errors.Join(build(), unregister(dir))
	})
}

// register adds our handler in place of one that a killed build left, unless Debian's
// is there and will do.
func register(dir, description string) error {
	state, err := os.ReadFile(filepath.Join(dir, debianHandler))
	if err == nil && usableHandler(string(state)) {
		return nil
	}
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	line, err := handlerLine(description)
	if err != nil {
		return fmt.Errorf("cannot use %q: %w", emulator, err)
	}
	if err := unregister(dir); err != nil {
		return err
	}
	return writeTo(filepath.Join(dir, "register"), line)
}

func unregister(dir string) error {
	err := writeTo(filepath.Join(dir, ourHandler), "-1")
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// writeTo writes into a file of the kernel's; one that is not there is not made.
func writeTo(name, text string) error {
	file, err := os.OpenFile(name, os.O_WRONLY, 0)
	if err != nil {
		return err
	}
	_, err = file.WriteString(text)
	return errors.Join(err, file.Close())
}

// usableHandler tells of a handler's state, as the kernel shows it, whether it works
// in a chroot that does not have the emulator: flag F has it opened beforehand.
func usableHandler(state string) bool {
	enabled, fixed := false, false
	for line := range strings.Lines(state) {
		line = strings.TrimSpace(line)
		flags, found := strings.CutPrefix(line, "flags: ")
		enabled = enabled || line == "enabled"
		fixed = fixed || found && strings.Contains(flags, "F")
	}
	return enabled && fixed
}

// handlerLine is Debian's description with our name: what the kernel's file register
// takes.
func handlerLine(description string) (string, error) {
	rest, found := strings.CutPrefix(strings.TrimSpace(description), ":"+debianHandler+":M:")
	if !found || strings.Contains(rest, "\n") {
		return "", fmt.Errorf("it is not one handler with the name %s and a magic number", debianHandler)
	}
	if flags := rest[strings.LastIndex(rest, ":")+1:]; !strings.Contains(flags, "F") {
		return "", fmt.Errorf("flags %q: they lack F, so a chroot would need the emulator in it", flags)
	}
	return ":" + ourHandler + ":M:" + rest, nil
}
