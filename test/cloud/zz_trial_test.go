// SPDX-License-Identifier: Apache-2.0

//go:build cloudtrial

package cloud

import (
	"context"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/google/uuid"
)

const prepare = `
set -x
growpart /dev/vda 2; growpart /dev/vda 6; resize2fs /dev/vda6
ip link set eth0 up; ip address replace 10.1.1.11/24 dev eth0; ip route replace default via 10.1.1.1
hostnamectl set-hostname control; echo "10.1.1.11 control" >> /etc/hosts
sed -i 's/3922/22/' /etc/ssh/sshd_config; systemctl restart ssh
swapoff -a; sed -i '/ swap /s/^/#/' /etc/fstab
sysctl -w net.ipv4.ip_forward=1
echo nameserver 10.1.1.1 > /etc/resolv.conf
dhclient -1 eth0
mkdir -p /run/nodeagent; touch /run/nodeagent/cloud-init; rm -f /etc/cloud/cloud-init.disabled; echo 'policy: enabled' > /etc/cloud/ds-identify.cfg
systemctl start --no-block containerd
systemctl start --no-block cloud-init cloud-config cloud-final
`

func TestTrial(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Minute)
	defer cancel()
	c, err := New(ctx, Options{Dir: "/tmp/cloudtrial/run", Log: os.Stdout})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	key, _ := NewKeyPair()
	p, err := NewUserdataParams(uuid.New(), netip.MustParseAddr("10.1.1.11"), "1.34.4", key.Public)
	if err != nil {
		t.Fatal(err)
	}
	data, err := ControlNodeUserdata(p)
	if err != nil {
		t.Fatal(err)
	}
	d := "/tmp/cloudtrial/"
	go func() {
		for {
			time.Sleep(time.Second)
			c.mu.Lock()
			var m *Machine
			if len(c.machines) > 0 {
				m = c.machines[0]
			}
			c.mu.Unlock()
			if m == nil || m.current() == nil {
				continue
			}
			if _, err := m.Agent().FileRead(ctx, bootArgsFile); err != nil {
				continue
			}
			result, err := m.Agent().Exec(ctx, "/bin/bash", "-c", prepare)
			c.logf("prepared %v %d\n%s%s", err, result.ExitCode, result.Stdout, result.Stderr)
			for range 200 {
				time.Sleep(25 * time.Second)
				r, err := m.Agent().Exec(ctx, "/bin/bash", "-c", "cat /proc/uptime; tail -4 /var/log/cloud-init-output.log; journalctl -u deploy-kube-system --no-pager | tail -3 | cut -c1-200")
				c.logf("%v %s%s", err, r.Stdout, r.Stderr)
			}
			return
		}
	}()
	cluster, err := c.Create(ctx, ClusterSpec{
		Machines: []MachineSpec{{Name: "control", Disk: d + "disk.qcow2", Kernel: d + "vmlinuz", Initrd: d + "initrd.img", DiskBytes: 12 << 30,
			Append:   "root=/dev/vda6 ro net.ifnames=0 biosdevname=0 console=ttyS0 systemd.wants=qemu-guest-agent.service systemd.mask=nodeagent.service",
			BootArgs: c.NodeArgs("control", netip.MustParseAddr("10.1.1.11")).String(), Userdata: data}},
		ISO: d + "binaries.iso", ISODelay: 20 * time.Second, Key: key, Pace: 5 * time.Second,
	})
	for _, g := range cluster.Gates {
		t.Log(g)
	}
	if err != nil {
		t.Error(err)
	}
	if len(cluster.Machines) > 0 {
		short, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		r, err := cluster.Machines[0].Agent().Exec(short, "/bin/bash", "-c", "tail -40 /var/log/cloud-init-output.log; journalctl -u deploy-kube-system --no-pager | tail -20; /opt/bin/kubectl --kubeconfig /etc/kubernetes/admin.conf get nodes,pods -A; systemctl status --no-pager cloud-init cloud-config cloud-final | head -60; cat /home/cloud/success; mount | grep k8sdisk")
		t.Logf("%v %s%s", err, r.Stdout, r.Stderr)
	}
	for _, q := range c.Router.Queries() {
		t.Log(q)
	}
	for _, q := range c.Router.Requests() {
		t.Log(q)
	}
}
