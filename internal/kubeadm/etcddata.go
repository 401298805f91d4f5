// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"crypto/sha1"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// This file tells whose data a folder of etcd holds, before etcd is started on it. The
// write-ahead log says which member of which cluster wrote it; the numbers of both
// follow from the members' URLs and the cluster's token (etcd's
// server/etcdserver/api/membership, member.go and cluster.go, the same since 2.0).

// etcdDirs are where a member keeps its data.
type etcdDirs struct{ data, wal string }

// dirs are the folders of the flags, else nodeagent's.
func (p EtcdPlan) dirs() etcdDirs {
	d := etcdDirs{data: p.flag("data-dir"), wal: p.flag("wal-dir")}
	if d.data == "" {
		d.data = etcdFolder
	}
	if d.wal == "" {
		d.wal = path.Join(d.data, "member/wal")
	}
	return d
}

// withData returns the plan with its data folder in the flags, and whether there are
// data of this member: those in its folder or, where the userdata name none, those that
// CloudStack's own unit has left in etcd's default folder. Any others are an error.
func (p EtcdPlan) withData(h *host.Host) (_ EtcdPlan, there bool, err error) {
	if p.flag("data-dir") == "" {
		folder := etcdFolder
		// Its working folder was /.
		if left := (etcdDirs{wal: "/" + p.Name + ".etcd/member/wal"}); !p.dirs().hasData(h) && left.hasData(h) && fs.ValidPath(p.Name) {
			folder = "/" + p.Name + ".etcd"
		}
		p.Flags = append(slices.Clip(p.Flags), "--data-dir", folder)
	}
	dirs := p.dirs()
	if !dirs.hasData(h) {
		return p, false, nil
	}
	cluster, member, err := readWAL(h, dirs.wal)
	if err != nil {
		return p, true, fault.Wrap(fault.EtcdDataForeign, err, "cannot tell whose the data of etcd in %s are", dirs.data)
	}
	wantCluster, members := p.ids()
	want := members[p.Name]
	switch {
	case p.State == stateExisting && cluster != wantCluster:
		// A member that was added later: only its cluster knows it.
		return p, true, nil
	case cluster != wantCluster:
		return p, true, fault.New(fault.EtcdDataForeign, "%s holds data of another cluster of etcd (%x); the userdata describe %x: %s, token %q",
			dirs.data, cluster, wantCluster, p.InitialCluster, p.Token)
	case member != want:
		whose := fmt.Sprintf("%x", member)
		for name, id := range members {
			if id == member {
				whose = name
			}
		}
		return p, true, fault.New(fault.EtcdDataForeign, "%s holds the data of member %s of etcd; this machine is %s", dirs.data, whose, p.Name)
	}
	return p, true, nil
}

// ids are the numbers that etcd gives a new cluster of the plan, and its members.
func (p EtcdPlan) ids() (cluster uint64, members map[string]uint64) {
	token := p.Token
	if token == "" {
		token = "etcd-cluster" // etcd's default
	}
	members = map[string]uint64{}
	var all []uint64
	for name, urls := range p.peerURLs() {
		id := firstOfSHA1([]byte(strings.Join(slices.Sorted(slices.Values(urls)), "") + token))
		members[name], all = id, append(all, id)
	}
	slices.Sort(all)
	var joined []byte
	for _, id := range all {
		joined = binary.BigEndian.AppendUint64(joined, id)
	}
	return firstOfSHA1(joined), members
}

func firstOfSHA1(data []byte) uint64 {
	sum := sha1.Sum(data)
	return binary.BigEndian.Uint64(sum[:8])
}

// hasData says, as etcd does, that a member has begun to write here.
func (d etcdDirs) hasData(h *host.Host) bool { return len(walFiles(h, d.wal)) > 0 }

func walFiles(h *host.Host, folder string) []string {
	entries, err := os.ReadDir(h.Path(folder))
	if err != nil {
		return nil
	}
	var names []string
	for _, entry := range entries {
		if path.Ext(entry.Name()) == ".wal" {
			names = append(names, entry.Name())
		}
	}
	return names
}

// readWAL returns which cluster and member wrote a log. Each of its files begins with it.
func readWAL(h *host.Host, folder string) (cluster, member uint64, err error) {
	const head = 4 << 10
	for _, name := range walFiles(h, folder) {
		var file *os.File
		if file, err = os.Open(h.Path(path.Join(folder, name))); err != nil {
			return 0, 0, err
		}
		var data []byte
		data, err = io.ReadAll(io.LimitReader(file, head))
		file.Close()
		if err != nil {
			return 0, 0, err
		}
		if cluster, member, err = parseWAL(data); err == nil {
			return cluster, member, nil
		}
	}
	return 0, 0, fmt.Errorf("cannot read the log in %s: %w", folder, err)
}

var errNotWAL = errors.New("it is not a log of etcd, or one that is damaged")

// parseWAL reads the records at the beginning of a log file until the metadata: each
// is a length of 8 bytes, whose uppermost says how much it is padded, and a message
// (etcd's server/storage/wal, encoder.go and walpb/record.proto).
func parseWAL(data []byte) (cluster, member uint64, err error) {
	const metadataType = 1
	for len(data) >= 8 {
		frame := binary.LittleEndian.Uint64(data)
		length, padding := frame&(1<<56-1), uint64(0)
		if frame>>63 == 1 {
			padding = frame >> 56 & 7
		}
		data = data[8:]
		if length == 0 || length > uint64(len(data)) {
			break
		}
		record, err := protoFields(data[:length])
		if err != nil {
			return 0, 0, err
		}
		if record[1].number == metadataType {
			metadata, err := protoFields(record[3].text) // NodeID, ClusterID
			if err != nil || metadata[1].number == 0 || metadata[2].number == 0 {
				return 0, 0, errNotWAL
			}
			return metadata[2].number, metadata[1].number, nil
		}
		data = data[min(length+padding, uint64(len(data))):]
	}
	return 0, 0, errNotWAL
}

type protoField struct {
	number uint64
	text   []byte
}

// protoFields reads a message of protobuf that has numbers and texts in it only
// (protobuf.dev/programming-guides/encoding).
func protoFields(message []byte) (map[uint64]protoField, error) {
	fields := map[uint64]protoField{}
	for len(message) > 0 {
		key, n := binary.Uvarint(message)
		if n <= 0 {
			return nil, errNotWAL
		}
		message = message[n:]
		value, n := binary.Uvarint(message)
		if n <= 0 {
			return nil, errNotWAL
		}
		message = message[n:]
		switch key & 7 {
		case 0:
			fields[key>>3] = protoField{number: value}
		case 2:
			if value > uint64(len(message)) {
				return nil, errNotWAL
			}
			fields[key>>3] = protoField{text: message[:value]}
			message = message[value:]
		default:
			return nil, errNotWAL
		}
	}
	return fields, nil
}
