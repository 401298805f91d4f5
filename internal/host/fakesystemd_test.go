// SPDX-License-Identifier: Apache-2.0

package host

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	godbus "github.com/godbus/dbus/v5"
)

// testBus is a real message bus of its own. Clients reach it through a door that can
// be slammed: then all connections through it die at once.
type testBus struct {
	t       testing.TB
	address string // past the door
	door    net.Listener

	mu      sync.Mutex
	streams []net.Conn
	opened  int
	heard   map[string]chan struct{} // closed when a client says this text
}

// newTestBus starts a bus whose door is in the folder it returns.
func newTestBus(t testing.TB) (bus *testBus, door string) {
	t.Helper()
	dir, err := os.MkdirTemp("", "bus") // short: the name of a socket is
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "bus.conf")
	text := `<busconfig><listen>unix:path=` + dir + `/daemon</listen><auth>EXTERNAL</auth>
<policy context="default"><allow own="*"/><allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/></policy></busconfig>`
	if err := os.WriteFile(config, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	daemon := exec.Command("dbus-daemon", "--nofork", "--nopidfile", "--nosyslog", "--print-address", "--config-file="+config)
	daemon.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL} // a test that runs out of time cleans nothing up
	out, err := daemon.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := daemon.Start(); err != nil {
		t.Fatalf("%v (Debian's package dbus-daemon has it)", err)
	}
	t.Cleanup(func() {
		daemon.Process.Kill()
		daemon.Wait()
	})
	// It says its address when it listens.
	if _, err := out.Read(make([]byte, 1024)); err != nil {
		t.Fatal(err)
	}
	bus = &testBus{t: t, address: filepath.Join(dir, "daemon"), heard: map[string]chan struct{}{}}
	door = filepath.Join(dir, "door")
	if bus.door, err = net.Listen("unix", door); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		bus.door.Close()
		bus.slam()
	})
	go bus.serve()
	return bus, door
}

func (b *testBus) serve() {
	for {
		client, err := b.door.Accept()
		if err != nil {
			return
		}
		daemon, err := net.Dial("unix", b.address)
		if err != nil {
			client.Close()
			continue
		}
		b.mu.Lock()
		b.streams = append(b.streams, client, daemon)
		b.opened++
		b.mu.Unlock()
		go func() {
			buffer := make([]byte, 64<<10)
			for {
				n, err := client.Read(buffer)
				b.listen(buffer[:n])
				if _, broken := daemon.Write(buffer[:n]); err != nil || broken != nil {
					daemon.Close()
					return
				}
			}
		}()
		go func() {
			io.Copy(client, daemon)
			client.Close()
		}()
	}
}

func (b *testBus) listen(said []byte) {
	b.mu.Lock()
	defer b.mu.Unlock()
	for text, heard := range b.heard {
		if bytes.Contains(said, []byte(text)) {
			delete(b.heard, text)
			close(heard)
		}
	}
}

// hears returns a channel that is closed when a client says a text.
func (b *testBus) hears(text string) chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.heard[text] = make(chan struct{})
	return b.heard[text]
}

// slam cuts all connections through the door.
func (b *testBus) slam() {
	b.mu.Lock()
	defer b.mu.Unlock()
	for _, stream := range b.streams {
		stream.Close()
	}
	b.streams = nil
}

func (b *testBus) connections() int {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.opened
}

// fakeSystemd is a service manager on a bus, as much of one as is called here.
type fakeSystemd struct {
	conn *godbus.Conn

	mu     sync.Mutex
	units  map[string]*Unit
	calls  []string
	jobs   uint32
	mute   bool                // no signals
	during func(method string) // called in every call, before it is answered
}

// newFakeSystemd exports a service manager on a bus; join gives it its name.
func newFakeSystemd(t testing.TB, bus *testBus) *fakeSystemd {
	t.Helper()
	conn, err := godbus.Connect("unix:path=" + bus.address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f := &fakeSystemd{conn: conn, units: map[string]*Unit{}}
	if err := conn.Export(manager{f}, "/org/freedesktop/systemd1", systemdName+".Manager"); err != nil {
		t.Fatal(err)
	}
	if err := conn.ExportSubtree(properties{f}, "/org/freedesktop/systemd1/unit", "org.freedesktop.DBus.Properties"); err != nil {
		t.Fatal(err)
	}
	return f
}

func (f *fakeSystemd) join(t testing.TB) {
	t.Helper()
	if reply, err := f.conn.RequestName(systemdName, 0); err != nil || reply != godbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("cannot join the bus: %v, %v", reply, err)
	}
}

func (f *fakeSystemd) leave(t testing.TB) {
	t.Helper()
	if _, err := f.conn.ReleaseName(systemdName); err != nil {
		t.Fatal(err)
	}
}

// set changes the unit's state, making it if need be.
func (f *fakeSystemd) set(name string, change func(*Unit)) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.units[name] == nil {
		f.units[name] = &Unit{Name: name, ID: name, LoadState: "loaded", ActiveState: "inactive", FileState: "disabled"}
	}
	change(f.units[name])
}

// called returns how often a method was called.
func (f *fakeSystemd) called(method string) (times int) {
	f.mu.Lock()
	defer f.mu.Unlock()
	for _, call := range f.calls {
		if call == method {
			times++
		}
	}
	return times
}

func (f *fakeSystemd) call(method string) {
	f.mu.Lock()
	f.calls = append(f.calls, method)
	during := f.during
	f.mu.Unlock()
	if during != nil {
		during(method)
	}
}

