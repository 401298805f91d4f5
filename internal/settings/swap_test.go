// SPDX-License-Identifier: Apache-2.0

package settings

import (
	"context"
	"errors"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// C38: swap by UUID, by PARTUUID, found by GPT type, in zram, made by zram-generator
// and by services of their own is off, and stays off.
func TestSwapOffIsForGood(t *testing.T) {
	t.Parallel()
	ctx := context.Background()
	m := hosttest.New(t)
	fstab := "# swap comment\nUUID=a / ext4 defaults 0 1\nUUID=b none swap sw 0 0\n/dev/disk/by-partuuid/x\tnone\tswap\tsw\n" +
		" /swapfile none swap defaults 0 0\n/swap /mnt/swap ext4 defaults 0 0"
	m.Write("/etc/fstab", fstab)
	m.AddSwap("/dev/vda5")
	m.AddSwap("/dev/zram0")
	m.AddUnit(host.Unit{Name: "dev-vda5.swap", FileState: "generated", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "dev-zram0.swap", FileState: "generated", ActiveState: "active"})
	m.AddUnit(host.Unit{Name: "zramswap.service", FileState: "enabled"})
	for i, want := range []int{5, 0} { // masks, the service, two devices, fstab
		done, err := SwapOff(ctx, m.Host())
		if err != nil || len(done) != want {
			t.Fatalf("run %d: did %q (%v), want %d things", i, done, err, want)
		}
	}
	got := m.String()
	for _, want := range []string{"unit dev-vda5.swap: masked", "unit dev-zram0.swap: masked", "unit zramswap.service: disabled"} {
		if !strings.Contains(got, want) {
			t.Errorf("want %q in the machine:\n%s", want, got)
		}
	}
	if strings.Contains(got, "swap /dev") {
		t.Errorf("swap is on:\n%s", got)
	}
	want := "# swap comment\nUUID=a / ext4 defaults 0 1\n" +
		"# swap is off on a Kubernetes node (nodeagent): UUID=b none swap sw 0 0\n" +
		"# swap is off on a Kubernetes node (nodeagent): /dev/disk/by-partuuid/x\tnone\tswap\tsw\n" +
		"# swap is off on a Kubernetes node (nodeagent):  /swapfile none swap defaults 0 0\n" +
		"/swap /mnt/swap ext4 defaults 0 0"
	if got := m.Read("/etc/fstab"); got != want {
		t.Errorf("fstab is\n%s\nwant\n%s", got, want)
	}
}

// raceKernel is a kernel whose swapoff fails; gone says that somebody else was
// faster.
type raceKernel struct {
	host.Kernel
	m    *hosttest.Machine
	gone bool
}

func (k raceKernel) SwapOff(string) error {
	if k.gone {
		k.m.Write("/proc/swaps", "Filename Type\n")
	}
	return errors.New("invalid argument")
}

// A service that is being stopped turns its swap off itself; other failures count.
func TestSwapOffRacesWithAService(t *testing.T) {
	t.Parallel()
	for _, gone := range []bool{true, false} {
		m := hosttest.New(t)
		m.AddSwap("/dev/zram0")
		h := m.Host()
		h.Kernel = raceKernel{h.Kernel, m, gone}
		done, err := SwapOff(context.Background(), h)
		if (err == nil) != gone || len(done) != 0 {
			t.Errorf("gone %v: did %q, %v", gone, done, err)
		}
		if err != nil && (fault.As(err).Code != fault.HostSettingsFailed || !strings.Contains(err.Error(), "/dev/zram0: invalid argument")) {
			t.Errorf("error %v, want the device and the cause", err)
		}
	}
}
