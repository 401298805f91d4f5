// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"time"

	"nodeagent/internal/agent"
	"nodeagent/internal/fault"
	"nodeagent/internal/growpart"
	"nodeagent/internal/host"
	"nodeagent/internal/kubeadm"
	"nodeagent/internal/netsetup"
	"nodeagent/internal/roles"
	"nodeagent/internal/settings"
	"nodeagent/internal/userdata"
)

// Files through which nodeagent and the units of the template agree on who does
// what (see systemd/*.d).
const (
	ownsNodeFile  = "/run/nodeagent/owns-node"
	cloudInitFile = "/run/nodeagent/cloud-init"
	successFile   = "/home/cloud/success"

	// The user CloudStack's server logs in as.
	authorizedKeys = "/home/cloud/.ssh/authorized_keys"
)

// kubernetesRole is the role that nodeagent sets up wholly.
const kubernetesRole = "cksnode"

// node is one boot of one machine: what the steps find out, each fact written by
// one step and read by those that need it, and what they do with it.
type node struct {
	host   *host.Host
	update func(func(*agent.State)) // changes the state file

	instance    *agent.Instance  // made by an earlier boot, or nil
	was         *agent.Instance  // what it was until this boot's userdata, or nil
	installed   *agent.Installed // from a binaries ISO, by this boot or an earlier one, or nil
	known       bool             // this boot's userdata have been compared with those it was made of
	cloudInit   string           // the instance whose users and files an earlier boot has made
	provisioned bool             // an earlier boot has made it: CloudStack's success marker is there, or cloud-init has it

	args      userdata.BootArgs
	role      roles.Role // its Name is empty until it is known
	disk      growpart.Result
	diskBytes int64 // how much of the disk is used
	userdata  userdata.Userdata
	intent    userdata.Intent
	bundle    *kubeadm.Bundle // nil when the ISO is no longer needed
	images    []string        // the images kubeadm asks for
}

// stepRun is what a step runs.
type stepRun = func(ctx context.Context, report host.Report) (agent.Result, error)

// once makes a step of the one-time work that makes a node: skipped when an
// earlier boot has finished it.
func (n *node) once(run stepRun) stepRun {
	return func(ctx context.Context, report host.Report) (agent.Result, error) {
		if n.provisioned {
			return agent.Result{Skipped: true, Note: "done on an earlier boot"}, nil
		}
		return run(ctx, report)
	}
}

// fromISO makes a step that takes something from the binaries ISO: skipped when
// all of it is on the disk already, for then the ISO may be gone (C17).
func (n *node) fromISO(run stepRun) stepRun {
	return n.once(func(ctx context.Context, report host.Report) (agent.Result, error) {
		if n.hasISO() {
			return agent.Result{Skipped: true, Note: "installed before: " + n.installed.Version}, nil
		}
		return run(ctx, report)
	})
}

// hasISO says whether all that this machine needs of an ISO is on its disk.
func (n *node) hasISO() bool {
	return n.installed != nil && n.installed.InstanceID == n.instanceID() &&
		(n.intent.Version == "" || kubeadm.WithV(n.intent.Version) == n.installed.Version)
}

func (n *node) ownsNode() bool { return n.role.Owner == roles.NodeAgent }

// ownsSSH also holds when the role could not be found: then nobody else starts
// ssh. On the roles of CloudStack's own scripts these do, after their firewall.
func (n *node) ownsSSH() bool { return n.role.Owner != roles.CloudStack }

// makes says whether nodeagent itself makes this machine a node, of Kubernetes or of
// etcd alone.
func (n *node) makes() bool {
	if !n.ownsNode() {
		return false
	}
	if n.provisioned {
		return n.instance != nil && n.instance.By == userdata.HandoverNodeagent
	}
	return n.intent.Handover == userdata.HandoverNodeagent
}

func (n *node) makesKubernetes() bool { return n.makes() && n.mode() != userdata.ModeEtcd }

func (n *node) makesEtcd() bool { return n.makes() && n.mode() == userdata.ModeEtcd }

// mode is what the machine is to become, or was made by an earlier boot.
func (n *node) mode() userdata.Mode {
	if n.provisioned && n.instance != nil {
		return userdata.Mode(n.instance.Mode)
	}
	return n.intent.Mode
}

// handedOver says that an earlier boot has left this machine's making to cloud-init.
func (n *node) handedOver() bool {
	return n.instance != nil && n.instance.By == userdata.HandoverCloudInit
}

