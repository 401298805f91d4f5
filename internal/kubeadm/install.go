// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"crypto/sha256"
	"debug/elf"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"golang.org/x/sync/errgroup"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	kubeletUnit     = "kubelet.service"
	kubeletDefaults = "/etc/default/kubelet"
	bashrc          = "/root/.bashrc"
	// reloadPending outlives a kill between writing a unit file and telling
	// systemd, but not a reboot, which makes systemd read it anyway.
	reloadPending = "/run/nodeagent/reload-pending"
)

// Install copies the ISO's programs, units and manifests to where CloudStack's
// scripts expect them and enables the kubelet without starting it: kubeadm does
// that (pain-point K13). Content that is there already is not written again, and
// systemd is told to reload only when a unit file changed (S5). Where the ISO has a
// manifest nothing takes effect that is not what it lists. It reports whether anything
// changed. Errors are fault.ISOInvalid, ISOChecksum, ISOUnreadable, ISOStalled or
// ISOChanged, where the ISO is to blame, and fault.InstallFailed; all problems at once.
func Install(ctx context.Context, h *host.Host, bundle *Bundle) (changed bool, err error) {
	files, err := bundle.open(ctx, h)
	if err != nil {
		return false, withCode(fault.InstallFailed, err, "cannot read the binaries ISO")
	}
	defer files.Close()

	tasks := []func() (bool, error){
		func() (bool, error) { return installProgram(h, files, "k8s/kubeadm", Kubeadm) },
		func() (bool, error) { return installProgram(h, files, "k8s/kubectl", Kubectl) },
		func() (bool, error) { return installProgram(h, files, "k8s/kubelet", binFolder+"/kubelet") },
		func() (bool, error) { return installArchive(h, files, "cni/cni-plugins-*.tgz", cniFolder) },
		func() (bool, error) { return installArchive(h, files, "cri-tools/crictl-linux-*.tar.gz", binFolder) },
		func() (bool, error) { return installManifests(h, files) },
		func() (bool, error) { return installSettings(h) },
		func() (bool, error) { return installUnits(ctx, h, files) },
	}
	// Some tasks wait for the drive, others for the processor.
	var group errgroup.Group
	group.SetLimit(2)
	changes := make([]bool, len(tasks))
	problems := make([]error, len(tasks))
	for i, task := range tasks {
		group.Go(func() error {
			if problems[i] = ctx.Err(); problems[i] == nil {
				changes[i], problems[i] = task()
			}
			return nil
		})
	}
	_ = group.Wait() // the tasks' errors are in problems
	for _, change := range changes {
		changed = changed || change
	}
	if err = errors.Join(problems...); err != nil {
		err = fault.Join(fault.InstallFailed, problems)
	}
	return changed, bundle.checkMedium(ctx, h, err)
}

// installProgram copies a program of the ISO, after a look at whether this
// machine can run it.
func installProgram(h *host.Host, files *isoFiles, name, target string) (changed bool, err error) {
	file, err := files.Open(name)
	if err != nil {
		return false, fmt.Errorf("cannot install %s: %w", target, err)
	}
	defer file.Close()
	head := make([]byte, 64)
	n, err := io.ReadFull(file, head)
	if err != nil && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fmt.Errorf("cannot install %s: %w", target, err)
	}
	head = head[:n]
	if err := checkProgram(head, runtime.GOARCH); err != nil {
		return false, fault.Wrap(fault.ISOInvalid, err, "cannot use %s of the binaries ISO", name)
	}
	same, err := sameContent(h, files, name, target)
	if same || err != nil {
		return false, err
	}
	return true, h.WriteFrom(target, io.MultiReader(bytes.NewReader(head), file), 0o755)
}

// checkProgram says when a program that begins with head is not one of architecture
// arch.
func checkProgram(head []byte, arch string) error {
	built, err := programArch(head)
	if err == nil && built != arch {
		err = fmt.Errorf("it is built for %s, this machine is %s", built, arch)
	}
	return err
}

