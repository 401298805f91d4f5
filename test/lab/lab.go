// SPDX-License-Identifier: Apache-2.0

// Package lab sets an emulated cloud up for a machine made from the template
// with this tree's package in it, and looks at what nodeagent says there.
package lab

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/google/uuid"

	"nodeagent/test/cloud"
	"nodeagent/test/template"
)

// Lab is a cloud with one template.
type Lab struct {
	Cloud *cloud.Cloud
	Image template.Image
	Key   *cloud.KeyPair
	arch  string
	log   io.Writer
}

// Version is the Kubernetes version of the lab's cluster.
const Version = "1.34.4"

// New builds the template, with the newest package for its architecture in dist/, and
// makes a cloud.
// Logs of the machines go to dir; empty: nowhere after Close.
func New(ctx context.Context, dir string, log io.Writer, options template.Options) (*Lab, error) {
	if options.Arch == "" {
		options.Arch = template.Architectures()[0]
	}
	deb, err := newestPackage(options.Arch)
	if err != nil {
		return nil, err
	}
	options.Package = deb
	image, err := template.Build(ctx, log, options)
	if err != nil {
		return nil, err
	}
	key, err := cloud.NewKeyPair()
	if err != nil {
		return nil, err
	}
	c, err := cloud.New(ctx, cloud.Options{Dir: dir, Log: log})
	if err != nil {
		return nil, err
	}
	return &Lab{Cloud: c, Image: image, Key: key, arch: options.Arch, log: log}, nil
}

// Close ends all machines.
func (l *Lab) Close() error { return l.Cloud.Close() }

func newestPackage(arch string) (string, error) {
	top, err := os.Getwd()
	for err == nil && top != "/" {
		if _, statErr := os.Stat(filepath.Join(top, "go.mod")); statErr == nil {
			break
		}
		top = filepath.Dir(top)
	}
	found, _ := filepath.Glob(filepath.Join(top, "dist", "nodeagent_*_"+arch+".deb"))
	var newest string
	var when time.Time
	for _, name := range found {
		if info, err := os.Stat(name); err == nil && info.ModTime().After(when) {
			newest, when = name, info.ModTime()
		}
	}
	if newest == "" {
		return "", fmt.Errorf("cannot find a package in %s/dist: run `make deb ARCH=%s`", top, arch)
	}
	return newest, nil
}

// Spec is a machine of the lab's template, booted by QEMU directly. It has one CPU, as
// CloudStack's system VMs have; on a host without KVM that is as busy as it has CPUs, a
// second one makes a machine slower.
func (l *Lab) Spec(name string, diskBytes int64) cloud.MachineSpec {
	return cloud.MachineSpec{Name: name, Arch: l.arch, Disk: l.Image.Disk, DiskBytes: diskBytes, CPUs: 1,
		Kernel: l.Image.Kernel, Initrd: l.Image.Initrd, Append: l.Image.Append}
}

// RouterSpec is a virtual router of 256 MB.
func (l *Lab) RouterSpec(name string) cloud.MachineSpec {
	spec := l.Spec(name, 6<<30)
	spec.MemoryMiB = 512
	spec.BootArgs = cloud.RouterArgs{Name: name,
		Guest: netip.MustParsePrefix("10.1.1.11/24"), Control: netip.MustParsePrefix("169.254.3.7/16"),
		Public: netip.MustParsePrefix("192.0.2.7/24"), Gateway: netip.MustParseAddr("192.0.2.1"),
		Domain: "cs1.cloud.internal", DNS: []netip.Addr{netip.MustParseAddr("10.1.1.1")}}.String()
	return spec
}

// ControlNodeSpec is the first control node of a cluster, with userdata as
// CloudStack sends it; with etcd nodes, if there are any, for its etcd.
func (l *Lab) ControlNodeSpec(name string, address netip.Addr, etcd ...cloud.EtcdMember) (cloud.MachineSpec, cloud.UserdataParams, error) {
	params, err := cloud.NewUserdataParams(uuid.New(), address, Version, l.Key.Public)
	if err != nil {
		return cloud.MachineSpec{}, params, err
	}
	params.Etcd = etcd
	spec, err := l.nodeSpec(name, address, params, cloud.ControlNodeUserdata)
	spec.CPUs = 2 // kubeadm wants them
	return spec, params, err
}

// ControlNodeAddSpec is a further control node of the cluster with those parameters.
func (l *Lab) ControlNodeAddSpec(name string, address netip.Addr, params cloud.UserdataParams) (cloud.MachineSpec, error) {
	spec, err := l.nodeSpec(name, address, params, cloud.ControlNodeAddUserdata)
	spec.CPUs = 2
	return spec, err
}

// WorkerSpec is a worker of the cluster with those parameters.
func (l *Lab) WorkerSpec(name string, address netip.Addr, params cloud.UserdataParams) (cloud.MachineSpec, error) {
	return l.nodeSpec(name, address, params, cloud.WorkerUserdata)
}

// EtcdSpec is the node for etcd alone of that name, one of params.Etcd. CloudStack makes
// them with the template's disk.
func (l *Lab) EtcdSpec(name string, params cloud.UserdataParams) (cloud.MachineSpec, error) {
	params.EtcdNode = name
	var address netip.Addr
	for _, member := range params.Etcd {
		if member.Name == name {
			address = member.Address
		}
	}
	spec, err := l.nodeSpec(name, address, params, cloud.EtcdNodeUserdata)
	spec.DiskBytes = 6 << 30
	return spec, err
}