func (n *node) readBootArgs(ctx context.Context, report host.Report) (agent.Result, error) {
	args, source, err := userdata.AwaitBootArgs(ctx, n.host, userdata.AwaitOptions{}, report)
	if err != nil {
		return agent.Result{}, err
	}
	n.args = args
	return agent.Result{Note: source.String()}, nil
}

func (n *node) findRole(ctx context.Context, _ host.Report) (agent.Result, error) {
	role, err := roles.Find(n.args.Type())
	if err != nil {
		return agent.Result{}, err
	}
	// Whose node it is is known even where an override is wrong: that fails below.
	overrides, wrong := roles.ReadOverrides(n.host, roles.OverridesDir)
	if len(wrong) == 0 {
		role = overrides.Apply(role)
	}
	// Without systemd the step that sets the services fails, and says so.
	role, _ = roles.OnTemplate(ctx, n.host, role)
	n.role = role
	n.provisioned = n.ownsNode() && (n.host.Exists(successFile) || n.handedOver())
	n.update(func(s *agent.State) { s.Role, s.Owner, s.Node = role.Name, string(role.Owner), n.args.Name() })
	if n.provisioned && n.moved() {
		if err := kubeadm.HoldKubelet(ctx, n.host); err != nil {
			return agent.Result{}, fault.Wrap(fault.HostSettingsFailed, err, "cannot stop the kubelet of a disk that another machine was made on")
		}
	}
	// A gate that was opened on this boot by an agent that was killed stays open.
	if n.ownsNode() {
		_, err = n.host.WriteFile(ownsNodeFile, nil, 0o644)
	} else if role.UsesCloudInit() {
		_, err = n.host.WriteFile(cloudInitFile, nil, 0o644)
	}
	if err != nil {
		return agent.Result{}, fault.Wrap(fault.HostSettingsFailed, err, "cannot tell the template's units who owns this node")
	}
	result := agent.Result{Note: role.Name}
	if err := roles.Err(wrong); err != nil {
		return result, err
	}
	if changed := overrides.Of(role); changed > 0 {
		result.Note += fmt.Sprintf(", with %d overrides of %s", changed, roles.OverridesDir)
	}
	problems := n.args.Problems()
	// CloudStack's own scripts read the boot args of their roles in their own
	// way: what nodeagent finds wrong there stops nothing.
	if role.Owner == roles.NodeAgent {
		if err := userdata.Err(problems); err != nil {
			return result, err
		}
	}
	for _, problem := range problems {
		result.Warnings = append(result.Warnings, fault.New(problem.Code, "%s", problem.Message))
	}
	if n.provisioned {
		result.Note += ", set up on an earlier boot"
	}
	return result, nil
}

func (n *node) startSSH(ctx context.Context, _ host.Report) (agent.Result, error) {
	port := 0
	if n.ownsNode() {
		port = n.role.SSHPort
	}
	note, err := settings.SSH(ctx, n.host, port)
	return agent.Result{Note: note}, err
}

func (n *node) growRoot(ctx context.Context, _ host.Report) (agent.Result, error) {
	requested := n.args.RootDiskBytes()
	if requested == 0 {
		config, err := readConfig(n.host)
		if err != nil {
			return agent.Result{}, err
		}
		requested = config.RootDiskSize << 30
	}
	grown, err := growpart.Grow(ctx, n.host, "/", growpart.Options{RequestedBytes: requested})
	if err != nil {
		return agent.Result{}, err
	}
	n.disk, n.diskBytes = grown, grown.DiskBytes
	if requested > 0 {
		n.diskBytes = min(requested, grown.DiskBytes)
	}
	result := agent.Result{Note: grown.Note}
	if grown.Warning != nil {
		result.Warnings = append(result.Warnings, grown.Warning)
	}
	return result, nil
}

// nic is the node's own NIC: the one with the gateway, else the first with an
// address. Its address is the node's.
func (n *node) nic() userdata.Interface {
	var first userdata.Interface
	for _, nic := range n.args.Interfaces() {
		if nic.Gateway.IsValid() {
			return nic
		}
		if !first.Address.IsValid() {
			first = nic
		}
	}
	return first
}

func (n *node) address() netip.Addr { return n.nic().Address.Addr() }

func (n *node) setHostname(context.Context, host.Report) (agent.Result, error) {
	changed, err := netsetup.Hostname(n.host, n.args.Name(), n.address())
	return changedNote(n.args.Name(), changed), err
}

