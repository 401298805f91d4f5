// SPDX-License-Identifier: Apache-2.0

package userdata

import "path"

// This file is what messages may name of foreign text. Where a command, a setting or a
// key is expected there may be a piece of a password, for want of a quote: only words
// that everybody knows are said.

// knownProgram are programs and words of the shell that a message names.
var knownProgram = pattern(`^(?:` +
	`\.|:|\[\[?|\(\(|alias|bash|break|builtin|cd|command|continue|dash|declare|echo|eval|exec|exit|export|false|for|kill|let|local|printf|pwd|read|` +
	`readonly|return|set|sh|shift|shopt|source|test|time|trap|true|type|ulimit|umask|unset|wait|` +
	`add-apt-repository|apk|apt|apt-cache|apt-get|apt-key|debconf-set-selections|dnf|dpkg|gem|npm|pip3?|rpm|snap|yum|zypper|` +
	`awk|base64|basename|cat|chattr|chgrp|chmod|chown|cmp|comm|cp|cut|date|dd|diff|dirname|df|du|env|expr|file|find|getent|grep|egrep|fgrep|` +
	`gzip|gunzip|head|hexdump|id|install|jq|ln|ls|md5sum|mkdir|mkfifo|mktemp|mv|nice|nohup|numfmt|od|openssl|paste|patch|readlink|realpath|rev|rm|rmdir|` +
	`sed|seq|sha256sum|shuf|sleep|sort|split|stat|stty|sync|tac|tail|tar|tee|timeout|touch|tr|truncate|tty|uname|uniq|unzip|watch|wc|which|whoami|` +
	`xargs|xxd|xz|yes|yq|zcat|zip|zstd|` +
	`groupadd|useradd|userdel|usermod|passwd|chpasswd|su|visudo|` +
	`blkid|blockdev|cryptsetup|e2fsck|eject|fdisk|findmnt|fsck|fstrim|growpart|iscsiadm|losetup|lsblk|lvcreate|lvextend|lvresize|mdadm|mkfs|` +
	`mkfs\.(?:btrfs|ext3|ext4|xfs|vfat)|mkswap|mount|multipath|parted|partprobe|pvcreate|pvresize|resize2fs|sfdisk|sgdisk|swapoff|swapon|` +
	`tune2fs|umount|vgcreate|vgextend|wipefs|xfs_growfs|` +
	`dmesg|halt|hostname|hostnamectl|hwclock|insmod|journalctl|localectl|logger|loginctl|lscpu|lsmod|modprobe|netplan|networkctl|poweroff|reboot|` +
	`resolvectl|rmmod|service|shutdown|ssh-keygen|sysctl|systemctl|systemd-run|systemd-tmpfiles|timedatectl|udevadm|update-alternatives|` +
	`update-ca-certificates|update-ca-trust|update-grub|update-initramfs|` +
	`arping|bridge|brctl|curl|dhclient|dig|ethtool|host|ifconfig|ifdown|ifup|ip|ip6tables|iptables|iptables-restore|iptables-save|ipset|ipvsadm|nc|` +
	`ncat|netcat|netstat|nft|nmcli|nslookup|ping|route|rsync|scp|sftp|ss|ssh|sshd|tcpdump|telnet|ufw|wget|` +
	`ansible|ansible-playbook|aws|chef-client|chronyc|cilium|calicoctl|cloud-init|cmk|containerd|containerd-shim|crictl|cri-dockerd|crio|ctr|docker|` +
	`dockerd|etcd|etcdctl|git|go|gpg|helm|istioctl|k3s|kubeadm|kubectl|kubelet|kustomize|make|nerdctl|nginx|node|perl|podman|puppet|python|python3|` +
	`rke2|ruby|runc|setup-containerd|skopeo|terraform|vault|vim?)$`)

// programName returns the program of a command, or "" where it is not written out as
// one that everybody knows.
func programName(c shellCommand) string {
	for _, word := range c.words {
		if word == "sudo" || assignment().MatchString(word) {
			continue
		}
		name := word
		if binDirs().MatchString(path.Dir(word)) {
			name = path.Base(word)
		}
		if knownProgram().MatchString(name) {
			return path.Clean(word)
		}
		break
	}
	return ""
}

