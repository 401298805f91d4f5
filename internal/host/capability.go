// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Explain adds to an error what the kernel keeps to itself: which of the
// capabilities that a refused call takes (unix.CAP_SYS_ADMIN, ...) the calling thread,
// and with it this process, lacks. The error may also be one of a program that was
// refused something. Any other error, and that of a process that has them all, comes
// back as it is.
func Explain(err error, needed ...int) error {
	header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var sets [2]unix.CapUserData // of 32 capabilities each
	if err == nil || unix.Capget(&header, &sets[0]) != nil {
		return err
	}
	return explain(err, uint64(sets[1].Effective)<<32|uint64(sets[0].Effective), needed)
}

// explain is Explain for a process whose effective set is given.
func explain(err error, effective uint64, needed []int) error {
	if !isRefusal(err) {
		return err
	}
	var missing []string
	for _, capability := range needed {
		if effective&(1<<capability) == 0 {
			missing = append(missing, capabilityName(capability))
		}
	}
	if len(missing) == 0 {
		return err
	}
	return fmt.Errorf("%w: this process lacks %s", err, strings.Join(missing, " and "))
}

// explainFile is Explain for changes below a folder that may be somebody else's. What
// only the owner may do, as in a sticky folder, is EPERM.
func explainFile(err error) error {
	if errors.Is(err, unix.EPERM) {
		return Explain(err, unix.CAP_FOWNER)
	}
	return Explain(err, unix.CAP_DAC_OVERRIDE)
}

// taken are the capabilities without which a program cannot do what it is run for.
func taken(program string) []int {
	switch filepath.Base(program) {
	case "modprobe":
		return []int{unix.CAP_SYS_MODULE}
	case "passwd": // makes /etc/shadow anew and gives it its owner
		return []int{unix.CAP_CHOWN}
	case "lvm":
		return []int{unix.CAP_SYS_ADMIN}
	}
	return nil
}

// isRefusal says whether the kernel denied something, to this process or to a
// program it ran.
func isRefusal(err error) bool {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return true
	}
	failed := (*CommandError)(nil)
	return errors.As(err, &failed) && slices.ContainsFunc(failed.Tail, func(line string) bool {
		return strings.Contains(line, "Operation not permitted") || strings.Contains(line, "Permission denied") ||
			// passwd(1) says no more when it cannot write.
			strings.Contains(line, "failure while writing changes to ")
	})
}

// capabilityName is the name in linux/capability.h.
func capabilityName(capability int) string {
	names := [...]string{"CHOWN", "DAC_OVERRIDE", "DAC_READ_SEARCH", "FOWNER", "FSETID", "KILL", "SETGID", "SETUID", "SETPCAP",
		"LINUX_IMMUTABLE", "NET_BIND_SERVICE", "NET_BROADCAST", "NET_ADMIN", "NET_RAW", "IPC_LOCK", "IPC_OWNER", "SYS_MODULE",
		"SYS_RAWIO", "SYS_CHROOT", "SYS_PTRACE", "SYS_PACCT", "SYS_ADMIN", "SYS_BOOT", "SYS_NICE", "SYS_RESOURCE", "SYS_TIME",
		"SYS_TTY_CONFIG", "MKNOD", "LEASE", "AUDIT_WRITE", "AUDIT_CONTROL", "SETFCAP", "MAC_OVERRIDE", "MAC_ADMIN", "SYSLOG",
		"WAKE_ALARM", "BLOCK_SUSPEND", "AUDIT_READ", "PERFMON", "BPF", "CHECKPOINT_RESTORE"}
	if capability < 0 || capability >= len(names) {
		return fmt.Sprintf("capability %d", capability)
	}
	return "CAP_" + names[capability]
}
