// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"encoding/binary"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// outside watches for packets whose destination is neither in the guest network nor
// in a private one, such as a cluster's pods and services: there is no way for them
// out of the namespace, but they come as far as the gateway.
type outside struct {
	socket *os.File
	ended  chan struct{}

	mu   sync.Mutex
	seen map[string]int
}

const maxOutside = 1000 // different packets that are told apart

func watchOutside(n *network) (*outside, error) {
	o := &outside{ended: make(chan struct{}), seen: map[string]int{}}
	err := n.do(func() error {
		const all = unix.ETH_P_ALL<<8&0xff00 | unix.ETH_P_ALL>>8 // in network order
		fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, all)
		if err == nil {
			// A file in non-blocking mode can be closed while it is read.
			o.socket = os.NewFile(uintptr(fd), "packets")
		}
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("cannot watch packets: %w", err)
	}
	go func() {
		defer close(o.ended)
		packet := make([]byte, 64<<10)
		for {
			n, err := o.socket.Read(packet)
			if errors.Is(err, os.ErrClosed) {
				return
			}
			if text := describeOutside(packet[:max(n, 0)]); err == nil && text != "" {
				o.note(text)
			}
			if err != nil {
				time.Sleep(time.Millisecond) // such as a device that went down
			}
		}
	}()
	return o, nil
}

func (o *outside) note(text string) {
	o.mu.Lock()
	defer o.mu.Unlock()
	if o.seen[text] > 0 || len(o.seen) < maxOutside {
		o.seen[text]++
	}
}

func (o *outside) close() error {
	err := o.socket.Close()
	<-o.ended
	return err
}

// describeOutside says what an IP packet to the outside is, and "" of any other one.
func describeOutside(packet []byte) string {
	var from, to netip.Addr
	var protocol byte
	var payload []byte
	switch {
	case len(packet) >= 20 && packet[0]>>4 == 4:
		header := int(packet[0]&15) * 4
		from, to = netip.AddrFrom4([4]byte(packet[12:16])), netip.AddrFrom4([4]byte(packet[16:20]))
		protocol, payload = packet[9], packet[min(header, len(packet)):]
	case len(packet) >= 40 && packet[0]>>4 == 6:
		from, to = netip.AddrFrom16([16]byte(packet[8:24])), netip.AddrFrom16([16]byte(packet[24:40]))
		protocol, payload = packet[6], packet[40:]
	default:
		return "" // such as ARP
	}
	if !to.IsGlobalUnicast() || to.IsPrivate() || guestNetwork.Contains(to) {
		return ""
	}
	if (protocol == unix.IPPROTO_TCP || protocol == unix.IPPROTO_UDP) && len(payload) >= 4 {
		name := map[byte]string{unix.IPPROTO_TCP: "TCP", unix.IPPROTO_UDP: "UDP"}[protocol]
		return fmt.Sprintf("%s to %s from %s", name, netip.AddrPortFrom(to, binary.BigEndian.Uint16(payload[2:])), from)
	}
	return fmt.Sprintf("IP protocol %d to %s from %s", protocol, to, from)
}

// Outside are the packets that machines sent to addresses outside of every private
// network so far, each kind once.
func (c *Cloud) Outside() []string {
	c.outside.mu.Lock()
	defer c.outside.mu.Unlock()
	return slices.Sorted(maps.Keys(c.outside.seen))
}