func (l *Lab) nodeSpec(name string, address netip.Addr, params cloud.UserdataParams, render func(cloud.UserdataParams) ([]byte, error)) (cloud.MachineSpec, error) {
	userdata, err := render(params)
	spec := l.Spec(name, 12<<30)
	spec.Address = address
	spec.BootArgs = l.Cloud.NodeArgs(name, address).String()
	spec.Userdata = userdata
	spec.PublicKeys = []string{l.Key.Public}
	return spec, err
}

// Boot starts a machine and delivers its boot args, as the host does.
func (l *Lab) Boot(ctx context.Context, spec cloud.MachineSpec) (*cloud.Machine, error) {
	m, err := l.Cloud.Start(ctx, spec)
	if err != nil {
		return nil, err
	}
	if spec.BootArgs == "" {
		return m, nil
	}
	return m, m.DeliverBootArgs(ctx, spec.BootArgs)
}

// Status is the part of `nodeagent status -o json` the lab looks at.
type Status struct {
	Role, Phase, BootID string
	Steps               []Step
	Gates, Health       []Gate
	Warnings            []struct{ Step, Code, Message string }
}

// Gate is something a Status says of the node as it is now.
type Gate struct {
	Name, Detail string
	OK, Unknown  bool
}

// Step is one step of a Status.
type Step struct {
	Name, Status, Note string
	Seconds            float64
	Error              *struct {
		Code, Message, Hint string
		Log                 []string
	}
}

// Step returns the named step.
func (s *Status) Step(name string) (Step, bool) {
	for _, step := range s.Steps {
		if step.Name == name {
			return step, true
		}
	}
	return Step{}, false
}

// ClosedGates returns the gates that do not pass and what is not healthy, each with its
// detail.
func (s *Status) ClosedGates() (closed []string) {
	for _, gate := range slices.Concat(s.Gates, s.Health) {
		if !gate.OK {
			closed = append(closed, gate.Name+": "+gate.Detail)
		}
	}
	return closed
}

// WaitGates waits until all gates pass: the dashboard's pod starts after the node
// is Ready.
func WaitGates(ctx context.Context, m *cloud.Machine) error {
	ctx, cancel := context.WithTimeout(ctx, 15*time.Minute)
	defer cancel()
	for {
		status, _, err := ReadStatus(ctx, m)
		if err != nil {
			return err
		}
		closed := status.ClosedGates()
		if len(status.Gates) > 0 && len(closed) == 0 {
			return nil
		}
		select {
		case <-time.After(5 * time.Second):
		case <-ctx.Done():
			return fmt.Errorf("gates of %s that do not pass: %q", m.Spec.Name, closed)
		}
	}
}

// Failures returns the codes of the failed steps.
func (s *Status) Failures() (codes []string) {
	for _, step := range s.Steps {
		if step.Error != nil {
			codes = append(codes, step.Error.Code)
		}
	}
	return codes
}

// ReadStatus runs `nodeagent status -o json` in the machine, through the guest
// agent, and returns what it says and its exit code.
func ReadStatus(ctx context.Context, m *cloud.Machine) (*Status, int, error) {
	result, err := m.Agent().Exec(ctx, "/usr/bin/nodeagent", "status", "-o", "json")
	if err != nil {
		return nil, 0, err
	}
	var status Status
	if err := json.Unmarshal(result.Stdout, &status); err != nil {
		return nil, result.ExitCode, fmt.Errorf("status is no JSON: %w: %q %q", err, result.Stdout, result.Stderr)
	}
	return &status, result.ExitCode, nil
}

// Text runs a program in the machine and returns its standard output.
func Text(ctx context.Context, m *cloud.Machine, path string, args ...string) (string, error) {
	result, err := m.Agent().Exec(ctx, path, args...)
	if err != nil {
		return "", err
	}
	if result.ExitCode != 0 {
		return string(result.Stdout), fmt.Errorf("%s %s: exit code %d: %s", path, strings.Join(args, " "), result.ExitCode, result.Stderr)
	}
	return string(result.Stdout), nil
}

// Follow asks for the status until nodeagent of another boot than before has
// ended, and calls each with every step that changed. The emulated cloud is
// outside the machine, so it asks; often enough to see something, and seldom
// enough not to slow an emulated CPU down.
func Follow(ctx context.Context, m *cloud.Machine, before string, each func(Step)) (*Status, int, error) {
	seen := map[string]string{}
	var last error
	for {
		status, code, err := ReadStatus(ctx, m)
		if err != nil {
			last = err
		}
		if err == nil && status.BootID != before && status.Phase != "idle" {
			for _, step := range status.Steps {
				if step.Status != "pending" && seen[step.Name] != step.Status+step.Note {
					seen[step.Name] = step.Status + step.Note
					each(step)
				}
			}
			// A failure shows at once, also while other steps still run.
			if status.Phase != "running" && !slices.ContainsFunc(status.Steps, func(s Step) bool { return s.Status == "running" }) {
				return status, code, nil
			}
		}
		select {
		case <-time.After(3 * time.Second):
		case <-ctx.Done():
			return nil, 0, errors.Join(fmt.Errorf("cannot follow nodeagent in %s: %w", m.Spec.Name, context.Cause(ctx)), last)
		}
	}
}
