// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strings"
	"text/tabwriter"

	"github.com/spf13/cobra"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/roles"
	"nodeagent/internal/secret"
	"nodeagent/internal/userdata"
)

// planReport is what `plan -o json` prints. Keys are only ever added.
type planReport struct {
	Role        string          `json:"role,omitempty"`
	Hostname    string          `json:"hostname,omitempty"`
	Interfaces  []planInterface `json:"interfaces,omitempty"`
	Nameservers []netip.Addr    `json:"nameservers,omitempty"`
	Disk        *planDisk       `json:"disk,omitempty"`
	Services    *planServices   `json:"services,omitempty"`
	Owner       roles.Owner     `json:"owner,omitempty"`
	SSHPort     int             `json:"sshPort,omitempty"`
	Kubernetes  *planKubernetes `json:"kubernetes,omitempty"`
	Steps       []planStep      `json:"steps"`
	Problems    []planProblem   `json:"problems"`
	// Explain is there with --explain only.
	Explain []userdata.Explanation `json:"explain,omitempty"`
}

type planInterface struct {
	Name    string       `json:"name"`
	Address netip.Prefix `json:"address,omitzero"`
	Gateway netip.Addr   `json:"gateway,omitzero"`
}

type planDisk struct {
	MinimumBytes   int64 `json:"minimumBytes,omitempty"`
	RequestedBytes int64 `json:"requestedBytes,omitempty"`
}

type planServices struct {
	Enable  []string `json:"enable"`
	Disable []string `json:"disable"`
	// Leave are units that an override has nodeagent leave alone, CloudStack the
	// services that CloudStack's own scripts enable and disable.
	Leave      []string `json:"leave,omitempty"`
	CloudStack []string `json:"cloudstack,omitempty"`
}

type planKubernetes struct {
	Mode             userdata.Mode   `json:"mode"`
	Flavor           userdata.Flavor `json:"flavor,omitempty"`
	Version          string          `json:"version,omitempty"`
	Endpoint         string          `json:"endpoint,omitempty"`
	AdvertiseAddress string          `json:"advertiseAddress,omitempty"`
	BindPort         int             `json:"bindPort,omitempty"`
	NodeName         string          `json:"nodeName,omitempty"`
	CertSANs         []string        `json:"certSANs,omitempty"`
	Token            secret.Text     `json:"token,omitzero"`
	TokenTTL         string          `json:"tokenTTL,omitempty"`
	Discovery        string          `json:"discovery,omitempty"`
	CACertHashes     []string        `json:"caCertHashes,omitempty"`
	CertificateKey   secret.Text     `json:"certificateKey,omitzero"`
	UploadCerts      bool            `json:"uploadCerts,omitempty"`
	IgnorePreflight  []string        `json:"ignorePreflight,omitempty"`
	CRISocket        string          `json:"criSocket,omitempty"`
	KubeadmConfig    string          `json:"kubeadmConfig,omitempty"`
	ExternalEtcd     []string        `json:"externalEtcd,omitempty"`
	Etcd             *planEtcd       `json:"etcd,omitempty"`
	ExternalCNI      bool            `json:"externalCNI,omitempty"`
	Registry         string          `json:"registry,omitempty"`
	WaitInterval     string          `json:"waitInterval,omitempty"`
	WaitAttempts     int             `json:"waitAttempts,omitempty"`
	EjectISO         bool            `json:"ejectISO"`
	VRISO            string          `json:"vrISO,omitempty"`
	Flags            userdata.Words  `json:"flags,omitempty"`
	Handover         string          `json:"handover"`
	HandoverReasons  []string        `json:"handoverReasons,omitempty"`
}

type planEtcd struct {
	Name           string         `json:"name"`
	Address        string         `json:"address"`
	InitialCluster string         `json:"initialCluster"`
	State          string         `json:"state"`
	Token          string         `json:"token,omitempty"`
	Flags          userdata.Words `json:"flags,omitempty"`
}

type planStep struct {
	Name  string   `json:"name"`
	Needs []string `json:"needs"`
}

type planProblem struct {
	Severity userdata.Severity `json:"severity"`
	Code     fault.Code        `json:"code"`
	Message  string            `json:"message"`
	// Source is boot-args, user-data or roles.d; Key the boot arg, the file in the
	// userdata, or the key in a file of roles.d.
	Source string `json:"source"`
	Key    string `json:"key,omitempty"`
}

