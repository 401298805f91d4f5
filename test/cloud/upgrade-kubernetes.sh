#!/bin/bash -e
# What the management server's own script of that name does on a node (contract 5.4),
# CloudStack 4.17 and newer: VERSION FIRST-CONTROL-NODE OLDER-THAN-1.15 EJECT.
version="$1"
first="$2"
eject="$4"
export PATH="${PATH}:/opt/bin"
mount_dir=/mnt/k8sdisk
binaries="${mount_dir}/"

device=""
for (( round = 1; round <= 10; round++ )); do
  for candidate in $(blkid -o device -t TYPE=iso9660 || true); do
    mkdir -p "${mount_dir}"
    if mount -o ro "${candidate}" "${mount_dir}"; then
      device="${candidate}"
      break
    fi
  done
  [ ! -d "${binaries}" ] || break
  sleep 5
done
# As in CloudStack, nothing done without an ISO is a success.
[ -d "${binaries}" ] || exit 0

cp "${binaries}/k8s/kubeadm" /opt/bin
chmod +x /opt/bin/kubeadm
for archive in "${binaries}"/docker/*; do
  ctr -n k8s.io image import "${archive}"
done
if [ -e "${binaries}/autoscaler.yaml" ]; then
  mkdir -p /opt/autoscaler
  cp "${binaries}/autoscaler.yaml" /opt/autoscaler/autoscaler_tmpl.yaml
fi
if [ -e "${binaries}/provider.yaml" ]; then
  mkdir -p /opt/provider
  cp "${binaries}/provider.yaml" /opt/provider/provider.yaml
fi
pause_image=$(ctr -n k8s.io images ls -q | grep pause | sort | tail -n 1)
sed -i "s|sandbox_image = .*|sandbox_image = \"${pause_image}\"|g" /etc/containerd/config.toml
systemctl restart containerd
tar -xzf "${binaries}"/cni/cni-plugins-*64.tgz -C /opt/cni/bin
tar -xzf "${binaries}"/cri-tools/crictl-linux-*64.tar.gz -C /opt/bin

if [ "${first}" = true ]; then
  kubeadm --v=5 upgrade apply "${version}" -y ||
    kubeadm --v=5 upgrade apply "${version}" --ignore-preflight-errors=CoreDNSUnsupportedPlugins -y
else
  kubeadm upgrade node
fi

systemctl stop kubelet
cp -a "${binaries}"/k8s/{kubelet,kubectl} /opt/bin
chmod +x /opt/bin/{kubelet,kubectl}
systemctl restart kubelet

if [ "${first}" = true ]; then
  kubectl apply -f "${binaries}/network.yaml"
  kubectl apply -f "${binaries}/dashboard.yaml"
fi
umount "${mount_dir}" && rmdir "${mount_dir}"
if [ "${eject}" = true ]; then
  eject "${device}"
fi