// programArch reads the architecture, by Go's name, from an ELF header.
func programArch(head []byte) (string, error) {
	if len(head) < 20 || string(head[:4]) != elf.ELFMAG {
		return "", fmt.Errorf("it is no program: it begins with %q", head[:min(len(head), 16)])
	}
	switch machine := elf.Machine(uint16(head[18]) | uint16(head[19])<<8); machine {
	case elf.EM_X86_64:
		return "amd64", nil
	case elf.EM_AARCH64:
		return "arm64", nil
	default:
		return machine.String(), nil
	}
}

// sameContent compares a file of the ISO with an installed program; where the
// manifest has the file's sum the ISO need not be read.
func sameContent(h *host.Host, files *isoFiles, name, target string) (bool, error) {
	info, err := os.Lstat(h.Path(target))
	if err != nil || info.Mode() != 0o755 {
		return false, nil
	}
	want, err := files.Stat(name)
	if err != nil || info.Size() != want.Size() {
		return false, err
	}
	installed, err := os.Open(h.Path(target))
	if err != nil {
		return false, err
	}
	defer installed.Close()
	if listed, ok := files.sums[name]; ok {
		hash := sha256.New()
		_, err := io.Copy(hash, installed)
		return sum(hash.Sum(nil)) == listed, err
	}
	source, err := files.Open(name)
	if err != nil {
		return false, err
	}
	defer source.Close()
	return sameBytes(installed, source)
}

func sameBytes(a, b io.Reader) (bool, error) {
	left, right := make([]byte, 256<<10), make([]byte, 256<<10)
	for {
		n, errA := io.ReadFull(a, left)
		m, errB := io.ReadFull(b, right)
		if n != m || !bytes.Equal(left[:n], right[:m]) {
			return false, nil
		}
		for _, err := range []error{errA, errB} {
			if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
				return false, err
			}
		}
		if errA != nil || errB != nil {
			return errA != nil && errB != nil, nil
		}
	}
}

// archivesFor returns the archives whose names match pattern, of an ISO for several
// architectures this machine's.
func archivesFor(files *isoFiles, pattern string) ([]string, error) {
	names, err := matching(files, pattern)
	if len(names) > 1 {
		names = slices.DeleteFunc(names, func(name string) bool { return !strings.Contains(name, runtime.GOARCH) })
	}
	return names, err
}

// installArchive unpacks the archives whose names match pattern.
func installArchive(h *host.Host, files *isoFiles, pattern, folder string) (changed bool, err error) {
	names, err := archivesFor(files, pattern)
	if err != nil {
		return false, err
	}
	for _, name := range names {
		// Its files go to their places while it is read: so it is read twice, the
		// second time out of the kernel's memory, and looked at both times.
		if err := files.verify(name); err != nil {
			return changed, fmt.Errorf("cannot install %s: %w", name, err)
		}
		file, err := files.Open(name)
		if err != nil {
			return changed, fmt.Errorf("cannot install %s: %w", name, err)
		}
		var failed error // of writing, which is not the ISO's fault
		err = untar(file, func(entry string, mode fs.FileMode, content []byte) error {
			var wrote bool
			wrote, failed = h.WriteFile(path.Join(folder, entry), content, mode|0o600)
			changed = changed || wrote
			return failed
		})
		if err == nil {
			_, err = io.Copy(io.Discard, file)
		}
		file.Close()
		if failed != nil {
			return changed, failed
		}
		if err != nil {
			return changed, withCode(fault.ISOInvalid, err, "cannot use %s of the binaries ISO", name)
		}
	}
	return changed, nil
}

// manifestCopies is where CloudStack's scripts look for manifests of the ISO,
// beside the copies in Manifests.
var manifestCopies = map[string]string{
	"autoscaler.yaml":    "/opt/autoscaler/autoscaler_tmpl.yaml",
	"provider.yaml":      "/opt/provider/provider.yaml",
	"snapshot-crds.yaml": "/opt/csi/snapshot-crds.yaml",
	"manifest.yaml":      "/opt/csi/manifest.yaml",
}