const (
	bootArgsSource  = "boot-args"
	userdataSource  = "user-data"
	overridesSource = "roles.d"
)

func (r *planReport) addProblem(source string, p userdata.Problem) {
	r.Problems = append(r.Problems, planProblem{p.Severity, p.Code, p.Message, source, p.Key})
}

func planCommand() *cobra.Command {
	var bootArgsFile, userdataFile, rolesDir, output string
	var explain bool
	cmd := &cobra.Command{
		Use:   "plan --boot-args FILE [--user-data FILE]",
		Short: "Show what a boot would do with these boot args and userdata",
		Long: `Show what a boot would do with these boot args and this userdata: role, network,
disk, services, the Kubernetes node, the steps, and all that is wrong with them.
What the files of /etc/nodeagent/roles.d, or of another folder, change in the
role is in it. With --explain also where each value came from: the boot arg, the
line of the userdata, the role table or the line of a file that overrides it. It
works anywhere, needs no root and changes nothing. Exit code 1 when a problem is
an error.`,
		Example: `  nodeagent plan --boot-args /var/cache/cloud/cmdline
  nodeagent plan --boot-args cmdline --roles-dir roles.d --explain
  nodeagent plan --boot-args cmdline --user-data user-data --explain
  nodeagent plan --boot-args cmdline --user-data user-data -o json`,
		Args: noArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if bootArgsFile == "" {
				return usageError{fmt.Errorf("--boot-args FILE is missing")}
			}
			if err := oneOf(output, "text", "json"); err != nil {
				return err
			}
			bootArgs, err := readInput(bootArgsFile, userdata.MaxBootArgs)
			if err != nil {
				return err
			}
			var raw []byte
			if userdataFile != "" {
				if raw, err = readInput(userdataFile, userdata.MaxUserdata); err != nil {
					return err
				}
			}
			overrides, err := readRolesDir(rolesDir, cmd.Flags().Changed("roles-dir"))
			if err != nil {
				return err
			}
			report := makePlan(string(bootArgs), raw, overrides)
			if !explain {
				report.Explain = nil
			}
			if output == "json" {
				err = printJSON(cmd.OutOrStdout(), report)
			} else {
				report.show(cmd.OutOrStdout())
			}
			if err != nil {
				return err
			}
			if report.failed() {
				return exitCode(exitFail)
			}
			return nil
		},
	}
	cmd.Flags().StringVar(&bootArgsFile, "boot-args", "", "`file` with the boot args, as in /var/cache/cloud/cmdline")
	cmd.Flags().StringVar(&userdataFile, "user-data", "", "`file` with the userdata")
	cmd.Flags().StringVar(&rolesDir, "roles-dir", roles.OverridesDir, "`folder` with files that override the role table")
	cmd.Flags().BoolVar(&explain, "explain", false, "say where each value came from")
	outputFlag(cmd, &output, "text", "json")
	return cmd
}

// readInput reads a file of at most one byte more than limit, so that what is too
// long is seen to be.
func readInput(name string, limit int64) ([]byte, error) {
	file, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, limit+1))
}

// overrides are what a folder's files change in the role table, and what is wrong
// with them.
type overrides struct {
	roles.Overrides
	problems []roles.Problem
}

// readRolesDir reads a folder of overrides; one that was asked for must be there.
func readRolesDir(folder string, asked bool) (overrides, error) {
	if _, err := os.Stat(folder); asked && err != nil {
		return overrides{}, err
	}
	list, problems := roles.ReadOverrides(&host.Host{}, folder)
	return overrides{list, problems}, nil
}