func changedNote(what string, changed bool) agent.Result {
	if !changed {
		what += ", unchanged"
	}
	return agent.Result{Note: what}
}

func (n *node) setNetwork(ctx context.Context, report host.Report) (agent.Result, error) {
	others, err := settings.OwnNetwork(ctx, n.host)
	if err != nil {
		return agent.Result{}, err
	}
	network := netsetup.Network{Nameservers: n.args.Nameservers()}
	for _, nic := range n.args.Interfaces() {
		network.Interfaces = append(network.Interfaces, netsetup.Interface{Name: nic.Name, Address: nic.Address, Gateway: nic.Gateway})
	}
	done, err := netsetup.Apply(ctx, n.host, network, report)
	return withDone(network.String(), others, done), err
}

// withDone says how something is and what was done to make it so.
func withDone(what string, done ...[]string) agent.Result {
	if all := slices.Concat(done...); len(all) > 0 {
		return agent.Result{Note: what + ": " + strings.Join(all, ", ")}
	}
	return agent.Result{Note: what + ", unchanged"}
}

func doneNote(done []string) agent.Result {
	if len(done) == 0 {
		return agent.Result{Note: "unchanged"}
	}
	return agent.Result{Note: strings.Join(done, ", ")}
}

func (n *node) turnSwapOff(ctx context.Context, _ host.Report) (agent.Result, error) {
	done, err := settings.SwapOff(ctx, n.host)
	return doneNote(done), err
}

func (n *node) setKernel(ctx context.Context, _ host.Report) (agent.Result, error) {
	var nics []string
	for _, nic := range n.args.Interfaces() {
		nics = append(nics, nic.Name)
	}
	done, err := settings.Kernel(ctx, n.host, nics)
	return doneNote(done), err
}

func (n *node) setMachine(ctx context.Context, _ host.Report) (agent.Result, error) {
	done, err := settings.Machine(ctx, n.host)
	return doneNote(done), err
}

func (n *node) setTime(ctx context.Context, _ host.Report) (agent.Result, error) {
	list, _ := n.args.Get("ntpserverlist")
	servers, wrong := settings.TimeServers(list)
	service, done, err := settings.Time(ctx, n.host, servers)
	switch {
	case service == "":
		service = "no time service on this template"
	case len(servers) > 0:
		service += " asks " + strings.Join(servers, " ")
	}
	result := withDone(service, done)
	if len(wrong) > 0 {
		result.Warnings = append(result.Warnings, fault.New(fault.BootArgsInvalid,
			"boot arg ntpserverlist: %q is no name or address of a server; it is not asked", wrong))
	}
	return result, err
}

func (n *node) setPacketFilters(ctx context.Context, _ host.Report) (agent.Result, error) {
	now, done, err := settings.PacketFilters(ctx, n.host)
	return withDone(now, done), err
}

func (n *node) setServices(ctx context.Context, _ host.Report) (agent.Result, error) {
	plan, err := roles.Apply(ctx, n.host, n.role)
	// A Kubernetes node's disk is judged when its userdata is known (checkMachine);
	// other roles have a minimum only by an override.
	if err == nil && !n.ownsNode() && n.diskBytes < n.role.MinimumDisk {
		err = fault.New(fault.DiskTooSmall, "the root disk %s has %s (%d bytes); role %s needs %s (%d bytes) at least",
			n.disk.Disk, gibibytes(n.diskBytes), n.diskBytes, n.role.Name, gibibytes(n.role.MinimumDisk), n.role.MinimumDisk)
	}
	return agent.Result{Note: plan.String()}, err
}

func (n *node) fetchOptions() userdata.FetchOptions {
	nic := n.nic()
	bootArg, _ := n.args.Get("userdata")
	options := userdata.FetchOptions{Name: n.args.Name(), BootArg: bootArg,
		Local: nic.Address.Addr(), Gateway: nic.Gateway, Interface: nic.Name}
	if n.instance != nil {
		options.Instance = n.instance.ID
	}
	return options
}

func (n *node) fetchUserdata(ctx context.Context, report host.Report) (agent.Result, error) {
	result, err := n.readUserdata(ctx, report)
	switch {
	case err != nil:
	case !n.provisioned:
		err = n.takeStock(ctx, &result, report)
	case n.moved():
		err = n.settleMove(ctx, &result)
	}
	return result, err
}

