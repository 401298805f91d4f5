// SPDX-License-Identifier: Apache-2.0

package host

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Explain adds to an error what the kernel keeps to itself: which of the
// capabilities that a refused call takes (unix.CAP_SYS_ADMIN, ...) this process
// lacks. The error may also be one of a program that was refused something. Any
// other error, and that of a process that has them all, comes back as it is. It
// reads /proc/self/status.
func Explain(err error, needed ...int) error {
	if !isRefusal(err) {
		return err
	}
	status, readErr := os.ReadFile("/proc/self/status")
	if readErr != nil {
		return err
	}
	return explain(err, string(status), needed)
}

// explain is Explain for a process whose proc_pid_status(5) is given.
func explain(err error, status string, needed []int) error {
	effective, ok := effectiveCapabilities(status)
	if !ok || !isRefusal(err) {
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

// isRefusal says whether the kernel denied something, to this process or to a
// program it ran.
func isRefusal(err error) bool {
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
		return true
	}
	failed := (*CommandError)(nil)
	return errors.As(err, &failed) && slices.ContainsFunc(failed.Tail, func(line string) bool {
		return strings.Contains(line, "Operation not permitted") || strings.Contains(line, "Permission denied")
	})
}

func effectiveCapabilities(status string) (set uint64, ok bool) {
	for line := range strings.Lines(status) {
		if text, found := strings.CutPrefix(line, "CapEff:"); found {
			set, err := strconv.ParseUint(strings.TrimSpace(text), 16, 64)
			return set, err == nil
		}
	}
	return 0, false
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
