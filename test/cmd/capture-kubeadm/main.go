// SPDX-License-Identifier: Apache-2.0

// Command capture-kubeadm makes real kubeadm fail in every way the classifier of
// internal/kubeadm knows, and keeps what it printed as that package's test data:
//
//	go run ./test/cmd/capture-kubeadm -version 1.34.4 [-only join-token] [-out DIR]
//
// It needs root, no VM, and touches nothing of the machine it runs on: it starts
// itself again in namespaces of its own (mounts, network, processes, host name),
// where each machine of a small lab is the template's Debian root under an overlay
// in memory and a network namespace on one bridge. etcd, the API server and
// containerd are the real programs, run as plain processes; there is no systemd,
// and in place of the kubelet a stand-in answers its health check and runs the
// static pods' commands (kubelet.go). kubeadm's time limits are made short by its
// own configuration, and a clock that is wrong by a certificate that is valid at
// another time; else nothing is played to kubeadm.
//
// The programs and the root come from the cache that `go run
// ./test/iso/cmd/build-iso` and the VM tests fill. With -version and -kubeadm a
// kubeadm of another version fails, with the same control plane. Each failure
// becomes DIR/<version>/<name>/output.txt, standard output and error in order, and
// meta.json beside it. The tokens and keys in them are of the lab and worth nothing:
// they are left in, so that tests can show that they are taken out. A new failure is
// a row in initfailures.go or joinfailures.go, and one in classify_test.go there.
//
// It takes half an hour on two busy cores; -only captures some.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"path/filepath"
	"regexp"
	"syscall"
)

const (
	insideArgument  = "inside"  // the second run, in the namespaces
	machineArgument = "machine" // one program in a machine of the lab
)

func main() {
	if len(os.Args) > 1 && os.Args[1] == machineArgument {
		fmt.Fprintln(os.Stderr, "capture-kubeadm:", enterMachine(os.Args[2:]))
		os.Exit(127)
	}
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	run := outside
	args := os.Args[1:]
	if len(args) > 0 && args[0] == insideArgument {
		run, args = inside, args[1:]
	}
	if err := run(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "capture-kubeadm:", err)
		os.Exit(1)
	}
}

type options struct {
	version string
	kubeadm string
	only    *regexp.Regexp
	out     string
	scratch string
}

func parse(args []string) (options, error) {
	var o options
	flags := flag.NewFlagSet("capture-kubeadm", flag.ContinueOnError)
	flags.StringVar(&o.version, "version", "1.34.4", "`version` of kubeadm")
	flags.StringVar(&o.kubeadm, "kubeadm", "", "kubeadm's `file`; without it the cache's")
	only := flags.String("only", ".", "capture the failures whose name matches `regexp`")
	flags.StringVar(&o.out, "out", "internal/kubeadm/testdata/failures", "`folder` to write to")
	flags.StringVar(&o.scratch, "scratch", os.TempDir(), "`folder` to mount the machines in")
	if err := flags.Parse(args); err != nil {
		return o, err
	}
	if flags.NArg() > 0 {
		return o, fmt.Errorf("unexpected argument %q", flags.Arg(0))
	}
	var err error
	o.only, err = regexp.Compile(*only)
	return o, err
}

// outside starts this program again in namespaces of its own. They end with it,
// and with them every process and mount.
func outside(ctx context.Context, args []string) (err error) {
	o, err := parse(args)
	if err != nil {
		return err
	}
	// In the cache before the network is gone.
	if _, err := findPrograms(o); err != nil {
		return err
	}
	scratch, err := os.MkdirTemp(o.scratch, "capture-kubeadm-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.Remove(scratch)) }()
	out, err := filepath.Abs(o.out)
	if err != nil {
		return err
	}
	again := append([]string{insideArgument}, args...)
	cmd := exec.CommandContext(ctx, "/proc/self/exe", append(again, "-scratch", scratch, "-out", out)...)
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Cloneflags:   syscall.CLONE_NEWNS | syscall.CLONE_NEWNET | syscall.CLONE_NEWPID | syscall.CLONE_NEWUTS | syscall.CLONE_NEWIPC,
		Unshareflags: syscall.CLONE_NEWNS, // makes the mounts private
		Pdeathsig:    syscall.SIGKILL,
	}
	return cmd.Run()
}

// inside captures.
func inside(ctx context.Context, args []string) error {
	o, err := parse(args)
	if err != nil {
		return err
	}
	p, err := findPrograms(o)
	if err != nil {
		return err
	}
	l, err := newLab(o.scratch, p)
	if err != nil {
		return err
	}
	for _, s := range append(initScenarios(), joinScenarios()...) {
		if !o.only.MatchString(s.name) {
			continue
		}
		fmt.Println(s.name)
		failure, err := l.capture(ctx, s)
		if err != nil {
			return fmt.Errorf("cannot capture %s: %w", s.name, err)
		}
		if err := failure.keep(filepath.Join(o.out, o.version, s.name)); err != nil {
			return err
		}
	}
	return nil
}