func (n *node) readUserdata(ctx context.Context, report host.Report) (agent.Result, error) {
	if n.provisioned {
		return n.recheckUserdata(ctx, report)
	}
	fetched, err := userdata.Fetch(ctx, n.host, n.fetchOptions(), report)
	if err != nil {
		return agent.Result{}, err
	}
	return n.takeUserdata(fetched)
}

// takeUserdata decides what this machine is to be.
func (n *node) takeUserdata(fetched userdata.Userdata) (agent.Result, error) {
	intent, problems := userdata.Parse(fetched.Raw)
	if err := userdata.Err(problems); err != nil {
		return agent.Result{}, err
	}
	n.userdata, n.intent = fetched, intent
	result := agent.Result{Note: fmt.Sprintf("%s, from %s", intent.Mode, fetched.Source)}
	for _, problem := range problems {
		result.Warnings = append(result.Warnings, fault.New(problem.Code, "%s", problem.Message))
	}
	if intent.Handover == userdata.HandoverCloudInit {
		result.Note += ", handed to cloud-init"
	}
	return result, nil
}

// recheckTimeout bounds the look for other userdata on a machine that is made: the
// router may be gone, and the node works without it.
const recheckTimeout = 10 * time.Second

// recheckUserdata looks whether CloudStack wants a machine that is made to be made
// again (contract 5.5). That it cannot find out is no failure.
func (n *node) recheckUserdata(ctx context.Context, report host.Report) (agent.Result, error) {
	if n.instance == nil { // made by others: there is nothing to compare with
		return agent.Result{Skipped: true, Note: "done on an earlier boot"}, nil
	}
	options := n.fetchOptions()
	if !n.moved() {
		options.Timeout = recheckTimeout
	}
	fetched, err := userdata.Fetch(ctx, n.host, options, report)
	if ctx.Err() != nil {
		return agent.Result{}, err
	}
	if err != nil {
		return n.compareUserdata(nil, err)
	}
	return n.compareUserdata(&fetched, nil)
}

// compareUserdata compares the userdata of this boot, nil for none because of
// missing, with those the machine was made of.
func (n *node) compareUserdata(now *userdata.Userdata, missing error) (agent.Result, error) {
	made := userdata.Made{InstanceID: n.instance.ID, Digest: n.instance.UserdataSHA256,
		Semaphores: userdata.ReadSemaphores(n.host, n.instance.ID)}
	change, reason := userdata.Compare(made, now)
	n.known = now != nil
	result := agent.Result{Skipped: true, Note: "done on an earlier boot; " + reason}
	switch {
	case change == userdata.ChangeNone && now == nil && made.Semaphores == userdata.SemaphoresRemoved:
		result.Warnings = []error{fault.Wrap(fault.UserdataUnreachable, missing, "%s", reason)}
		return result, nil
	case change == userdata.ChangeNone && now != nil && made.Digest == "":
		n.update(func(s *agent.State) {
			if s.Instance != nil {
				s.Instance.UserdataSHA256 = now.Digest()
			}
		})
		return result, nil
	case change == userdata.ChangeNone:
		return result, nil
	}
	taken, err := n.takeUserdata(*now)
	if err != nil {
		result.Warnings = []error{fault.Wrap(fault.UserdataInvalid, err, "%s, but cannot be used; the machine stays as it is", reason)}
		return result, nil
	}
	if err := n.forgetMade(); err != nil {
		return agent.Result{}, fault.Wrap(fault.HostSettingsFailed, err, "cannot make the machine again")
	}
	taken.Note += fmt.Sprintf("; %s: %s", change, reason)
	return taken, nil
}

// forgetMade makes this machine one that is to be made, for this boot and, should
// it be cut short, for those to come. The marker goes when cloud-init is bound to
// run again, the record last: until then every boot comes to the same decision.
func (n *node) forgetMade() error {
	n.update(func(s *agent.State) { s.CloudInit = "" })
	if _, err := n.host.Remove(successFile); err != nil {
		return err
	}
	n.host.Kernel.Sync()
	n.update(func(s *agent.State) { s.Instance = nil })
	n.provisioned, n.instance, n.cloudInit, n.was = false, nil, "", n.instance
	return nil
}

