// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/agent"
	"nodeagent/internal/diag"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
	"nodeagent/internal/userdata"
)

// parts is what an archive of nodeagent diag has in it, the most important first. Never
// in it: userdata, kubeconfigs, private keys, what is in the cluster.
func (d *diagnosis) parts() []diag.Part {
	status := sync.OnceValues(func() (*statusReport, error) { return readStatus(context.Background(), d.host) })
	parts := []diag.Part{
		{Name: "status.txt", What: "nodeagent status", Timeout: 30 * time.Second, Collect: func(_ context.Context, w io.Writer) error {
			report, err := status()
			if err == nil {
				newScreen(w).show(report, d.now)
			}
			return err
		}},
		{Name: "status.json", What: "nodeagent status -o json", Timeout: 30 * time.Second, Collect: func(_ context.Context, w io.Writer) error {
			report, err := status()
			if err != nil {
				return err
			}
			return printJSON(w, report)
		}},
		{Name: "timeline.json", What: "nodeagent timeline -o json", Collect: func(ctx context.Context, w io.Writer) error {
			chart, err := readTimeline(ctx, d.host)
			if err != nil {
				return err
			}
			return printJSON(w, chart)
		}},
		{Name: "boot-args.txt", What: "CloudStack's boot args", Collect: func(_ context.Context, w io.Writer) error {
			text, err := d.host.ReadFile(userdata.CmdlineFile)
			if err == nil {
				_, err = fmt.Fprintln(w, userdata.ParseBootArgs(string(text)))
			}
			return err
		}},
		{Name: "versions.txt", What: "versions of system and tools", Timeout: 30 * time.Second, Collect: d.versions},
	}
	for _, name := range []string{agent.StateFile, agent.RunState, agent.ProgressFile, "/var/lib/nodeagent/boot-args.json", "/var/lib/nodeagent/kubeadm.json",
		"/etc/nodeagent/nodeagent.yaml", "/etc/nodeagent/roles.d/*"} {
		parts = append(parts, d.files(name, "nodeagent's", 0)...)
	}

	parts = append(parts, d.journal("nodeagent", 6000, "--unit=nodeagent.service"))
	parts = append(parts, d.files("/var/log/nodeagent/*", "output of kubeadm, as nodeagent ran it", 512<<10)...)
	parts = append(parts,
		d.command("units-failed.txt", "systemctl", "list-units", "--all", "--state=failed", "--no-pager", "--plain", "--full"),
		d.journal("kubelet", 4000, "--boot", "--unit=kubelet.service"),
		d.journal("containerd", 3000, "--boot", "--unit=containerd.service"),
		d.journal("cloud-init", 3000, "--boot", "--unit=cloud-init-local.service", "--unit=cloud-init-main.service", "--unit=cloud-init.service",
			"--unit=cloud-init-network.service", "--unit=cloud-config.service", "--unit=cloud-final.service"),
		d.journal("etcd", 3000, "--boot", "--unit=etcd.service"),
		d.journal("network", 2000, "--boot", "--unit=networking.service", "--unit=systemd-networkd.service", "--unit=systemd-resolved.service", "--unit=ifup@*.service"),
		d.journal("ssh", 1000, "--boot", "--unit=ssh.service", "--unit=sshd.service"),
		d.journal("cloudstack", 3000, "--boot", "--unit=cloud-preinit.service", "--unit=cloud-early-config.service", "--unit=cloud-postinit.service", "--unit=cloud.service"),
		d.journal("docker", 2000, "--boot", "--unit=docker.service"),
		d.journal("kernel", 3000, "--boot", "--dmesg"),
		d.journal("warnings", 2000, "--boot", "--priority=warning"),
		d.journal("boot-before", 1000, "--boot=-1", "--priority=warning"),
		d.command("dmesg.txt", "dmesg", "--ctime"),
	)
	for _, name := range []string{"/var/log/cloud-init.log", "/var/log/cloud-init-output.log", "/run/cloud-init/status.json", "/run/cloud-init/result.json", "/run/cloud-init/network-config.json",
		"/run/cloud-init/ds-identify.log", "/var/lib/cloud/data/status.json", "/var/lib/cloud/data/result.json"} {
		parts = append(parts, d.files(name, "cloud-init's", 0)...)
	}
	parts = append(parts, d.instanceData()...)
	parts = append(parts, d.cloudLog()...)

	parts = append(parts,
		diag.Part{Name: "containers.txt", What: "containers, as containerd has them", Collect: func(ctx context.Context, w io.Writer) error {
			return kubeadm.ListContainers(ctx, d.host, w)
		}},
		d.command("network/addresses.txt", "ip", "-details", "address"),
		d.command("network/routes.txt", "ip", "route", "show", "table", "all"),
		d.command("network/rules.txt", "ip", "rule"),
		d.command("network/neighbours.txt", "ip", "neighbour"),
		d.command("network/nft.txt", "nft", "list", "ruleset"),
		d.command("network/iptables.txt", "iptables-save"),
		d.command("network/sockets.txt", "ss", "--listening", "--tcp", "--udp", "--numeric", "--processes"),
		d.command("disks/lsblk.txt", "lsblk", "--bytes", "--output", "NAME,MAJ:MIN,TYPE,SIZE,RO,FSTYPE,LABEL,UUID,PARTUUID,MOUNTPOINTS"),
		d.command("disks/tables.txt", "sfdisk", "--list"),
		d.command("disks/findmnt.txt", "findmnt", "--list", "--output", "TARGET,SOURCE,FSTYPE,OPTIONS"),
		d.command("disks/df.txt", "df", "--local", "--print-type"),
		d.command("disks/inodes.txt", "df", "--local", "--inodes"),
		d.command("processes.txt", "ps", "-eo", "pid,ppid,user,stat,etimes,pcpu,rss,args", "--sort=pid"),
		d.command("time.txt", "timedatectl", "show"),
		d.command("units.txt", "systemctl", "list-units", "--all", "--no-pager", "--plain", "--full"),
		d.command("jobs.txt", "systemctl", "list-jobs", "--no-pager", "--full"),
		diag.Part{Name: "files.txt", What: "names, modes, sizes and times of files, not what they hold", Collect: d.listing},
	)
	for _, name := range []string{
		"/proc/cmdline", "/proc/meminfo", "/proc/loadavg", "/proc/pressure/*", "/proc/partitions", "/proc/swaps", "/proc/self/mountinfo", "/etc/resolv.conf", "/etc/hosts", "/etc/fstab",
		"/etc/network/interfaces", "/etc/network/interfaces.d/*", "/etc/kubernetes/manifests/*.yaml", "/var/lib/kubelet/config.yaml", "/var/lib/kubelet/kubeadm-flags.env",
		"/run/nodeagent/kubeadm.yaml", "/etc/containerd/config.toml", "/etc/containerd/conf.d/*", "/etc/containerd/certs.d/*/hosts.toml", "/etc/cni/net.d/*", "/etc/docker/daemon.json",
		"/etc/systemd/system/kubelet.service.d/*", "/etc/systemd/system/etcd.service", "/etc/cloud/cloud.cfg.d/*", "/etc/ssh/sshd_config", "/etc/ssh/sshd_config.d/*",
	} {
		parts = append(parts, d.files(name, "a setting", 128<<10)...)
	}
	return append(parts, d.podLogs()...)
}

