// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/base64"
	"strings"
	"testing"
	"time"
)

func TestDecodeBootArg(t *testing.T) {
	t.Parallel()
	good := bootArg(t, "#cloud-config\npassword: geheim77\n")
	packed, err := base64.StdEncoding.DecodeString(good)
	if err != nil {
		t.Fatal(err)
	}
	broken := append([]byte{}, packed...)
	broken[len(broken)-6]++ // the checksum
	encode := base64.StdEncoding.EncodeToString
	for _, test := range []struct{ name, text, machine, want string }{
		{"good", good, "r-7-VM", ""},
		{"no padding", strings.TrimRight(encode([]byte("geheim77")), "="), "n", "cannot read it as base64: illegal base64 data at input byte 8"},
		{"no base64", "geheim77!", "n", "cannot read it as base64: illegal base64 data at input byte 8"},
		{"stray bits", "QR==", "n", "cannot read it as base64: illegal base64 data at input byte 2"},
		{"no gzip", encode([]byte("#cloud-config\n")), "n", "cannot unpack it: gzip: invalid header"},
		{"cut off", encode(packed[:len(packed)-9]), "n", "cannot unpack it: unexpected EOF"},
		{"wrong checksum", encode(broken), "n", "cannot unpack it: gzip: invalid checksum"},
		{"something behind", encode(append(append([]byte{}, packed...), "geheim77geheim77"...)), "n", "cannot unpack it: gzip: invalid header"},
		{"bomb", bootArg(t, strings.Repeat("x", MaxUserdata+1)), "n", "it unpacks to more than 1048576 bytes"},
		{"empty", bootArg(t, " \n"), "n", "it is empty"},
		{"no name", good, "", "it names no instance id"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			got, err := decodeBootArg(test.text, test.machine)
			if test.want == "" {
				if err != nil || string(got.Raw) != "#cloud-config\npassword: geheim77\n" || got.Meta["instance-id"] != test.machine || got.Meta["local-hostname"] != test.machine {
					t.Errorf("got %q with %v, %v", got.Raw, got.Meta, err)
				}
				return
			}
			if err == nil || err.Error() != test.want {
				t.Errorf("error %v, want %s", err, test.want)
			}
		})
	}
}

// A boot arg that cannot be read does not keep the others from being asked.
func TestFetchBrokenBootArg(t *testing.T) {
	t.Parallel()
	options := FetchOptions{Name: "n1", BootArg: "???", BaseURLs: []string{router(t, "from the router").URL}}
	got, err := Fetch(t.Context(), bare(t).Host(), options, quiet)
	if err != nil || string(got.Raw) != "from the router" {
		t.Errorf("got %q, %v; want the router's", got.Raw, err)
	}
	options.BaseURLs, options.Timeout = nowhere(), time.Second
	if _, err = Fetch(t.Context(), bare(t).Host(), options, quiet); err == nil || !strings.Contains(err.Error(), "boot arg userdata=: cannot read it as base64") {
		t.Errorf("error %v, want the boot arg named", err)
	}
}

func FuzzDecodeBootArg(f *testing.F) {
	f.Add(bootArg(f, "#cloud-config\n"))
	f.Add("H4sIAAAAAAAA")
	f.Fuzz(func(t *testing.T, text string) {
		if got, err := decodeBootArg(text, "n"); err == nil && (len(got.Raw) == 0 || len(got.Raw) > MaxUserdata) {
			t.Errorf("%d bytes without an error", len(got.Raw))
		}
	})
}