// installManifests keeps the ISO's manifests on disk: the ISO may be gone when
// they are applied, and /tmp does not survive a reboot (pain-point C17).
func installManifests(h *host.Host, files *isoFiles) (changed bool, err error) {
	names, err := matching(files, "*.yaml")
	if err != nil {
		return false, err
	}
	var problems []error
	for _, name := range names {
		content, err := readSmall(files, name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		targets := []string{path.Join(Manifests, name)}
		if copied, ok := manifestCopies[name]; ok {
			targets = append(targets, copied)
		}
		for _, target := range targets {
			wrote, err := h.WriteFile(target, content, 0o644)
			changed = changed || wrote
			if err != nil {
				return changed, err
			}
		}
	}
	if len(problems) > 0 {
		return changed, fault.Join(fault.InstallFailed, problems)
	}
	return changed, nil
}

func readSmall(files *isoFiles, name string) ([]byte, error) {
	content, err := readBounded(files, name, host.MaxFile)
	if err != nil {
		return nil, withCode(fault.InstallFailed, err, "cannot use %s of the binaries ISO", name)
	}
	return content, nil
}

// installUnits installs the kubelet's unit and enables it.
func installUnits(ctx context.Context, h *host.Host, files *isoFiles) (changed bool, err error) {
	contents := map[string][]byte{}
	var problems []error
	for name, target := range map[string]string{
		"kubelet.service": "/etc/systemd/system/" + kubeletUnit,
		"10-kubeadm.conf": "/etc/systemd/system/" + kubeletUnit + ".d/10-kubeadm.conf",
	} {
		content, err := readSmall(files, name)
		if err != nil {
			problems = append(problems, err)
			continue
		}
		content = bytes.ReplaceAll(content, []byte("/usr/bin/kube"), []byte(binFolder+"/kube"))
		if old, err := h.ReadFile(target); err != nil || !bytes.Equal(old, content) {
			contents[target] = content
		}
	}
	if len(problems) > 0 {
		return false, fault.Join(fault.InstallFailed, problems)
	}
	if len(contents) > 0 {
		if _, err := h.WriteFile(reloadPending, nil, 0o600); err != nil {
			return false, err
		}
	}
	for target, content := range contents {
		wrote, err := h.WriteFile(target, content, 0o644)
		changed = changed || wrote
		if err != nil {
			return changed, err
		}
	}
	enabled, err := h.Units.Enable(ctx, kubeletUnit)
	if err != nil {
		return changed, err
	}
	if h.Exists(reloadPending) {
		if err := h.Units.Reload(ctx); err != nil {
			return changed, err
		}
		if _, err := h.Remove(reloadPending); err != nil {
			return changed, err
		}
	}
	return changed || enabled, nil
}

// installSettings writes the kubelet's environment and puts /opt/bin on root's
// search path.
func installSettings(h *host.Host) (changed bool, err error) {
	old, err := h.ReadFile(kubeletDefaults)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, err
	}
	if changed, err = h.WriteFile(kubeletDefaults, []byte(kubeletEnvironment(string(old))), 0o644); err != nil {
		return changed, err
	}
	rc, err := h.ReadFile(bashrc)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return changed, err
	}
	if strings.Contains(string(rc), binFolder) {
		return changed, nil
	}
	if len(rc) > 0 && !bytes.HasSuffix(rc, []byte("\n")) {
		rc = append(rc, '\n')
	}
	wrote, err := h.WriteFile(bashrc, append(rc, "export PATH=$PATH:"+binFolder+"\n"...), 0o644)
	return changed || wrote, err
}

// droppedArgs are kubelet flags that drift from the configuration kubeadm writes
// or that newer kubelets refuse to start with (pain-point C24).
var droppedArgs = regexp.MustCompile(`--(cgroup-driver|pod-infra-container-image)(=|\s+)[^\s"']*`)

// kubeletEnvironment keeps what an administrator put into /etc/default/kubelet,
// except the flags that do harm.
func kubeletEnvironment(old string) string {
	if strings.TrimSpace(old) == "" {
		return "KUBELET_EXTRA_ARGS=\n"
	}
	return droppedArgs.ReplaceAllString(old, "")
}