// maxMatches is how many files a pattern may stand for.
const maxMatches = 100

// files are parts of the files that a pattern names; none where none is there.
func (d *diagnosis) files(pattern, what string, limit int) (parts []diag.Part) {
	names, err := filepath.Glob(d.host.Path(pattern))
	if err != nil || len(names) == 0 {
		return nil
	}
	for _, name := range names[:min(len(names), maxMatches)] {
		name = strings.TrimPrefix(name, d.host.Root)
		if strings.Contains(strings.ToLower(path.Base(name)), "kubeconfig") { // a CNI plugin's
			continue
		}
		parts = append(parts, diag.Part{Name: "files" + name, What: what, Limit: limit, Collect: func(ctx context.Context, w io.Writer) error {
			return d.copyFile(ctx, name, w)
		}})
	}
	return parts
}

// maxRead is how much of the end of a file is read: more than is kept of it, so that what
// is struck out of it is known by what stands before.
const maxRead = 16 << 20

// copyFile writes the end of a regular file, from the beginning of a line.
func (d *diagnosis) copyFile(ctx context.Context, name string, w io.Writer) error {
	file, info, err := openRegular(d.host, name)
	if err != nil {
		return err
	}
	return copyEnd(ctx, file, info, w)
}

// openRegular opens a file that is none to wait for, such as a FIFO.
func openRegular(h *host.Host, name string) (*os.File, fs.FileInfo, error) {
	return regular(os.OpenFile(h.Path(name), os.O_RDONLY|unix.O_NONBLOCK, 0))
}

// regular returns what is known of an open file, which it closes where it is no regular
// one.
func regular(file *os.File, err error) (*os.File, fs.FileInfo, error) {
	if err != nil {
		return nil, nil, err
	}
	info, err := file.Stat()
	if err == nil && !info.Mode().IsRegular() {
		err = fmt.Errorf("%s is no regular file", file.Name())
	}
	if err != nil {
		return nil, nil, errors.Join(err, file.Close())
	}
	return file, info, nil
}

