// SPDX-License-Identifier: Apache-2.0

package fault

// Section is where the documentation says more of a code: a file of docs/ and the
// anchor of its section. It is "" for a code that is not in the catalogue.
func (c Code) Section() string {
	const operating = "operating.md#"
	switch c {
	case BootArgsMissing, BootArgsInvalid, RoleMissing, RoleUnknown:
		return operating + "no-boot-args"
	case SSHFailed:
		return operating + "ssh-is-refused"
	case DiskUnsupported, DiskTableInvalid, DiskBlocked, DiskGrowFailed:
		return operating + "the-disk-did-not-grow"
	case DiskTooSmall, MachineTooSmall, MachineIDInvalid, CPULevelLow, RuntimeUnfit:
		return operating + "the-machine-is-unfit"
	case DiskSpaceLow:
		return operating + "the-disk-is-full"
	case ConfigInvalid, HostSettingsFailed, NetworkFailed, ServiceFailed, UnitMissing:
		return operating + "a-setting-or-a-service-failed"
	case UserdataUnreachable:
		return operating + "the-userdata-is-not-found"
	case UserdataInvalid, UserdataUnknown, CloudInitFailed:
		return operating + "the-userdata-is-not-used"
	case ISOMissing:
		return operating + "the-iso-does-not-come"
	case ISOIncomplete, ISOInvalid, ISOTruncated, ISOChanged, ISOStalled, ISOUnreadable, ISOChecksum, InstallFailed:
		return operating + "the-iso-is-bad"
	case ContainerdFailed, SandboxMismatch, ImageImportFailed, ImageMissing:
		return operating + "images-are-missing"
	case KubeadmPreflight, KubeadmInitFailed, KubeletFailed, ControlPlaneFailed:
		return operating + "kubeadm-failed"
	case KubeadmJoinFailed, APIUnreachable, ClockSkew, ClusterCAMismatch, APICertificateInvalid, JoinTokenInvalid, ClusterNotJoinable, NodeNameTaken, VersionSkew:
		return operating + "a-worker-does-not-join"
	case CertificateKeyExpired, CertificateKeyWrong, EtcdLearnerLimit, EtcdUnhealthy:
		return operating + "a-further-control-node-does-not-join"
	case EtcdFailed, EtcdDataForeign, EtcdDataMissing, EtcdUnencrypted:
		return operating + "an-etcd-node-fails"
	case UpgradeFailed, KubeletRolledBack:
		return operating + "an-upgrade-failed"
	case ResetFailed:
		return operating + "out-of-every-state"
	case OtherClusterMember:
		return operating + "a-copied-disk"
	case AddOnFailed, NodeNotReady:
		return operating + "the-node-is-up-but-never-ready"
	case Timeout, Interrupted, StateUnreadable, Internal:
		return operating + "nodeagent-itself-is-in-trouble"
	}
	return ""
}
