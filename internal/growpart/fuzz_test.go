// SPDX-License-Identifier: Apache-2.0

package growpart

import (
	"encoding/binary"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"nodeagent/internal/fault"
)

var update = flag.Bool("update", false, "write the fuzz seeds anew from tables made by sfdisk")

// A seed is a disk as the sectors with a table in them: the number of sectors of
// the disk (32 bit), then for each of them its number (32 bit) and its bytes from
// the first entry to the signature.
const seedRecord = 4 + mbrSize - mbrEntries

// FuzzMBR takes any bytes for a disk. They are refused with a code, or every
// partition can be grown through sound tables only.
func FuzzMBR(f *testing.F) {
	f.Fuzz(func(t *testing.T, data []byte) {
		disk, ok := fromSeed(data)
		if !ok {
			return
		}
		table, err := readTable(disk, disk.sector, disk.sectors)
		if err != nil {
			if code := fault.As(err).Code; code != fault.DiskTableInvalid && code != fault.DiskUnsupported {
				t.Errorf("code %s of %v", code, err)
			}
			return
		}
		checkGrowth(t, disk, table)
	})
}

func fromSeed(data []byte) (*overlay, bool) {
	if len(data) < 4 || len(data) > 4+300*seedRecord {
		return nil, false
	}
	disk := &overlay{at: map[int64][]byte{}, sectors: int64(binary.LittleEndian.Uint32(data)) + 1, sector: 512}
	for data = data[4:]; len(data) >= seedRecord; data = data[seedRecord:] {
		sector := make([]byte, disk.sector)
		copy(sector[mbrEntries:], data[4:seedRecord])
		disk.at[int64(binary.LittleEndian.Uint32(data))] = sector
	}
	return disk, true
}

func toSeed(t *testing.T, disk *image, size int64) []byte {
	t.Helper()
	seed := binary.LittleEndian.AppendUint32(nil, uint32(size/512-1))
	add := func(lba int64) {
		seed = binary.LittleEndian.AppendUint32(seed, uint32(lba))
		seed = append(seed, sectorAt(t, disk, lba)[mbrEntries:]...)
	}
	add(0)
	for _, record := range disk.read(t).(*mbr).chain {
		add(record.lba)
	}
	return seed
}

// The seeds that are checked in are the tables of this package's tests; each is
// read, so that the fuzzer begins beyond the first checks.
func TestFuzzSeeds(t *testing.T) {
	t.Parallel()
	folder := filepath.Join("testdata", "fuzz", "FuzzMBR")
	for name, layout := range layouts() {
		path := filepath.Join(folder, strings.NewReplacer(" ", "-", ":", "", ",", "").Replace(name))
		seed := toSeed(t, layout.make(t), 9*gib)
		text := fmt.Sprintf("go test fuzz v1\n[]byte(%q)\n", seed)
		if *update {
			if err := os.MkdirAll(folder, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if _, err := os.Stat(path); err != nil {
			t.Errorf("%v; make it with -update", err)
		}
		disk, ok := fromSeed(seed)
		if !ok {
			t.Fatalf("%s is no seed", name)
		}
		table, err := readTable(disk, disk.sector, disk.sectors)
		if err != nil {
			t.Errorf("%s is refused: %v", name, err)
			continue
		}
		checkGrowth(t, disk, table)
	}
}