// runCloudInit hands cloud-init its seed and starts it. Only the stages that make
// users and files are awaited: the last one runs the stand-ins, which wait for
// nodeagent.
func (n *node) runCloudInit(ctx context.Context, report host.Report) (agent.Result, error) {
	fail := func(err error) (agent.Result, error) {
		return agent.Result{}, fault.Wrap(fault.CloudInitFailed, err, "cannot run cloud-init").WithLogPath("/var/log/cloud-init-output.log")
	}
	if n.provisioned && !n.handedOver() {
		return agent.Result{Skipped: true, Note: "done on an earlier boot"}, nil
	}
	if n.provisioned { // what it does at every boot, and what a power cut left undone
		if _, err := n.startCloudInit(ctx); err != nil {
			return fail(err)
		}
		return agent.Result{Note: "runs with the userdata of an earlier boot"}, nil
	}
	seed, err := userdata.Seed(n.userdata.Raw, n.intent)
	if err != nil {
		return fail(err)
	}
	if _, err := userdata.WriteSeed(n.host, n.userdata, seed); err != nil {
		return fail(err)
	}
	if err := n.forgetHalfDone(ctx); err != nil {
		return fail(err)
	}
	jobs, err := n.startCloudInit(ctx)
	if err != nil {
		return fail(err)
	}
	result := agent.Result{Note: "users and files made"}
	for _, job := range jobs[:len(jobs)-1] {
		report("waiting for %s", job.Unit)
		unit, err := n.host.Units.Wait(ctx, job)
		if err != nil {
			return fail(err)
		}
		// One module that fails makes its stage fail, whether the node needs it or
		// not: what the node needs is looked at below.
		if unit.ActiveState != "active" {
			result.Warnings = append(result.Warnings, fault.New(fault.CloudInitFailed,
				"a module of cloud-init failed: %s is %s (%s)", unit.Name, unit.ActiveState, unit.Result))
		}
	}
	if keys, err := n.host.ReadFile(authorizedKeys); n.intent.SSHKeys > 0 && (err != nil || len(keys) == 0) {
		return fail(fmt.Errorf("%s has no key, CloudStack cannot log in: %v", authorizedKeys, err))
	}
	if _, err := settings.EmptyRootKeys(n.host); err != nil {
		return fail(err)
	}
	n.host.Kernel.Sync()
	n.update(func(s *agent.State) { s.CloudInit = n.instanceID() })
	// cloud-init replaces the template's host keys by the machine's own.
	if _, err := n.host.Units.ReloadOrRestart(ctx, "ssh.service"); err != nil {
		return fail(err)
	}
	if n.intent.Handover == userdata.HandoverCloudInit {
		n.made()
		result.Note = "runs the userdata as it came"
	}
	return result, nil
}

// startCloudInit starts cloud-init's stages, in order.
func (n *node) startCloudInit(ctx context.Context) ([]host.Job, error) {
	if _, err := n.host.WriteFile(cloudInitFile, nil, 0o644); err != nil {
		return nil, err
	}
	var jobs []host.Job
	for _, unit := range n.role.OnDemand {
		job, err := n.host.Units.Start(ctx, unit)
		if err != nil {
			return nil, err
		}
		jobs = append(jobs, job)
	}
	return jobs, nil
}

// forgetHalfDone makes cloud-init run all of its modules again after a power cut in
// the middle of them: it notes each as done before it runs it.
func (n *node) forgetHalfDone(ctx context.Context) error {
	id := n.instanceID()
	if id == n.cloudInit {
		return nil
	}
	for _, stage := range n.role.OnDemand {
		unit, err := n.host.Units.State(ctx, stage)
		if err != nil || unit.Running() {
			return err // it runs, or has run on this boot
		}
	}
	return userdata.ForgetCloudInit(n.host, id)
}

// instanceID is CloudStack's id of this machine.
func (n *node) instanceID() string { return n.userdata.Meta["instance-id"] }

// made records what was made of this machine, and by whom; later boots only verify
// it.
func (n *node) made() {
	n.host.Kernel.Sync()
	n.update(func(s *agent.State) {
		s.Instance = &agent.Instance{ID: n.instanceID(), Mode: string(n.intent.Mode), NodeName: n.intent.NodeName, By: n.intent.Handover,
			BootID: s.BootID, Made: time.Now().UTC().Truncate(time.Second), UserdataSHA256: n.userdata.Digest(), SystemUUID: systemUUID(n.host)}
	})
}