// copyEnd writes the end of an open file, which it closes.
func copyEnd(ctx context.Context, file *os.File, info fs.FileInfo, w io.Writer) error {
	defer file.Close()
	if over := info.Size() - maxRead; over > 0 {
		if _, err := file.Seek(over, io.SeekStart); err != nil {
			return err
		}
		w = &fromNextLine{out: w}
	}
	stop := context.AfterFunc(ctx, func() { file.Close() })
	defer stop()
	// A log may grow while it is read.
	_, err := io.Copy(w, io.LimitReader(file, maxRead))
	return err
}

// instanceData is what cloud-init knows of its instance, once it has struck the userdata
// out of it, which old versions do not (cloud-init, docs/instance-data).
func (d *diagnosis) instanceData() []diag.Part {
	parts := d.files("/run/cloud-init/instance-data.json", "cloud-init's", 0)
	for i, part := range parts {
		parts[i].Collect = func(ctx context.Context, w io.Writer) error {
			var text bytes.Buffer
			if err := part.Collect(ctx, &text); err != nil {
				return err
			}
			if !bytes.Contains(text.Bytes(), []byte("redacted for non-root user")) {
				return errors.New("cloud-init has struck nothing out of it: it may hold userdata")
			}
			_, err := text.WriteTo(w)
			return err
		}
	}
	return parts
}

// cloudLog is the log of CloudStack's scripts. On a router they write the passwords and
// keys of its VPNs into it.
func (d *diagnosis) cloudLog() []diag.Part {
	parts := d.files("/var/log/cloud.log", "CloudStack's", 0)
	text, err := d.host.ReadFile(userdata.CmdlineFile)
	if role := userdata.ParseBootArgs(string(text)).Type(); err != nil || role != "cksnode" {
		for i := range parts {
			parts[i].Collect = func(context.Context, io.Writer) error {
				return fmt.Errorf("CloudStack's scripts write secrets into it on a machine of type %q", role)
			}
		}
	}
	return parts
}

// fromNextLine leaves out what comes before the first end of a line.
type fromNextLine struct {
	out   io.Writer
	begun bool
}

func (f *fromNextLine) Write(p []byte) (int, error) {
	text := p
	if !f.begun {
		_, text, f.begun = bytes.Cut(p, []byte("\n"))
	}
	if _, err := f.out.Write(text); err != nil {
		return 0, err
	}
	return len(p), nil
}

// command is a part of what a program prints.
func (d *diagnosis) command(name, program string, args ...string) diag.Part {
	return diag.Part{Name: name, What: strings.Join(append([]string{program}, args...), " "), Collect: func(ctx context.Context, w io.Writer) error {
		return d.output(ctx, w, program, args...)
	}}
}

func (d *diagnosis) journal(name string, lines int, args ...string) diag.Part {
	args = append([]string{"--no-pager", "--quiet", "--output=short-iso-precise", "--lines=" + strconv.Itoa(lines)}, args...)
	part := d.command("journal/"+name+".txt", "journalctl", args...)
	part.Timeout = 20 * time.Second
	return part
}

// output runs a program of the machine and writes what it prints.
func (d *diagnosis) output(ctx context.Context, w io.Writer, program string, args ...string) error {
	file := d.find(program)
	if file == "" {
		return fmt.Errorf("%s: %w", program, fs.ErrNotExist)
	}
	_, err := d.host.Run.Run(ctx, host.Command{Path: file, Args: args, Stdout: w})
	return err
}

// find returns where a program is, or "".
func (d *diagnosis) find(program string) string {
	for folder := range strings.SplitSeq(host.Path, ":") {
		if file := path.Join(folder, program); d.host.Exists(file) {
			return file
		}
	}
	return ""
}

func (d *diagnosis) versions(ctx context.Context, w io.Writer) error {
	fmt.Fprintln(w, versionText())
	for _, name := range []string{"/proc/version", "/etc/os-release", "/etc/debian_version", "/etc/cloudstack-release", "/proc/uptime"} {
		if text, err := d.host.ReadFile(name); err == nil {
			fmt.Fprintf(w, "\n%s:\n%s\n", name, bytes.TrimSpace(text))
		}
	}
	var failed []error
	for _, command := range [][]string{{"containerd", "--version"}, {"runc", "--version"}, {"kubelet", "--version"}, {"kubeadm", "version", "--output=short"}, {"etcd", "--version"},
		{"cloud-init", "--version"}, {"systemctl", "--version"}, {"dpkg-query", "--show", "nodeagent", "containerd*", "cloud-init", "open-vm-tools", "qemu-guest-agent"}} {
		fmt.Fprintf(w, "\n%s:\n", strings.Join(command, " "))
		if err := d.output(ctx, w, command[0], command[1:]...); err != nil {
			fmt.Fprintf(w, "(%v)\n", err)
			if ctx.Err() != nil {
				failed = append(failed, err)
				break
			}
		}
	}
	return errors.Join(failed...)
}