// makePlan decides what a boot with these inputs does; raw is nil without
// userdata.
func makePlan(bootArgs string, raw []byte, over ...overrides) *planReport {
	report := &planReport{Steps: []planStep{}, Problems: []planProblem{}}
	n := &node{host: &host.Host{}, update: func(func(*agent.State)) {}, args: userdata.ParseBootArgs(bootArgs)}
	role, err := roles.Find(n.args.Type())
	if err != nil {
		failure := fault.As(err)
		report.addProblem(bootArgsSource, userdata.Problem{Severity: userdata.SeverityError, Code: failure.Code, Key: "type", Message: failure.Message})
	}
	var fromTable []roles.Origin
	for _, o := range over {
		for _, problem := range o.problems {
			report.addProblem(overridesSource, userdata.Problem{Severity: userdata.SeverityError, Code: fault.ConfigInvalid, Key: problem.Key, Message: problem.String()})
		}
		if len(o.problems) == 0 && role.Name != "" {
			fromTable, role = o.Explain(role), o.Apply(role)
		}
	}
	n.role = role
	for _, problem := range n.args.Problems() {
		// A missing type has been named above; what is wrong for the scripts of
		// CloudStack stops nothing here.
		if problem.Code == fault.RoleMissing {
			continue
		}
		if role.Owner == roles.CloudStack {
			problem.Severity = userdata.SeverityWarning
		}
		report.addProblem(bootArgsSource, problem)
	}
	report.Explain = n.args.Explain()
	for _, origin := range fromTable {
		report.Explain = append(report.Explain, userdata.Explanation(origin))
	}
	report.Hostname = n.args.Name()
	for _, nic := range n.args.Interfaces() {
		report.Interfaces = append(report.Interfaces, planInterface(nic))
	}
	report.Nameservers = n.args.Nameservers()
	switch {
	case raw == nil:
	case role.Owner == roles.CloudStack:
		report.addProblem(userdataSource, userdata.Problem{Severity: userdata.SeverityWarning, Code: fault.UserdataUnknown,
			Message: fmt.Sprintf("nodeagent reads no userdata on role %s: cloud-init or CloudStack's own scripts do", role.Name)})
	default: // also of an unknown role: all problems at once
		report.addKubernetes(n, raw)
	}
	if role.Name == "" {
		report.Kubernetes = nil
		return report
	}
	report.Role, report.Owner, report.SSHPort = role.Name, role.Owner, role.SSHPort
	report.Disk = &planDisk{MinimumBytes: role.MinimumDisk, RequestedBytes: n.args.RootDiskBytes()}
	if raw != nil && !n.needsDisk() { // an etcd node has the template's size
		report.Disk.MinimumBytes = 0
	}
	if requested, minimum := report.Disk.RequestedBytes, report.Disk.MinimumBytes; requested > 0 && requested < minimum {
		report.addProblem(bootArgsSource, userdata.Problem{Severity: userdata.SeverityError, Code: fault.DiskTooSmall, Key: "rootdisksize",
			Message: fmt.Sprintf("rootdisksize allows %s (%d bytes) of the root disk; role %s needs %s (%d bytes) at least",
				gibibytes(requested), requested, role.Name, gibibytes(minimum), minimum)})
	}
	report.Services = &planServices{Enable: nonNil(role.Enabled()), Disable: nonNil(role.Off), Leave: role.Leave, CloudStack: role.Theirs}
	for _, step := range bootPlan(n) {
		if step.Applies != nil && !step.Applies() {
			continue
		}
		listed := planStep{step.Name, []string{}}
		for _, need := range step.Needs {
			if slices.ContainsFunc(report.Steps, func(s planStep) bool { return s.Name == need }) {
				listed.Needs = append(listed.Needs, need)
			}
		}
		report.Steps = append(report.Steps, listed)
	}
	return report
}

func nonNil(list []string) []string {
	if list == nil {
		return []string{}
	}
	return list
}