// needsDisk says whether the node is one that CloudStack promises a minimum disk;
// an etcd node gets the template's.
func (n *node) needsDisk() bool {
	return n.ownsNode() && (n.provisioned || slices.Contains([]userdata.Mode{userdata.ModeInit, userdata.ModeJoin, userdata.ModeJoinControlPlane}, n.intent.Mode))
}

// checkMachine is what can be known to be wrong before the ISO is there, all of it
// at once.
func (n *node) checkMachine(ctx context.Context, _ host.Report) (agent.Result, error) {
	var failures []error
	if n.diskBytes < n.role.MinimumDisk {
		has := "has"
		if n.diskBytes < n.disk.DiskBytes {
			has = fmt.Sprintf("has %s of which rootdisksize allows", gibibytes(n.disk.DiskBytes))
		}
		failures = append(failures, fault.New(fault.DiskTooSmall,
			"the root disk %s %s %s (%d bytes); a Kubernetes node needs %s (%d bytes) at least",
			n.disk.Disk, has, gibibytes(n.diskBytes), n.diskBytes, gibibytes(n.role.MinimumDisk), n.role.MinimumDisk))
	}
	result := agent.Result{Note: fmt.Sprintf("root disk of %s", gibibytes(n.diskBytes))}
	if n.makesKubernetes() {
		machine, err := kubeadm.ReadMachine(ctx, n.host)
		if err != nil {
			return result, fault.Join(fault.HostSettingsFailed, append(failures, err))
		}
		unfit, warnings := machine.Unfit(n.intent.Mode != userdata.ModeJoin, n.intent.IgnorePreflight)
		failures, result.Warnings = append(failures, unfit...), warnings
		result.Note += ", " + machine.String()
	}
	if len(failures) > 0 {
		return result, fault.Join(fault.HostSettingsFailed, failures)
	}
	return result, nil
}

func gibibytes(bytes int64) string { return fmt.Sprintf("%.1f GiB", float64(bytes)/(1<<30)) }

// isoPatience is how long the userdata's own script would look for the ISO: an
// administrator who needs longer has set it there.
func (n *node) isoPatience() time.Duration {
	return n.intent.WaitInterval * time.Duration(n.intent.WaitAttempts)
}

func (n *node) findISO(ctx context.Context, report host.Report) (agent.Result, error) {
	bundle, err := kubeadm.FindISO(ctx, n.host, n.intent.Version, n.intent.VRISO, report)
	if err != nil {
		return agent.Result{}, err
	}
	n.bundle = bundle
	result := agent.Result{Note: fmt.Sprintf("%s on %s, %d images", bundle.Version, bundle.Source(), len(bundle.Images))}
	if n.makesEtcd() { // neither containerd nor the images are for it
		return result, nil
	}
	machine, err := kubeadm.ReadMachine(ctx, n.host)
	if err != nil {
		return result, err
	}
	failures, warnings := machine.UnfitFor(n.version(), bundle.ImageBytes())
	result.Warnings = warnings
	if len(failures) > 0 {
		return result, fault.Join(fault.ISOInvalid, failures)
	}
	return result, nil
}

func (n *node) install(ctx context.Context, _ host.Report) (agent.Result, error) {
	if n.makesEtcd() {
		changed, err := kubeadm.InstallEtcd(ctx, n.host, n.bundle)
		return changedNote("etcd and its tools", changed), err
	}
	changed, err := kubeadm.Install(ctx, n.host, n.bundle)
	return changedNote("programs and units, "+n.bundle.Verification(), changed), err
}

func (n *node) version() string {
	switch {
	case n.intent.Version != "":
		return n.intent.Version
	case n.bundle != nil:
		return n.bundle.Version
	}
	return n.installed.Version
}

func (n *node) registry() *kubeadm.Registry {
	r := n.intent.Registry
	if r == nil {
		return nil
	}
	return &kubeadm.Registry{Host: r.Host, URL: r.URL, Username: r.Username, Password: r.Password, Token: r.Token}
}

func (n *node) configureContainerd(ctx context.Context, report host.Report) (agent.Result, error) {
	images, err := kubeadm.Images(ctx, n.host, n.version(), n.initPlan().ImageRepository())
	if err != nil {
		return agent.Result{}, fault.Wrap(fault.InstallFailed, err, "cannot ask kubeadm for its images")
	}
	n.images = images
	sandbox, err := kubeadm.SandboxImage(images)
	if err != nil {
		return agent.Result{}, fault.Wrap(fault.SandboxMismatch, err, "cannot tell the sandbox image")
	}
	changed, err := kubeadm.ConfigureContainerd(ctx, n.host, sandbox, n.registry(), report)
	return changedNote("sandbox image "+sandbox, changed), err
}

