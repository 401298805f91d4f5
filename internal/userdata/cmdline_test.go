// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"encoding/json"
	"maps"
	"os"
	"testing"

	"nodeagent/internal/host/hosttest"
)

// What CloudStack's Python (merge.py) reads: json.load, ["type"], ["cmd_line"].
type dataBag struct {
	Type    string            `json:"type"`
	CmdLine map[string]string `json:"cmd_line"`
}

func TestCommandLineIsJSON(t *testing.T) {
	t.Parallel()
	args := ParseBootArgs(" type=cksnode name=a\"b\\ key=c3NoLXJzYQ== x<y=&'z empty= sn\u00f6=\u00fc twice=1 twice=2 word")
	data, err := args.commandLine()
	if err != nil {
		t.Fatal(err)
	}
	var bag dataBag
	if err := json.Unmarshal(data, &bag); err != nil {
		t.Fatalf("%v in %s", err, data)
	}
	// common.sh would cut the key's value at its "=" and break the JSON at the quote.
	want := map[string]string{"type": "cksnode", "name": `a"b\`, "key": "c3NoLXJzYQ==", "x<y": "&'z", "empty": "", "sn\u00f6": "\u00fc", "twice": "2"}
	if bag.Type != "cmdline" || !maps.Equal(bag.CmdLine, want) {
		t.Errorf("got %+v, want %v", bag, want)
	}
}

func TestLeave(t *testing.T) {
	t.Parallel()
	state := func(m *hosttest.Machine, name string) string {
		info, err := os.Stat(m.Path(name))
		if err != nil {
			return "none"
		}
		return info.Mode().String()
	}
	for _, test := range []struct {
		name, text, left string
		written          bool
		cmdline, json    string
	}{
		{"a node, by us", "type=cksnode\n", "", false, "-rw-------", "-rw-------"},
		{"a node, by the host", "type=cksnode\n", "type=cksnode\n", true, "-rw-------", "-rw-------"},
		// Its own scripts write the JSON, and a second one would be processed again.
		{"a role of CloudStack's", "type=router\n", "old", false, "-rw-------", "none"},
		{"the host's file is gone again", "type=router\n", "", true, "none", "none"},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			m := hosttest.New(t)
			if test.left != "" {
				m.Write(CmdlineFile, test.left)
			}
			for range 2 {
				if err := leave(m.Host(), test.text, test.written); err != nil {
					t.Fatal(err)
				}
			}
			if got := state(m, CmdlineFile); got != test.cmdline {
				t.Errorf("%s: %s, want %s", CmdlineFile, got, test.cmdline)
			}
			if got := state(m, cmdlineJSON); got != test.json {
				t.Errorf("%s: %s, want %s", cmdlineJSON, got, test.json)
			}
			if test.cmdline != "none" && m.Read(CmdlineFile) != test.text {
				t.Errorf("%s = %q", CmdlineFile, m.Read(CmdlineFile))
			}
		})
	}
}

// Nothing is written that need not be.
func TestLeaveWritesOnce(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	var before [2]os.FileInfo
	for round := range 2 {
		if err := leave(m.Host(), "type=cksnode name=n1\n", false); err != nil {
			t.Fatal(err)
		}
		for i, name := range []string{CmdlineFile, cmdlineJSON} {
			info, err := os.Stat(m.Path(name))
			if err != nil {
				t.Fatal(err)
			}
			if round > 0 && !os.SameFile(before[i], info) {
				t.Errorf("%s was written again", name)
			}
			before[i] = info
		}
	}
}
