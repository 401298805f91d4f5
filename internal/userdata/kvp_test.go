// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"bytes"
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// kvpRecord is one record as hv_kvp_daemon writes it; garbage fills the fields
// behind the NULs that end key and value, as a deleted entry leaves it.
func kvpRecord(key, value, garbage string) []byte {
	field := func(text string, size int) []byte {
		filled := append([]byte(text), 0)
		filled = append(filled, strings.Repeat(garbage+"\x00", size)...)
		return filled[:size]
	}
	return append(field(key, 512), field(value, 2048)...)
}

func kvpPoolOf(value string) []byte {
	return bytes.Join([][]byte{kvpRecord("HostName", "hv01.example", ""), kvpRecord(kvpKey, value, "old"), kvpRecord("z", "type=wrong", "")}, nil)
}

func TestParseKVP(t *testing.T) {
	t.Parallel()
	whole := kvpPoolOf(" template=domP type=router")
	full := bytes.Join([][]byte{[]byte(kvpKey), make([]byte, 512-len(kvpKey)), bytes.Repeat([]byte("x"), 2048)}, nil)
	for _, test := range []struct {
		name  string
		pool  []byte
		want  string
		found bool
	}{
		{"among others, with the rest of older entries", whole, " template=domP type=router", true},
		{"first of two, as the daemon finds it", append(kvpRecord(kvpKey, "a=1", ""), kvpRecord(kvpKey, "a=2", "")...), "a=1", true},
		{"no NUL behind a full value", full, strings.Repeat("x", 2048), true},
		{"empty value", kvpRecord(kvpKey, "", ""), "", true},
		{"C5: a key that only begins or ends so", append(kvpRecord(kvpKey+"2", "a=1", ""), kvpRecord("x"+kvpKey, "a=1", "")...), "", false},
		{"the key as a value", kvpRecord("k", kvpKey, ""), "", false},
		{"nothing", nil, "", false},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			if got, found := parseKVP(test.pool); got != test.want || found != test.found {
				t.Errorf("got %q, %v; want %q, %v", got, found, test.want, test.found)
			}
		})
	}
	// Cut anywhere: there is the whole value or none.
	for size := range whole {
		if got, found := parseKVP(whole[:size]); found != (size >= 2*kvpRecordSize) || found && got != " template=domP type=router" {
			t.Fatalf("of %d bytes: %q, %v", size, got, found)
		}
	}
}

func newHyperV(t *testing.T, unit string) *hosttest.Machine {
	m := hosttest.New(t)
	m.Write("/sys/class/dmi/id/sys_vendor", "Microsoft Corporation\n")
	m.Write("/sys/class/dmi/id/product_name", "Virtual Machine\n")
	m.AddUnit(host.Unit{Name: unit})
	return m
}