func (r *planReport) addKubernetes(n *node, raw []byte) {
	intent, problems := userdata.Parse(raw)
	n.intent = intent
	for _, problem := range problems {
		r.addProblem(userdataSource, problem)
	}
	r.Explain = append(r.Explain, intent.Explain()...)
	intent = intent.Shown()
	r.Kubernetes = &planKubernetes{
		Mode: intent.Mode, Flavor: intent.Flavor, Version: intent.Version,
		Endpoint: intent.Endpoint, AdvertiseAddress: intent.AdvertiseAddress, BindPort: intent.BindPort, NodeName: intent.NodeName,
		CertSANs: intent.CertSANs, Token: intent.Token, TokenTTL: intent.TokenTTL,
		Discovery: intent.Discovery.String(), CACertHashes: intent.Discovery.CAHashes,
		CertificateKey: intent.CertificateKey, UploadCerts: intent.UploadCerts, IgnorePreflight: intent.IgnorePreflight,
		CRISocket: intent.CRISocket, KubeadmConfig: intent.KubeadmConfig, ExternalEtcd: intent.ExternalEtcd, ExternalCNI: intent.ExternalCNI,
		WaitAttempts: intent.WaitAttempts, EjectISO: intent.EjectISO, VRISO: intent.VRISO, Flags: intent.Flags,
		Handover: intent.Handover, HandoverReasons: intent.HandoverReasons,
	}
	if e := intent.Etcd; e != nil {
		etcd := planEtcd(*e)
		r.Kubernetes.Etcd = &etcd
	}
	if intent.WaitInterval > 0 {
		r.Kubernetes.WaitInterval = intent.WaitInterval.String()
	}
	if intent.Registry != nil {
		r.Kubernetes.Registry = intent.Registry.Host
	}
}

func (r *planReport) failed() bool {
	for _, problem := range r.Problems {
		if problem.Severity == userdata.SeverityError {
			return true
		}
	}
	return false
}

func (r *planReport) show(out io.Writer) {
	line := func(name, format string, args ...any) {
		fmt.Fprintf(out, "%-12s %s\n", name, fmt.Sprintf(format, args...))
	}
	if r.Role != "" {
		line("role", "%s (set up by %s)", r.Role, r.Owner)
	}
	if r.Hostname != "" {
		line("hostname", "%s", r.Hostname)
	}
	for _, nic := range r.Interfaces {
		text := nic.Address.String()
		if nic.Gateway.IsValid() {
			text += " via " + nic.Gateway.String()
		}
		line(nic.Name, "%s", text)
	}
	for _, server := range r.Nameservers {
		line("nameserver", "%s", server)
	}
	if r.Disk != nil {
		var sizes []string
		if r.Disk.MinimumBytes > 0 {
			sizes = append(sizes, "at least "+gibibytes(r.Disk.MinimumBytes))
		}
		if r.Disk.RequestedBytes > 0 {
			sizes = append(sizes, gibibytes(r.Disk.RequestedBytes)+" of it are used")
		}
		if len(sizes) > 0 {
			line("disk", "%s", strings.Join(sizes, ", "))
		}
	}
	if r.Services != nil {
		line("ssh", "port %d", r.SSHPort)
		line("enable", "%s", strings.Join(r.Services.Enable, ", "))
		line("disable", "%s", strings.Join(r.Services.Disable, ", "))
		if len(r.Services.Leave) > 0 {
			line("leave", "%s", strings.Join(r.Services.Leave, ", "))
		}
		if len(r.Services.CloudStack) > 0 {
			line("not ours", "%s (CloudStack's scripts switch them)", strings.Join(r.Services.CloudStack, ", "))
		}
	}
	if k := r.Kubernetes; k != nil {
		what := strings.TrimSpace(fmt.Sprintf("%s %s", k.Mode, k.Version))
		if k.Endpoint != "" {
			what += ", endpoint " + k.Endpoint
		}
		line("kubernetes", "%s, by %s", what, k.Handover)
		for _, reason := range k.HandoverReasons {
			line("", "%s", reason)
		}
	}
	for i, step := range r.Steps {
		name := ""
		if i == 0 {
			name = "steps"
		}
		needs := ""
		if len(step.Needs) > 0 {
			needs = "after " + strings.Join(step.Needs, ", ")
		}
		line(name, "%-12s %s", step.Name, needs)
	}
	for _, problem := range r.Problems {
		line(string(problem.Severity), "%s: %s", problem.Code, problem.Message)
	}
	r.explain(out)
}

// explain writes where the values came from, in columns.
func (r *planReport) explain(out io.Writer) {
	if len(r.Explain) == 0 {
		return
	}
	fmt.Fprintln(out, "\nWhere it came from")
	columns := tabwriter.NewWriter(out, 0, 8, 2, ' ', 0)
	for _, e := range r.Explain {
		fmt.Fprintf(columns, "%s\t%s\t%s\n", e.Key, agent.Printable(cut(e.Value, 60)), agent.Printable(e.From))
	}
	columns.Flush()
}