// listing names files whose being there, and since when, tells something.
func (d *diagnosis) listing(ctx context.Context, w io.Writer) error {
	left := 5000
	for _, folder := range []string{"/etc/kubernetes", "/etc/nodeagent", "/etc/containerd", "/etc/cni/net.d", "/etc/network", "/etc/systemd/system", "/home/cloud", "/opt/bin", "/opt/cni/bin",
		"/run/nodeagent", "/run/cloud-init", "/var/cache/cloud", "/var/lib/cloud/instances", "/var/lib/cloud/seed", "/var/lib/etcd", "/var/lib/kubelet/pki", "/var/lib/nodeagent", "/var/log"} {
		err := filepath.WalkDir(d.host.Path(folder), func(name string, entry fs.DirEntry, err error) error {
			if ctx.Err() != nil {
				return context.Cause(ctx)
			}
			name = strings.TrimPrefix(name, d.host.Root)
			if err != nil {
				fmt.Fprintf(w, "%s: %v\n", name, err)
				return nil
			}
			if name == "/run/nodeagent/iso" {
				return fs.SkipDir
			}
			if left--; left < 0 {
				return errors.New("more than 5000 files")
			}
			info, err := entry.Info()
			if err != nil {
				return nil
			}
			fmt.Fprintf(w, "%s %10d %s %s\n", info.Mode(), info.Size(), info.ModTime().UTC().Format(time.RFC3339), strconv.Quote(name))
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// podLog is one log that the kubelet keeps: /var/log/pods/NAMESPACE_POD_UID/CONTAINER/RESTARTS.log
// (kubernetes/pkg/kubelet/kuberuntime/helpers.go).
type podLog struct {
	name     string
	restarts int
	written  time.Time
}

const (
	maxPodLogs  = 60
	podLogBytes = 64 << 10
)

var podLogName = regexp.MustCompile(`/([0-9]{1,9})\.log$`)

// podLogs are the ends of pods' logs: of containers that had to be started again first,
// then the newest.
func (d *diagnosis) podLogs() (parts []diag.Part) {
	names, err := filepath.Glob(d.host.Path("/var/log/pods/*/*/*.log"))
	if err != nil {
		return nil
	}
	var logs []podLog
	for _, name := range names {
		if !systemPod(strings.TrimPrefix(name, d.host.Path("/var/log/pods"))) {
			continue
		}
		match := podLogName.FindStringSubmatch(name)
		info, err := os.Lstat(name)
		if match == nil || err != nil || !info.Mode().IsRegular() {
			continue
		}
		restarts, err := strconv.Atoi(match[1])
		if err != nil {
			continue
		}
		logs = append(logs, podLog{strings.TrimPrefix(name, d.host.Root), restarts, info.ModTime()})
	}
	for _, log := range chooseLogs(logs) {
		parts = append(parts, diag.Part{Name: "pods" + strings.TrimPrefix(log.name, "/var/log/pods"), What: fmt.Sprintf("end of a container's log, started %d times before", log.restarts), Limit: podLogBytes,
			Collect: func(ctx context.Context, w io.Writer) error { return d.copyPodLog(ctx, log.name, w) }})
	}
	return parts
}

// copyPodLog follows no link out of the folder of the logs.
func (d *diagnosis) copyPodLog(ctx context.Context, name string, w io.Writer) error {
	root, err := os.OpenRoot(d.host.Path("/var/log/pods"))
	if err != nil {
		return err
	}
	defer root.Close()
	file, info, err := regular(root.OpenFile(strings.TrimPrefix(name, "/var/log/pods/"), os.O_RDONLY|unix.O_NONBLOCK, 0))
	if err != nil {
		return err
	}
	return copyEnd(ctx, file, info, w)
}

var systemNamespace = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^/?(kube-system|kubernetes-dashboard|kube-flannel|calico-[a-z0-9-]+|tigera-[a-z0-9-]+|(cilium|csi|cloudstack)[a-z0-9-]*)_`)
})

// systemPod says that a log below /var/log/pods is of the cluster itself: what the
// cluster's users run may log anything.
func systemPod(name string) bool { return systemNamespace().MatchString(name) }

// chooseLogs sorts logs by how much they are likely to tell and cuts them to maxPodLogs.
func chooseLogs(logs []podLog) []podLog {
	slices.SortStableFunc(logs, func(a, b podLog) int {
		if failed := (b.restarts > 0); failed != (a.restarts > 0) {
			if failed {
				return 1
			}
			return -1
		}
		return b.written.Compare(a.written)
	})
	return logs[:min(len(logs), maxPodLogs)]
}