func (n *node) importImages(ctx context.Context, report host.Report) (agent.Result, error) {
	want, leave, without := n.images, []string(nil), ""
	if n.intent.Mode == userdata.ModeJoin {
		want, leave = kubeadm.ForWorker(n.images)
		without = ", without the control plane's"
	}
	if err := kubeadm.ImportImages(ctx, n.host, n.bundle, want, leave, report); err != nil {
		return agent.Result{}, err
	}
	return agent.Result{Note: n.imagesNote(without)}, nil
}

func (n *node) imagesNote(without string) string {
	return fmt.Sprintf("%d files, %d MB, %s%s", len(n.bundle.Images), n.bundle.ImageBytes()/1e6, n.bundle.Verification(), without)
}

// releaseISO lets go of the ISO and records that it is not needed any more.
func (n *node) releaseISO(context.Context, host.Report) (agent.Result, error) {
	if n.bundle == nil {
		// A kill may have come between the record and the end of what was fetched.
		return agent.Result{Skipped: true, Note: "installed before: " + n.installed.Version}, kubeadm.Forget(n.host)
	}
	// Recorded first, and on the disk: after the ejection there is no way back.
	n.host.Kernel.Sync()
	n.update(func(s *agent.State) {
		s.Installed = &agent.Installed{InstanceID: n.instanceID(), Version: n.bundle.Version, SystemUUID: systemUUID(n.host)}
	})
	if err := n.bundle.Release(n.host, n.intent.EjectISO); err != nil {
		return agent.Result{Note: "still mounted", Warnings: []error{fault.Wrap(fault.ISOInvalid, err, "cannot let go of the binaries ISO")}}, nil
	}
	return agent.Result{Note: "not needed any more"}, nil
}

func (n *node) initPlan() kubeadm.InitPlan {
	return kubeadm.InitPlan{
		NodeName:         n.nodeName(),
		AdvertiseAddress: n.address().String(),
		Version:          n.version(),
		Endpoint:         n.intent.Endpoint,
		CertSANs:         n.intent.CertSANs,
		Token:            n.intent.Token,
		TokenTTL:         n.intent.TokenTTL,
		CertificateKey:   n.intent.CertificateKey,
		UploadCerts:      n.intent.UploadCerts,
		ExternalEtcd:     n.intent.ExternalEtcd,
		Documents:        n.intent.KubeadmDocuments,
		Flags:            n.intent.KubeadmFlags(),
	}
}

// nodeName is what the cluster knows this machine by: the name that the userdata give
// it, else the machine's own, by which CloudStack looks for it.
func (n *node) nodeName() string {
	name := n.intent.NodeName
	if n.provisioned && n.instance != nil {
		name = n.instance.NodeName
	}
	return strings.ToLower(cmp.Or(name, n.args.Name()))
}

func (n *node) joinPlan() kubeadm.JoinPlan {
	return kubeadm.JoinPlan{
		NodeName:          n.nodeName(),
		Version:           n.version(),
		Endpoint:          n.intent.Endpoint,
		Token:             n.intent.Token,
		CAHashes:          n.intent.Discovery.CAHashes,
		UnsafeSkipCA:      n.intent.Discovery.UnsafeSkipCA,
		DiscoveryFile:     n.intent.Discovery.File,
		TLSBootstrapToken: n.intent.Discovery.TLSBootstrapToken,
		ControlPlane:      n.intent.Mode == userdata.ModeJoinControlPlane,
		AdvertiseAddress:  n.address().String(),
		CertificateKey:    n.intent.CertificateKey,
		Documents:         n.intent.KubeadmDocuments,
		Flags:             n.intent.KubeadmFlags(),
	}
}

// joinPatience is how long a node that joins waits for its cluster: CloudStack
// starts all machines of a cluster before it attaches the first ISO, and gives the
// whole an hour. One whose etcd is elsewhere waits for that.
func (n *node) joinPatience() time.Duration {
	if n.intent.Joins() || len(n.intent.ExternalEtcd) > 0 {
		return 75 * time.Minute
	}
	return 0
}