// The host sends the pool some time after its daemon has started, by truncating
// and writing. CloudStack's scripts sleep 5 s and take what is there then.
func TestHyperVAwaitsThePool(t *testing.T) {
	t.Parallel()
	for _, pool := range []string{kvpPool, kvpPoolOld} {
		t.Run(pool, func(t *testing.T) {
			t.Parallel()
			m := newHyperV(t, "hv-kvp-daemon.service")
			stale := time.Now().Add(longAgo)
			m.Write(pool, string(kvpPoolOf(" name=old type=router")))
			if err := os.Chtimes(m.Path(pool), stale, stale); err != nil {
				t.Fatal(err)
			}
			waiting := make(chan string, 100)
			report := func(format string, args ...any) { waiting <- fmt.Sprintf(format, args...) }
			type result struct {
				args   BootArgs
				source Source
				err    error
			}
			done := make(chan result, 1)
			go func() {
				args, source, err := AwaitBootArgs(t.Context(), m.Host(), AwaitOptions{Wait: time.Minute, StaleGrace: time.Minute}, report)
				done <- result{args, source, err}
			}()
			for !strings.Contains(<-waiting, kvpKey) {
			}
			data := kvpPoolOf(" template=domP name=new type=cksnode eth0ip=10.1.1.5 eth0mask=255.255.255.0")
			file, err := os.OpenFile(m.Path(pool), os.O_WRONLY|os.O_TRUNC, 0)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := file.Write(data[:kvpRecordSize+600]); err != nil {
				t.Fatal(err)
			}
			select {
			case r := <-done:
				t.Fatalf("took a part of the pool: %v, %+v, %v", r.args, r.source, r.err)
			case <-time.After(20 * time.Millisecond):
			}
			if _, err := file.Write(data[kvpRecordSize+600:]); err != nil {
				t.Fatal(err)
			}
			file.Close()
			r := <-done
			if r.err != nil || r.args.Name() != "new" || r.source.Name != SourceKVP || r.source.Stale || r.source.Hypervisor != HyperV {
				t.Fatalf("got %v, %+v, %v; want the new args", r.args, r.source, r.err)
			}
			if got := m.Read(CmdlineFile); !strings.HasPrefix(got, " template=domP name=new") || strings.Contains(got, "\x00") {
				t.Errorf("%s = %q, want the value alone", CmdlineFile, got)
			}
			if !bytes.Equal([]byte(m.Read(pool)), data) {
				t.Error("the pool was changed: CloudStack's scripts read it too")
			}
		})
	}
}

// C4 on Hyper-V: the pool stays on the disk, and CloudStack's scripts empty it.
func TestHyperVOverBoots(t *testing.T) {
	t.Parallel()
	m := newHyperV(t, "hyperv-daemons.hv-kvp-daemon.service")
	await := func(wantName string, wantStale bool) {
		t.Helper()
		args, source, err := AwaitBootArgs(t.Context(), m.Host(), soon(), quiet)
		if err != nil || args.Name() != wantName || source.Stale != wantStale {
			t.Fatalf("got %v, %+v, %v; want %q, stale %v", args, source, err, wantName, wantStale)
		}
	}
	m.Write(kvpPool, string(kvpPoolOf(testArgs)))
	await("n1", false)
	if state := m.String(); !strings.Contains(state, "hyperv-daemons.hv-kvp-daemon.service: disabled active") {
		t.Errorf("machine:\n%s\nwant the daemon started", state)
	}
	m.Write(kvpPool, "") // init.sh has copied it
	await("n1", false)   // nodeagent restarted

	m.SetBootID("boot-2")
	await("n1", true)

	m.SetBootID("boot-3")
	m.Write(kvpPool, string(kvpPoolOf(strings.Replace(testArgs, "n1", "n2", 1))))
	await("n2", false)

	m.SetBootID("boot-4") // the pool as it was: nothing came
	await("n2", true)

	m.SetBootID("boot-5") // both pools have some: the newer counts
	m.Write(kvpPoolOld, string(kvpPoolOf(strings.Replace(testArgs, "n1", "n3", 1))))
	later := time.Now().Add(time.Second)
	if err := os.Chtimes(m.Path(kvpPoolOld), later, later); err != nil {
		t.Fatal(err)
	}
	await("n3", false)
}

func FuzzKVP(f *testing.F) {
	f.Add(kvpPoolOf(" type=router"))
	f.Add(kvpRecord(kvpKey, strings.Repeat("x", 2048), "y"))
	f.Add([]byte(kvpKey))
	f.Fuzz(func(t *testing.T, pool []byte) {
		value, found := parseKVP(pool)
		if !found {
			if value != "" {
				t.Errorf("%q of nothing", value)
			}
			return
		}
		if len(value) > kvpValueSize || strings.Contains(value, "\x00") || !bytes.Contains(pool, []byte(kvpKey+"\x00")) || !bytes.Contains(pool, []byte(value)) {
			t.Errorf("value %q is none of the pool", value)
		}
		// What precedes it, whole records of other keys, makes no difference.
		if again, found := parseKVP(append(kvpRecord("other", value, value), pool...)); !found || again != value {
			t.Errorf("behind another record: %q, %v", again, found)
		}
	})
}
