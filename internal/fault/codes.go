// SPDX-License-Identifier: Apache-2.0

package fault

// Code names a kind of failure. Codes never change their meaning and are never
// reused; new ones are added.
type Code string

// The codes. Every one has an entry in Catalogue.
const (
	BootArgsMissing     Code = "boot-args-missing"
	BootArgsInvalid     Code = "boot-args-invalid"
	ConfigInvalid       Code = "config-invalid"
	RoleMissing         Code = "role-missing"
	RoleUnknown         Code = "role-unknown"
	SSHFailed           Code = "ssh-failed"
	DiskUnsupported     Code = "disk-unsupported"
	DiskTableInvalid    Code = "disk-table-invalid"
	DiskBlocked         Code = "disk-blocked"
	DiskGrowFailed      Code = "disk-grow-failed"
	DiskTooSmall        Code = "disk-too-small"
	HostSettingsFailed  Code = "host-settings-failed"
	NetworkFailed       Code = "network-failed"
	ServiceFailed       Code = "service-failed"
	UnitMissing         Code = "unit-missing"
	UserdataUnreachable Code = "userdata-unreachable"
	UserdataInvalid     Code = "userdata-invalid"
	UserdataUnknown     Code = "userdata-unknown"
	CloudInitFailed     Code = "cloud-init-failed"
	MachineTooSmall     Code = "machine-too-small"
	MachineIDInvalid    Code = "machine-id-invalid"
	CPULevelLow         Code = "cpu-level-low"
	DiskSpaceLow        Code = "disk-space-low"
	RuntimeUnfit        Code = "runtime-unfit"
	ISOMissing          Code = "iso-missing"
	ISOIncomplete       Code = "iso-incomplete"
	ISOInvalid          Code = "iso-invalid"
	ISOTruncated        Code = "iso-truncated"
	ISOChanged          Code = "iso-changed"
	ISOStalled          Code = "iso-stalled"
	ISOUnreadable       Code = "iso-unreadable"
	ISOChecksum         Code = "iso-checksum"
	InstallFailed       Code = "install-failed"
	ContainerdFailed    Code = "containerd-failed"
	SandboxMismatch     Code = "sandbox-image-mismatch"
	ImageImportFailed   Code = "image-import-failed"
	ImageMissing        Code = "image-missing"
	KubeadmPreflight    Code = "kubeadm-preflight"
	KubeadmInitFailed   Code = "kubeadm-init-failed"
	KubeadmJoinFailed   Code = "kubeadm-join-failed"
	APIUnreachable      Code = "api-unreachable"
	ClockSkew           Code = "clock-skew"

	ClusterCAMismatch     Code = "cluster-ca-mismatch"
	APICertificateInvalid Code = "api-certificate-invalid"
	JoinTokenInvalid      Code = "join-token-invalid"
	CertificateKeyExpired Code = "certificate-key-expired"
	CertificateKeyWrong   Code = "certificate-key-wrong"
	ClusterNotJoinable    Code = "cluster-not-joinable"
	NodeNameTaken         Code = "node-name-taken"
	VersionSkew           Code = "version-skew"
	EtcdLearnerLimit      Code = "etcd-learner-limit"
	EtcdUnhealthy         Code = "etcd-unhealthy"
	EtcdFailed            Code = "etcd-failed"
	EtcdDataForeign       Code = "etcd-data-foreign"
	EtcdDataMissing       Code = "etcd-data-missing"
	EtcdUnencrypted       Code = "etcd-unencrypted"
	KubeletFailed         Code = "kubelet-failed"
	ControlPlaneFailed    Code = "control-plane-failed"

	UpgradeFailed      Code = "upgrade-failed"
	KubeletRolledBack  Code = "kubelet-rolled-back"
	ResetFailed        Code = "reset-failed"
	OtherClusterMember Code = "other-cluster-member"

	AddOnFailed     Code = "add-on-failed"
	NodeNotReady    Code = "node-not-ready"
	Timeout         Code = "timeout"
	Interrupted     Code = "interrupted"
	StateUnreadable Code = "state-unreadable"
	Internal        Code = "internal"
)

// Entry explains a code.
type Entry struct {
	Code   Code
	Cause  string // what has happened, in general
	Remedy string // what an operator does about it
}