// unitKey are settings of a unit of systemd (systemd.unit(5), systemd.service(5),
// systemd.exec(5)) that a message names.
var unitKey = pattern(`^(?:\[(?:Unit|Service|Install)\]|Description|Documentation|After|Before|Wants|Requires|Requisite|BindsTo|PartOf|Upholds|Conflicts|` +
	`OnFailure|OnSuccess|RequiresMountsFor|WantsMountsFor|DefaultDependencies|StopWhenUnneeded|JobTimeoutSec|StartLimitInterval(?:Sec)?|StartLimitBurst|` +
	`(?:Condition|Assert)(?:Path(?:Exists|IsDirectory|IsMountPoint)|FileNotEmpty|FirstBoot|Host|KernelCommandLine|Virtualization)|` +
	`Type|RemainAfterExit|Exec(?:Start|StartPre|StartPost|Condition|Reload|Stop|StopPost)|Restart|RestartSec|Timeout(?:Start|Stop)?Sec|RuntimeMaxSec|` +
	`SuccessExitStatus|RestartPreventExitStatus|NotifyAccess|PIDFile|KillMode|KillSignal|User|Group|WorkingDirectory|Environment|EnvironmentFile|` +
	`PassEnvironment|UMask|Nice|OOMScoreAdjust|Standard(?:Input|Output|Error)|SyslogIdentifier|TTYPath|Delegate|Slice|` +
	`Limit(?:NOFILE|NPROC|CORE|MEMLOCK|STACK)|Tasks(?:Max|Accounting)|CPU(?:Accounting|Quota|Weight)|Memory(?:Accounting|Max|High)|` +
	`PrivateTmp|ProtectSystem|ProtectHome|NoNewPrivileges|WantedBy|RequiredBy|Also|Alias)$`)

// settingName returns the key of a setting, or "".
func settingName(setting unitSetting) string {
	if unitKey().MatchString(setting.key) {
		return setting.key
	}
	return ""
}

// inBrackets shows a name, if there is one.
func inBrackets(name string) string {
	if name == "" {
		return ""
	}
	return " (" + quote(name) + ")"
}

// cloudInitKey are keys of a cloud-config (cloud-init documentation, "Module
// reference") that a message names.
var cloudInitKey = pattern(`^(?:ansible|apk_repos|apt|apt_pipelining|apt_update|apt_upgrade|bootcmd|byobu_by_default|ca-certs|ca_certs|chef|chpasswd|` +
	`cloud_config_modules|cloud_final_modules|cloud_init_modules|create_hostname_file|datasource|datasource_list|device_aliases|disable_ec2_metadata|` +
	`disable_root|disable_root_opts|disk_setup|drivers|fan|final_message|fqdn|fs_setup|groups|growpart|grub-dpkg|grub_dpkg|hostname|keyboard|landscape|` +
	`locale|locale_configfile|lxd|manage_etc_hosts|manage-resolv-conf|manage_resolv_conf|mcollective|merge_how|merge_type|migrate|mount_default_fields|` +
	`mounts|network|no_ssh_fingerprints|ntp|output|package_reboot_if_required|package_update|package_upgrade|packages|password|phone_home|power_state|` +
	`prefer_fqdn_over_hostname|preserve_hostname|puppet|random_seed|reporting|resize_rootfs|resolv_conf|rh_subscription|rsyslog|runcmd|salt_minion|snap|` +
	`spacewalk|ssh|ssh_authorized_keys|ssh_deletekeys|ssh_fp_console_blacklist|ssh_genkeytypes|ssh_import_id|ssh_key_console_blacklist|ssh_keys|` +
	`ssh_publish_hostkeys|ssh_pwauth|ssh_quiet_keygen|swap|syslog_fix_perms|system_info|timezone|ubuntu_advantage|ubuntu_pro|unverified_modules|updates|` +
	`user|users|vendor_data|wireguard|write_files|yum_repos|zypper|content|path|permissions|owner|encoding|append|defer|source|name|sudo|shell|uid|gecos)$`)

// keyName names a key of a cloud-config.
func keyName(key string) string {
	if cloudInitKey().MatchString(key) {
		return "the key " + quote(key)
	}
	return "a key that is not cloud-init's"
}
