// SPDX-License-Identifier: Apache-2.0

package template

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// onOwnThread runs f on a thread that ends with it. Mounts that f makes after
// privateMounts, seen by the commands it starts, end with the thread as well, also
// when the process is killed: nothing stays mounted below the cache.
func onOwnThread(f func() error) error {
	result := make(chan error)
	go func() {
		runtime.LockOSThread() // and never unlocked, which ends the thread
		result <- f()
	}()
	return <-result
}

// privateMounts gives the calling thread a mount namespace of its own.
func privateMounts() error {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return os.NewSyscallError("unshare", err)
	}
	return os.NewSyscallError("mount", unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""))
}

// copyOf returns a folder below work that shows base and can be written without
// changing it: an overlay mount, or a real copy where the kernel refuses one. Call
// it on a thread that ends, see onOwnThread.
func copyOf(ctx context.Context, tools runner, base, work string) (string, error) {
	root, upper, scratch := filepath.Join(work, "root"), filepath.Join(work, "upper"), filepath.Join(work, "scratch")
	for _, dir := range []string{root, upper, scratch} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return "", err
		}
	}
	err := privateMounts()
	if err == nil {
		options := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", base, upper, scratch)
		err = os.NewSyscallError("mount", unix.Mount("overlay", root, "overlay", 0, options))
	}
	if err == nil {
		return root, nil
	}
	fmt.Fprintf(tools.log, "cannot use an overlay of %q, copying instead: %v\n", base, err)
	return root, tools.run(ctx, "", "cp", "-a", "--reflink=auto", base+"/.", root)
}

// disabledUnits is what the template's build turns off. containerd, docker and
// docker.socket stay as Debian enables them: switching them is the agent's work.
func disabledUnits() []string {
	return []string{
		"ssh.service", "qemu-guest-agent.service",
		// These only slow the boot of a test down.
		"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
		"e2scrub_reap.service", "fstrim.timer",
	}
}

// rootPassword is "password", which is what CloudStack's template has.
const rootPassword = "$6$nodeagent$3Qb7wfTrODiaj72gAZhlx0jiZr01bY4u57UYnKXvn1n6CNnovinIgnVyxOcw.NGDos6YihFqplloGraxzb3Dm/"

// configure gives the root the state in which CloudStack's template build leaves
// it (tools/appliance/systemvmtemplate of apache/cloudstack).
func configure(ctx context.Context, tools runner, r release, gpt bool, root string) error {
	files, err := fs.Sub(sources, "rootfs")
	if err != nil {
		return err
	}
	if err := writeTree(files, root); err != nil {
		return err
	}
	if err := writeFile(filepath.Join(root, "etc/fstab"), fstab(gpt)); err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Join(root, "var/cache/cloud"), 0o755); err != nil {
		return err
	}
	chroot := []string{"chroot", root}
	for _, argv := range [][]string{
		{"groupadd", "--force", "--system", "admin"},
		{"useradd", "--uid", "1000", "--create-home", "--shell", "/bin/bash", "--comment", "Cloud User",
			"--groups", "audio,cdrom,video,admin", "cloud"},
		{"usermod", "--password", rootPassword, "root"},
		append([]string{"systemctl", "--quiet", "disable"}, slices.Concat(disabledUnits(), r.cloudInit)...),
		{"systemctl", "--quiet", "enable", "cloud-preinit", "cloud-early-config", "cloud-postinit"},
	} {
		if err := tools.run(ctx, "", append(chroot, argv...)...); err != nil {
			return err
		}
	}
	return nil
}

// install puts the package into the root and checks that it will run at boot.
func install(ctx context.Context, tools runner, root, deb string) error {
	inside := "/nodeagent.deb"
	if err := copyFile(deb, filepath.Join(root, inside)); err != nil {
		return err
	}
	if err := tools.run(ctx, "", "chroot", root, "dpkg", "--install", inside); err != nil {
		return err
	}
	if err := tools.run(ctx, "", "chroot", root, "systemctl", "is-enabled", "nodeagent.service"); err != nil {
		return fmt.Errorf("cannot use package %q: %w", deb, err)
	}
	return os.Remove(filepath.Join(root, inside))
}

// writeTree writes every file of a tree below dir, in place of what is there.
func writeTree(tree fs.FS, dir string) error {
	return fs.WalkDir(tree, ".", func(name string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		target := filepath.Join(dir, name)
		if entry.IsDir() {
			return os.MkdirAll(target, 0o755)
		}
		content, err := fs.ReadFile(tree, name)
		if err != nil {
			return err
		}
		return writeFile(target, string(content))
	})
}

func writeFile(name, content string) error {
	if err := os.Remove(name); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return os.WriteFile(name, []byte(content), 0o644)
}

// fstab is what debian-installer writes for the template's partitions.
func fstab(gpt bool) string {
	lines := []string{
		"UUID=" + rootUUID + " / ext4 errors=remount-ro 0 1",
		"UUID=" + bootUUID + " /boot ext2 defaults 0 2",
	}
	if gpt {
		lines = append(lines, "UUID="+espUUID+" /boot/efi vfat umask=0077 0 1")
	}
	lines = append(lines, "UUID="+swapUUID+" none swap sw 0 0", "")
	return strings.Join(lines, "\n")
}
