// SPDX-License-Identifier: Apache-2.0

package userdata

import "bytes"

// The pool of key-value pairs that Hyper-V's host writes (pool 0, "external").
// hv_kvp_daemon keeps it below /var/lib/hyperv; CloudStack's scripts look below
// /var/opt/hyperv, where daemons of kernels before 3.9 put it (issue 3262).
const (
	kvpPool    = "/var/lib/hyperv/.kvp_pool_0"
	kvpPoolOld = "/var/opt/hyperv/.kvp_pool_0"
	kvpKey     = "cloudstack-vm-userdata"
)

// Sizes of a record's fields (HV_KVP_EXCHANGE_MAX_*_SIZE, linux/hyperv.h).
const (
	kvpKeySize    = 512
	kvpValueSize  = 2048
	kvpRecordSize = kvpKeySize + kvpValueSize
)

// parseKVP finds the boot args in a pool: records of a key and a value, each
// padded with NULs to its width. What is behind the first NUL may be the rest of
// an older entry. The daemon writes the pool anew, from its start, at every
// change, so a whole record is a valid one, and a part of one is still being
// written. Of a key that is there twice it looks at the first.
func parseKVP(pool []byte) (value string, found bool) {
	for ; len(pool) >= kvpRecordSize; pool = pool[kvpRecordSize:] {
		if untilNUL(pool[:kvpKeySize]) == kvpKey {
			return untilNUL(pool[kvpKeySize:kvpRecordSize]), true
		}
	}
	return "", false
}

func untilNUL(field []byte) string {
	text, _, _ := bytes.Cut(field, []byte{0})
	return string(text)
}