// finish ends the unit's job.
func (f *fakeSystemd) finish(name, state string) {
	var id uint32
	f.set(name, func(u *Unit) { id, u.JobID, u.ActiveState = u.JobID, 0, state })
	f.mu.Lock()
	mute := f.mute
	f.mu.Unlock()
	if !mute {
		f.conn.Emit("/org/freedesktop/systemd1", systemdName+".Manager.JobRemoved", id, jobPath(id), name, "done")
	}
}

func jobPath(id uint32) godbus.ObjectPath {
	return godbus.ObjectPath(fmt.Sprintf("/org/freedesktop/systemd1/job/%d", id))
}

type manager struct{ f *fakeSystemd }

func (m manager) job(method, name string) (godbus.ObjectPath, *godbus.Error) {
	var id uint32
	m.f.set(name, func(u *Unit) {
		m.f.jobs++
		u.JobID = m.f.jobs
		id = u.JobID
	})
	m.f.call(method)
	return jobPath(id), nil
}

func (m manager) StartUnit(name, _ string) (godbus.ObjectPath, *godbus.Error) {
	return m.job("StartUnit", name)
}

func (m manager) StopUnit(name, _ string) (godbus.ObjectPath, *godbus.Error) {
	return m.job("StopUnit", name)
}

func (m manager) RestartUnit(name, _ string) (godbus.ObjectPath, *godbus.Error) {
	return m.job("RestartUnit", name)
}

func (m manager) ReloadOrTryRestartUnit(name, _ string) (godbus.ObjectPath, *godbus.Error) {
	return m.job("ReloadOrTryRestartUnit", name)
}

type unitFileChange struct{ Type, File, Destination string }

func (m manager) files(method, state string, names []string) (changes []unitFileChange) {
	for _, name := range names {
		m.f.set(name, func(u *Unit) {
			if u.FileState != state {
				changes = append(changes, unitFileChange{"symlink", "/etc/systemd/system/" + name, ""})
			}
			u.FileState = state
		})
	}
	m.f.call(method)
	return changes
}

func (m manager) EnableUnitFiles(names []string, _, _ bool) (bool, []unitFileChange, *godbus.Error) {
	return true, m.files("EnableUnitFiles", "enabled", names), nil
}

func (m manager) DisableUnitFiles(names []string, _ bool) ([]unitFileChange, *godbus.Error) {
	return m.files("DisableUnitFiles", "disabled", names), nil
}

func (m manager) MaskUnitFiles(names []string, _, _ bool) ([]unitFileChange, *godbus.Error) {
	return m.files("MaskUnitFiles", "masked", names), nil
}

func (m manager) Reload() *godbus.Error {
	m.f.call("Reload")
	return nil
}

type listedUnit struct {
	Name, Description, LoadState, ActiveState, SubState, Followed string
	Path                                                          godbus.ObjectPath
	JobID                                                         uint32
	JobType                                                       string
	JobPath                                                       godbus.ObjectPath
}

func (m manager) ListUnits() (units []listedUnit, _ *godbus.Error) {
	m.f.call("ListUnits")
	m.f.mu.Lock()
	defer m.f.mu.Unlock()
	for name, unit := range m.f.units {
		units = append(units, listedUnit{Name: name, LoadState: unit.LoadState, ActiveState: unit.ActiveState, Path: "/", JobPath: "/"})
	}
	return units, nil
}

type properties struct{ f *fakeSystemd }

// GetAll answers for the unit of the path.
func (p properties) GetAll(message godbus.Message, face string) (map[string]godbus.Variant, *godbus.Error) {
	p.f.call("GetAll " + strings.TrimPrefix(face, "org.freedesktop.systemd1."))
	unit := p.unit(message)
	job := struct {
		ID   uint32
		Path godbus.ObjectPath
	}{unit.JobID, "/"}
	return map[string]godbus.Variant{
		"Id": godbus.MakeVariant(unit.ID), "LoadState": godbus.MakeVariant(unit.LoadState),
		"ActiveState": godbus.MakeVariant(unit.ActiveState), "UnitFileState": godbus.MakeVariant(unit.FileState),
		"TriggeredBy": godbus.MakeVariant(append([]string{}, unit.TriggeredBy...)), "Job": godbus.MakeVariant(job),
	}, nil
}

// Get answers with a unit's Result.
func (p properties) Get(message godbus.Message, _, property string) (godbus.Variant, *godbus.Error) {
	p.f.call("Get " + property)
	if property == "ExecMainStartTimestampMonotonic" {
		return godbus.MakeVariant(uint64(11_000_000)), nil
	}
	if property != "Result" {
		return godbus.Variant{}, godbus.NewError("org.freedesktop.DBus.Error.UnknownProperty", nil)
	}
	return godbus.MakeVariant(p.unit(message).Result), nil
}

// unit is that of the path, in which systemd writes bytes other than letters and
// digits as _ and their number.
func (p properties) unit(message godbus.Message) Unit {
	path, _ := message.Headers[godbus.FieldPath].Value().(godbus.ObjectPath)
	name := strings.NewReplacer("_2e", ".", "_2d", "-").Replace(filepath.Base(string(path)))
	p.f.mu.Lock()
	defer p.f.mu.Unlock()
	unit := Unit{ID: name, LoadState: "not-found", ActiveState: "inactive"}
	if known := p.f.units[name]; known != nil {
		unit = *known
	}
	return unit
}
