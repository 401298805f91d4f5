// SPDX-License-Identifier: Apache-2.0

package template

import (
	"bytes"
	"encoding/hex"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
)

func itoa(number int64) string { return strconv.FormatInt(number, 10) }

func TestBootCode(t *testing.T) {
	t.Parallel()
	boot, err := os.ReadFile(filepath.Join(grubFolder, "i386-pc", "boot.img"))
	if err != nil {
		missing(t, "grub-pc-bin")
	}
	code, err := bootCode(boot, 0x0102030405)
	if err != nil {
		t.Fatal(err)
	}
	if len(code) != 440 {
		t.Errorf("got %d bytes, want 440: the disk's id and table follow", len(code))
	}
	if got, want := hex.EncodeToString(code[0x5c:0x68]), "0504030201000000"+"ff"+"fa"+"9090"; got != want {
		t.Errorf("patched bytes: got %s, want %s", got, want)
	}
	// Nothing else differs from Debian's file.
	copy(code[0x5c:0x64], boot[0x5c:])
	copy(code[0x66:0x68], boot[0x66:])
	if !bytes.Equal(code, boot[:440]) {
		t.Error("bytes outside the patched ones changed")
	}
	if _, err := bootCode(boot[:511], 1); err == nil {
		t.Error("511 bytes: got no error, want one")
	}
}

func TestPlacedCore(t *testing.T) {
	t.Parallel()
	core := bytes.Repeat([]byte{0xaa}, 3*512+1)
	placed, err := placedCore(core, 1, 2048)
	if err != nil {
		t.Fatal(err)
	}
	if len(placed) != 4*512 {
		t.Errorf("got %d bytes, want 4 sectors", len(placed))
	}
	// Start of the rest (u64), its sectors (u16), its segment (u16).
	if got, want := hex.EncodeToString(placed[500:512]), "0200000000000000"+"0300"+"2008"; got != want {
		t.Errorf("block list: got %s, want %s", got, want)
	}
	if !bytes.Equal(placed[:500], core[:500]) || !bytes.Equal(placed[512:len(core)], core[512:]) {
		t.Error("bytes outside the block list changed")
	}
	if !bytes.Equal(placed[len(core):], make([]byte, 4*512-len(core))) {
		t.Error("padding is not zero")
	}

	for name, bad := range map[string]struct {
		size         int
		start, limit uint64
	}{
		"no rest":           {512, 1, 2048},
		"into partition 1":  {4 * 512, 1, 4},
		"more than a list":  {0x10000 * 512, 1, 1 << 20},
		"empty":             {0, 1, 2048},
		"starts behind end": {4 * 512, 2048, 2048},
	} {
		if _, err := placedCore(make([]byte, bad.size), bad.start, bad.limit); err == nil {
			t.Errorf("%s: got no error, want one", name)
		}
	}
}

// The kernel gets the same command line from GRUB and from -append, and GRUB's
// paths are those of the boot partition.
func TestGrubConfig(t *testing.T) {
	t.Parallel()
	for name, console := range map[string]string{"amd64": "ttyS0", "arm64": "ttyAMA0"} {
		arch := findTestArchitecture(t, name)
		config, line := grubConfig(kernelFiles{image: "vmlinuz-6.1", initrd: "initrd.img-6.1"}, arch), kernelCommandLine(arch)
		for _, want := range []string{
			"set timeout=0\n",
			"--fs-uuid --set=root " + bootUUID + "\n",
			"\tlinux /vmlinuz-6.1 " + line + "\n",
			"\tinitrd /initrd.img-6.1\n",
		} {
			if !strings.Contains(config, want) {
				t.Errorf("%s: grub.cfg lacks %q:\n%s", name, want, config)
			}
		}
		for _, want := range []string{"root=UUID=" + rootUUID, "net.ifnames=0", "biosdevname=0", "console=tty0", "console=" + console} {
			if !slices.Contains(strings.Fields(line), want) {
				t.Errorf("%s: kernel arguments %q lack %q", name, line, want)
			}
		}
	}
}

// Every command of grub.cfg is in a module of the core: for one that is not, GRUB says
// so and waits ten seconds for a key.
func TestGrubModules(t *testing.T) {
	t.Parallel()
	config := grubConfig(kernelFiles{image: "vmlinuz-6.1", initrd: "initrd.img-6.1"}, findTestArchitecture(t, ""))
	for platform, pkg := range map[string]string{"i386-pc": "grub-pc-bin", "x86_64-efi": "grub-efi-amd64-bin"} {
		list, err := os.ReadFile(filepath.Join(grubFolder, platform, "command.lst"))
		if err != nil {
			missing(t, pkg)
		}
		module := map[string]string{"set": "normal", "}": "normal"} // of the language itself
		for line := range strings.Lines(string(list)) {
			command, name, _ := strings.Cut(strings.TrimSpace(line), ": ")
			module[strings.TrimPrefix(command, "*")] = name
		}
		for line := range strings.Lines(config) {
			command := strings.Fields(line)[0]
			if !slices.Contains(grubModules(), module[command]) {
				t.Errorf("%s: command %q is in module %q, the core has %q", platform, command, module[command], grubModules())
			}
		}
	}
}
