// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host/hosttest"
)

// structure is one SMBIOS structure (DSP0134 6.1.2).
func structure(kind byte, formatted []byte, texts ...string) []byte {
	s := append([]byte{kind, byte(4 + len(formatted)), kind, 0}, formatted...)
	for _, text := range texts {
		s = append(append(s, text...), 0)
	}
	if len(texts) == 0 {
		s = append(s, 0)
	}
	return append(s, 0)
}

func dmiTableOf(oemStrings ...string) []byte {
	return bytes.Join([][]byte{
		structure(0, append([]byte{1, 2, 0, 0, 3, 0}, make([]byte, 12)...), "innotek GmbH", "VirtualBox", "12/01/2006"),
		structure(1, append([]byte{1, 2, 3, 0}, make([]byte, 19)...), "innotek GmbH", "VirtualBox", "1.2"),
		structure(32, make([]byte, 7)), // no strings
		structure(11, []byte{byte(len(oemStrings))}, oemStrings...),
		structure(127, nil),
	}, nil)
}

func TestParseDMI(t *testing.T) {
	t.Parallel()
	table := dmiTableOf("vboxVer_7.0", "cmdline: template=domP type=router name=r")
	noEnd := table[:len(table)-len(structure(127, nil))]
	tooShort := append(structure(1, []byte{0}, "a"), 2, 3, 0, 0, 0, 0)
	for _, test := range []struct {
		name  string
		table []byte
		want  string
		err   string
	}{
		{"an OEM string", table, " template=domP type=router name=r", ""},
		{"no end-of-table structure (SMBIOS 3)", noEnd, " template=domP type=router name=r", ""},
		{"within a string", dmiTableOf("x cmdline:a=b"), "a=b", ""},
		{"none", dmiTableOf("vboxVer_7.0"), "none", ""},
		{"behind the end", append(dmiTableOf("a"), structure(11, []byte{1}, "cmdline:a=b")...), "none", ""},
		{"empty", nil, "none", ""},
		{"a header cut off", []byte{1, 2, 3}, "none", ""},
		{"a length below the header's", tooShort, "", "at byte 8 cannot be 3 bytes long"},
		{"a length beyond the table", []byte{1, 200, 0, 0, 0, 0}, "", "at byte 0 cannot be 200 bytes long"},
		{"strings without end", noEnd[:len(noEnd)-2], "", "strings without end"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, found, err := parseDMI(test.table)
			if err == nil && !found {
				got = "none"
			}
			if got != test.want || (err == nil) != (test.err == "") || err != nil && !strings.Contains(err.Error(), test.err) {
				t.Errorf("got %q, %v, %v; want %q, error %q", got, found, err, test.want, test.err)
			}
		})
	}
}

// dmidecode reads the test's table as this package does.
func TestDMITableIsOne(t *testing.T) {
	t.Parallel()
	program := "/usr/sbin/dmidecode"
	if _, err := os.Stat(program); err != nil {
		t.Skip("dmidecode is not installed")
	}
	const value = " template=domP type=router name=r-4-VM"
	table := dmiTableOf("vboxVer_7.0", "cmdline:"+value)
	// A dump of dmidecode: the entry point (DSP0134 5.2.1) at 0, the table at 32.
	entry := make([]byte, 32)
	copy(entry, "_SM_")
	entry[5], entry[6], entry[7] = 31, 2, 8
	copy(entry[16:], "_DMI_")
	binary.LittleEndian.PutUint16(entry[22:], uint16(len(table)))
	binary.LittleEndian.PutUint32(entry[24:], 32)
	binary.LittleEndian.PutUint16(entry[28:], 5)
	entry[30] = 0x28
	// Both checksums make the sum of their bytes 0.
	checksum := func(span []byte) (sum byte) {
		for _, b := range span {
			sum -= b
		}
		return sum
	}
	entry[21] = checksum(entry[16:31])
	entry[4] = checksum(entry[:31])
	dump := filepath.Join(t.TempDir(), "dump")
	if err := os.WriteFile(dump, append(entry, table...), 0o644); err != nil {
		t.Fatal(err)
	}
	out, err := exec.Command(program, "--from-dump", dump).CombinedOutput()
	if err != nil || !strings.Contains(string(out), "String 2: cmdline:"+value+"\n") {
		t.Errorf("dmidecode: %v\n%s", err, out)
	}
	if got, found, err := parseDMI(table); err != nil || !found || got != value {
		t.Errorf("parseDMI = %q, %v, %v", got, found, err)
	}
}

// testdata/dmi-qemu.bin is /sys/firmware/dmi/tables/DMI of a QEMU 7.2 with
// -smbios type=11,value=...
func TestRealDMITable(t *testing.T) {
	t.Parallel()
	table, err := os.ReadFile("testdata/dmi-qemu.bin")
	if err != nil {
		t.Fatal(err)
	}
	if got, found, err := parseDMI(table); err != nil || !found || got != " template=domP type=router name=r-4-VM" {
		t.Errorf("got %q, %v, %v", got, found, err)
	}
	// Every byte of it changed: an answer or an error, no panic.
	for i := range table {
		damaged := bytes.Clone(table)
		damaged[i] ^= 0xff
		_, _, _ = parseDMI(damaged)
		_, _, _ = parseDMI(table[:i])
	}
}

func newVirtualBox(t *testing.T) *hosttest.Machine {
	m := hosttest.New(t)
	m.Write("/sys/class/dmi/id/product_name", "VirtualBox\n")
	return m
}

func TestVirtualBox(t *testing.T) {
	t.Parallel()
	m := newVirtualBox(t)
	m.Write(dmiTable, string(dmiTableOf("cmdline:"+testArgs)))
	args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	if err != nil || args.Name() != "n1" || source.Name != SourceDMI || source.Hypervisor != VirtualBox {
		t.Fatalf("got %v, %+v, %v", args, source, err)
	}
	if got := m.Read(CmdlineFile); got != testArgs {
		t.Errorf("%s = %q", CmdlineFile, got)
	}
	m = newVirtualBox(t)
	_, _, err = AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{}, quiet)
	if got := fault.As(err); got.Code != fault.BootArgsMissing || !strings.Contains(got.Message, dmiTable) || !strings.Contains(got.Hint, "VBoxManage") {
		t.Errorf("without a table: %+v", got)
	}
}

func FuzzDMI(f *testing.F) {
	table, err := os.ReadFile("testdata/dmi-qemu.bin")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(table)
	f.Add([]byte{1, 4, 0, 0, 'c', 0, 0, 127, 4, 0, 0, 0, 0})
	f.Add([]byte{11, 5, 0, 0, 1, 'x'})
	f.Fuzz(func(t *testing.T, table []byte) {
		text, found, err := parseDMI(table)
		if found && (err != nil || !bytes.Contains(table, []byte(dmiMarker+text)) || strings.Contains(text, "\x00")) {
			t.Errorf("%q (%v) is no string of the table", text, err)
		}
		// A damaged table shows nothing of its strings.
		const planted = "hunter2-and-more"
		damaged := append(structure(11, []byte{1}, planted), table...)
		if _, _, err := parseDMI(damaged); err != nil && strings.Contains(fmt.Sprint(err), planted) {
			t.Errorf("secret shown in %v", err)
		}
	})
}