func (n *node) runKubeadm(ctx context.Context, report host.Report) (agent.Result, error) {
	if !n.intent.Joins() {
		return n.runInit(ctx, report)
	}
	plan := n.joinPlan()
	ca, err := kubeadm.Join(ctx, n.host, plan, report)
	what := "worker "
	if plan.ControlPlane {
		what = "one more control plane "
	}
	result := agent.Result{Note: what + n.version() + " of " + cmp.Or(n.intent.Endpoint, "the cluster in "+n.intent.Discovery.File)}
	if ca.Hash != "" && !ca.Verified {
		result.Note += "; CA not verified, it was " + ca.Hash
	}
	return result, err
}

func (n *node) runInit(ctx context.Context, report host.Report) (agent.Result, error) {
	plan, result := n.initPlan(), agent.Result{Note: "control plane " + n.version()}
	down, err := kubeadm.AwaitExternalEtcd(ctx, n.host, plan, report)
	if err != nil {
		return result, err
	}
	if len(n.intent.ExternalEtcd) > 0 {
		result.Note += " on etcd at " + strings.Join(n.intent.ExternalEtcd, ", ")
	}
	if len(down) > 0 {
		result.Warnings = append(result.Warnings, fault.New(fault.EtcdUnhealthy, "not all of etcd is healthy: %s", strings.Join(down, ", ")))
		// kubeadm would not begin without one of them.
		plan.Flags = append(plan.Flags, "--ignore-preflight-errors=ExternalEtcdVersion")
	}
	result.Warnings = append(result.Warnings, unencrypted(n.intent.ExternalEtcd)...)
	return result, kubeadm.Init(ctx, n.host, plan, report)
}

// unencrypted warns of those URLs of etcd that anybody in the network can listen to.
func unencrypted(urls []string) []error {
	plain := slices.DeleteFunc(slices.Clone(urls), func(url string) bool { return !strings.HasPrefix(url, "http://") })
	if len(plain) == 0 {
		return nil
	}
	return []error{fault.New(fault.EtcdUnencrypted, "etcd is spoken to without encryption: %s", strings.Join(plain, ", "))}
}

// etcdPatience is how long a member waits for the others: CloudStack attaches the ISO
// to one after the other.
func (n *node) etcdPatience() time.Duration { return max(isoTimeout, n.isoPatience()) }

// runEtcd makes the member of etcd; later boots only see that it runs.
func (n *node) runEtcd(ctx context.Context, report host.Report) (agent.Result, error) {
	var member kubeadm.EtcdMember
	var err error
	if e := n.intent.Etcd; e != nil && !n.provisioned {
		member, err = kubeadm.MakeEtcd(ctx, n.host, kubeadm.EtcdPlan{Name: e.Name, InitialCluster: e.InitialCluster,
			State: e.State, Token: e.Token, Flags: e.Flags}, report)
	} else {
		member, err = kubeadm.RunEtcd(ctx, n.host, report)
	}
	if err != nil {
		return agent.Result{}, err
	}
	return agent.Result{Note: member.String(), Warnings: unencrypted(member.URLs)}, nil
}

func (n *node) applyAddOns(ctx context.Context, report host.Report) (agent.Result, error) {
	if n.intent.Joins() {
		return agent.Result{Skipped: true, Note: "the first control node's"}, nil
	}
	return agent.Result{}, kubeadm.ApplyAddOns(ctx, n.host, kubeadm.AddOns{ExternalCNI: n.intent.ExternalCNI}, report)
}

func (n *node) awaitReady(ctx context.Context, report host.Report) (agent.Result, error) {
	if n.intent.ExternalCNI && !n.provisioned {
		// Whoever brings the network plugin may wait for the success marker first.
		return agent.Result{Skipped: true, Note: "not awaited: the network plugin does not come from the ISO"}, nil
	}
	return agent.Result{}, kubeadm.WaitReady(ctx, n.host, n.nodeName(), report)
}

func (n *node) writeSuccess(context.Context, host.Report) (agent.Result, error) {
	if n.provisioned {
		return agent.Result{Note: "is there"}, nil
	}
	n.made()
	if err := os.MkdirAll(n.host.Path("/home/cloud"), 0o755); err != nil {
		return agent.Result{}, fault.Wrap(fault.HostSettingsFailed, err, "cannot write %s", successFile)
	}
	if _, err := n.host.WriteFile(successFile, []byte("true\n"), 0o644); err != nil {
		return agent.Result{}, fault.Wrap(fault.HostSettingsFailed, err, "cannot write %s", successFile)
	}
	return agent.Result{Note: successFile}, nil
}