// Catalogue returns every code with its cause and remedy, in the order a boot
// can meet them.
func Catalogue() []Entry {
	return []Entry{
		{BootArgsMissing, "CloudStack's boot args did not reach the VM.",
			"On KVM check that the VM has the channel org.qemu.guest_agent.0 and that the agent log of the host shows patch.sh succeeding; then stop and start the VM from CloudStack."},
		{BootArgsInvalid, "The boot args hold a value that cannot be right.",
			"Compare the value named with the VM's NICs in CloudStack; stop and start the VM to have them sent again."},
		{ConfigInvalid, "A file below /etc/nodeagent holds something that cannot be right.", "Correct the key named in the file named, or remove the file."},
		{RoleMissing, "The boot args have no type=, so the role of this VM is not known.",
			"Stop and start the VM from CloudStack; if it stays, the template is used for a VM that is no system VM."},
		{RoleUnknown, "The boot args name a type= that this nodeagent does not know.",
			"Use a system VM template that matches the management server's version, or fix the type."},
		{SSHFailed, "The ssh server could not be started, or does not let CloudStack's server in.", "See `journalctl -u ssh`; check /etc/ssh/sshd_config with `sshd -t`."},
		{DiskUnsupported, "The root file system is on a device that cannot be grown.", "Use the partition layout of CloudStack's templates, or grow the root by hand."},
		{DiskTableInvalid, "The partition table of the root disk is damaged or unknown.", "Inspect it with `sfdisk --verify`; nothing was written."},
		{DiskBlocked, "Another partition follows the root partition directly.", "Rebuild the template with the root partition last."},
		{DiskGrowFailed, "Growing the root partition or its file system failed.", "Reboot: growing goes on where it stopped. If it fails again see `nodeagent grow --dry-run`."},
		{DiskTooSmall, "The root disk is smaller than the role needs.", "Give the node a larger root disk (noderootdisksize or the service offering) and start it again."},
		{HostSettingsFailed, "A setting of this machine (hostname, swap, kernel) could not be made.", "See the message; check that / is writable and not full."},
		{NetworkFailed, "The address, route or resolver of the boot args could not be set.", "Check the VM's NIC in CloudStack; `ip address` and `ip route` show what is set."},
		{ServiceFailed, "A systemd unit could not be started or stopped.", "See `systemctl status` of the unit named."},
		{UnitMissing, "A systemd unit the role wants does not exist on this template.", "Install the package that brings the unit into the template."},
		{UserdataUnreachable, "No config drive, router or boot arg had this node's userdata.", "Check that the network's virtual router runs and serves userdata and that nothing blocks port 80 to it; in a network with config drives, that the VM has one."},
		{UserdataInvalid, "The userdata cannot be used.", "Correct what the message names (`nodeagent plan` checks userdata anywhere); where the message says it was cut off, compare its length with what was sent."},
		{UserdataUnknown, "The userdata is not one nodeagent understands wholly; it was handed to cloud-init as it is.", "Nothing, if the template was edited on purpose; the reasons are in the message, what cloud-init did in /var/log/cloud-init-output.log."},
		{CloudInitFailed, "cloud-init reported an error.", "See /var/log/cloud-init-output.log and `cloud-init status --long`."},
		{MachineTooSmall, "The machine has less CPU or memory than its role in the cluster needs.", "Give the node a larger service offering and start it again."},
		{MachineIDInvalid, "/etc/machine-id is not one that the kubelet can use.", "Empty the file in the template; on this machine run `systemd-machine-id-setup`, then reboot."},
		{CPULevelLow, "The virtual CPU lacks instructions that programs in container images ask for.",
			"Set guest.cpu.mode=host-passthrough (or a newer guest.cpu.model) in agent.properties of the KVM host, then stop and start the VM."},
		{DiskSpaceLow, "The disk has too little space for the ISO's images.", "Give the node a larger root disk, or free space on it (`df -h /`), then `systemctl restart nodeagent`."},
		{RuntimeUnfit, "containerd or the kernel's cgroups do not fit the ISO's kubelet.", "Use a template with another containerd, or an ISO of another Kubernetes version; the message names both."},
		{ISOMissing, "The Kubernetes binaries ISO was not attached in time.", "Attach the ISO of the cluster's Kubernetes version to the VM; on VMware check that the VM has a free CD drive."},
		{ISOIncomplete, "The binaries ISO lacks files a node needs.", "Build the ISO again with create-kubernetes-binaries-iso.sh and register it as a new version."},
		{ISOInvalid, "A file on the binaries ISO cannot be used.", "Build the ISO again; check the downloads named in the message."},
		{ISOTruncated, "The binaries ISO is cut off: it says that it is larger than the medium.",
			"Compare the size of the ISO on the secondary storage with the builder's, register it again as a new version, and attach that one."},
		{ISOChanged, "Another medium took the binaries ISO's place while it was read.",
			"Attach the ISO of the cluster's version again and leave it there until the node is Ready; then `systemctl restart nodeagent`."},
		{ISOStalled, "The storage that holds the binaries ISO does not answer.",
			"Check the secondary storage that the hypervisor host has mounted for the ISO (CloudStack may have picked a bad one); when it answers again, reboot the node: it goes on where it stopped."},
		{ISOUnreadable, "The binaries ISO cannot be read.",
			"See `dmesg` for errors of the drive named; detach the ISO and attach it again, then `systemctl restart nodeagent`. `nodeagent iso check` on the ISO's file says whether it is whole."},
		{ISOChecksum, "The binaries ISO does not hold the files that its SHA256SUMS lists.",
			"Run `nodeagent iso check` on the ISO's file where it was built: where it is complete, the copy that was attached is damaged and is to be registered again; else run `nodeagent iso manifest` last before the ISO is made."},
		{InstallFailed, "A file of the binaries ISO could not be installed.", "Check free space with `df -h /` and that the ISO is still attached, then `systemctl restart nodeagent`."},
		{ContainerdFailed, "containerd did not come up with the settings Kubernetes needs.", "See `journalctl -u containerd` and /etc/containerd/config.toml."},
		{SandboxMismatch, "containerd uses another sandbox (pause) image than kubeadm expects.", "Check sandbox_image in /etc/containerd/config.toml and that no other program rewrites it."},
		{ImageImportFailed, "A container image of the ISO could not be imported.", "Check free space and `journalctl -u containerd`; build the ISO again if the file named is damaged."},
		{ImageMissing, "The ISO lacks a container image kubeadm needs.", "Build the ISO again: its docker/ folder must hold all of `kubeadm config images list`."},
		{KubeadmPreflight, "kubeadm's preflight checks found this machine unfit.", "Mend what the lines below name, then `systemctl restart nodeagent`."},
		{KubeadmInitFailed, "kubeadm init failed.", "See the lines below and `journalctl -u kubelet`, then `systemctl restart nodeagent`."},
		{KubeadmJoinFailed, "kubeadm join failed.", "See the lines below and `journalctl -u kubelet`, then `systemctl restart nodeagent`."},
		{APIUnreachable, "The cluster's API server did not answer this node.",
			"Check that the first control node came up (`nodeagent status` there) and that nothing blocks port 6443 to it; one that takes connections but stays silent has lost its etcd. Then `systemctl restart nodeagent`."},
		{ClockSkew, "This machine's clock and the API server's differ too much.",
			"Check the time service on both (`timedatectl`) and that they reach their time servers; then `systemctl restart nodeagent`."},
		{ClusterCAMismatch, "The cluster that answers is not the one the userdata names: its CA is another.",
			"Compare the hash in the userdata with the cluster's CA and the address with the cluster's; a node must not join a cluster that cannot prove itself."},
		{APICertificateInvalid, "The API server's certificate is not for the address this node reaches it at.",
			"Join at an address that the certificate names, or add this one to the cluster's certSANs and renew the certificate on its control nodes."},
		{JoinTokenInvalid, "The cluster does not accept the join token.",
			"Make a new one with `kubeadm token create` on a control node and give it to this node in its userdata; check too that the address is of the right cluster."},
		{CertificateKeyExpired, "The cluster no longer holds the certificates that a further control node needs.",
			"Upload them again on a control node (`kubeadm init phase upload-certs --upload-certs --certificate-key KEY`, KEY being that of this node's userdata), then `systemctl restart nodeagent` within two hours."},
		{CertificateKeyWrong, "The certificate key does not open the certificates that the cluster holds.",
			"Give this node the key they were uploaded with, or upload them again with this node's (`kubeadm init phase upload-certs --upload-certs --certificate-key KEY` on a control node)."},
		{ClusterNotJoinable, "The cluster answers, but lacks what nodes join by.",
			"Check that kubeadm init came to its end on the first control node; `kubeadm init phase upload-config all` and `kubeadm init phase bootstrap-token` there restore what the message names."},
		{NodeNameTaken, "The cluster has another node of this name.", "Rename this VM, or remove the other node with `kubectl delete node` if it is gone; then `systemctl restart nodeagent`."},
		{VersionSkew, "The Kubernetes version of the ISO does not fit the cluster's.", "Attach the ISO of the cluster's version, or upgrade the cluster first."},
		{EtcdLearnerLimit, "Another control node is joining the cluster: etcd takes one at a time.",
			"Nothing while another one joins. Otherwise a node has failed half way: remove its etcd member (`etcdctl member list`, `etcdctl member remove`) on a control node."},
		{EtcdUnhealthy, "The cluster's etcd does not answer, or not all of its members do.",
			"Look at the etcd members on a control node or the etcd nodes (`nodeagent status` there); remove one whose node is gone, then `systemctl restart nodeagent`."},
		{EtcdFailed, "etcd did not start on this node.", "See the lines below and `journalctl -u etcd`, then `systemctl restart nodeagent`."},
		{EtcdDataForeign, "There are data of etcd that are not those of the cluster to be made.",
			"Nothing was changed. Give the node the folder or the etcd of its own cluster; if the old data are given up for good, move them away. Then `systemctl restart nodeagent`."},
		{EtcdDataMissing, "The data of a member of etcd that has been part of its cluster are gone.",
			"Bring the folder back (is its disk mounted?). If it is lost: `etcdctl member remove` and `etcdctl member add` on another member, here remove AssertDirectoryNotEmpty= from /etc/systemd/system/etcd.service, then `systemctl daemon-reload` and `systemctl restart nodeagent`."},
		{EtcdUnencrypted, "etcd is spoken to without encryption: who sees the network sees all secrets of the cluster.",
			"Nothing, where the network is the cluster's alone (CloudStack's own etcd nodes are so). Else give etcd certificates in the template of its userdata."},
		{KubeletFailed, "kubelet did not come up.", "See `journalctl -u kubelet` and `systemctl status kubelet`, then `systemctl restart nodeagent`."},
		{ControlPlaneFailed, "The API server, controller manager or scheduler of this node did not come up.",
			"See `crictl ps -a` and the logs below /var/log/pods, those of etcd first; then `systemctl restart nodeagent`."},
		{UpgradeFailed, "kubeadm upgrade failed, or could not be begun.", "See the lines below and /var/log/nodeagent/kubeadm-upgrade.log; `nodeagent upgrade` goes on where it stopped."},
		{KubeletRolledBack, "The new kubelet did not come up; the one of before was put back.", "See `journalctl -u kubelet`, mend what it says and run `nodeagent upgrade` again: it goes on with the kubelet."},
		{ResetFailed, "The machine could not be returned to before its first boot.", "Mend what the message names and run `nodeagent reset` again: it does what is left."},
		{OtherClusterMember, "The machine is a member of another cluster than the one its userdata names.",
			"If it is to leave that one: `nodeagent reset` (its data goes too), remove the node there with `kubectl delete node`, and reboot."},
		{AddOnFailed, "A manifest of the ISO could not be applied.", "Apply it by hand with /opt/bin/kubectl, or rebuild the ISO with a valid manifest."},
		{NodeNotReady, "The node did not become Ready in time.", "See `kubectl describe node` and the pods of kube-system; a missing network plugin is the usual cause."},
		{Timeout, "A step did not end within its time.", "See what it waited for in the message."},
		{Interrupted, "nodeagent was stopped while this step ran.", "`systemctl start nodeagent` or reboot: it goes on where it stopped."},
		{StateUnreadable, "nodeagent's state file cannot be read.", "Delete the file named; the next run writes it anew."},
		{Internal, "nodeagent met something it has no name for.", "Report it with the output of `nodeagent status -o json` and `journalctl -u nodeagent`."},
	}
}

// Remedy returns the catalogue's remedy for the code.
func (c Code) Remedy() string {
	for _, entry := range Catalogue() {
		if entry.Code == c {
			return entry.Remedy
		}
	}
	return ""
}
