// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// realEtcd is the etcd that test/iso has built on this machine.
func realEtcd(t *testing.T) string {
	t.Helper()
	cache, err := os.UserCacheDir()
	if err != nil {
		t.Skip(err)
	}
	found, _ := filepath.Glob(filepath.Join(cache, "nodeagent", "etcd-*", "server"))
	if len(found) == 0 {
		t.Skip("no etcd has been built here: go run ./test/iso/cmd/build-iso")
	}
	return found[0]
}

// etcdMachine is a machine whose systemd runs the real etcd, as its unit says, with the
// machine's root for its folders.
type etcdMachine struct {
	*hosttest.Machine
	t       *testing.T
	program string

	mu      sync.Mutex
	process *exec.Cmd
	ready   chan struct{} // closed when etcd is ready
	gone    chan struct{} // closed when it has ended
	log     strings.Builder
}

func newEtcdMachine(t *testing.T, program string) *etcdMachine {
	m := &etcdMachine{Machine: testMachine(t), t: t, program: program}
	m.AddUnit(host.Unit{Name: etcdUnit})
	m.Program(journalctl, func(host.Command) (string, error) {
		m.mu.Lock()
		defer m.mu.Unlock()
		return m.log.String(), nil
	})
	t.Cleanup(m.kill)
	return m
}

func (m *etcdMachine) Host() *host.Host {
	h := m.Machine.Host()
	h.Units = etcdUnits{h.Units, m}
	return h
}

// kill is what a power cut does.
func (m *etcdMachine) kill() {
	m.mu.Lock()
	process, gone := m.process, m.gone
	m.process = nil
	m.mu.Unlock()
	if process != nil {
		_ = process.Process.Kill() // it may have ended
		<-gone
	}
}

type etcdUnits struct {
	host.Units
	m *etcdMachine
}

func (u etcdUnits) Restart(ctx context.Context, name string) (host.Job, error) {
	u.m.kill()
	return u.Start(ctx, name)
}

func (u etcdUnits) Start(_ context.Context, name string) (host.Job, error) {
	m := u.m
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.process != nil {
		return host.Job{Unit: name}, nil
	}
	words := strings.Fields(commandOf(m.Read(etcdService)))[1:]
	for i, word := range words {
		if word == "--data-dir" {
			words[i+1] = m.Path(words[i+1])
		}
	}
	if strings.Contains(m.Read(etcdService), "--initial-cluster-state existing") {
		words = append(words, "--initial-cluster-state", "existing")
	}
	socket, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: filepath.Join(m.t.TempDir(), "notify"), Net: "unixgram"})
	if err != nil {
		return host.Job{}, err
	}
	process := exec.Command(m.program, words...)
	process.Env = append(os.Environ(), "NOTIFY_SOCKET="+socket.LocalAddr().String())
	output, err := process.StderrPipe()
	if err != nil {
		return host.Job{}, err
	}
	if err := process.Start(); err != nil {
		return host.Job{}, err
	}
	ready, gone := make(chan struct{}), make(chan struct{})
	m.process, m.ready, m.gone = process, ready, gone
	go func() {
		buffer := make([]byte, 4096)
		for {
			n, err := socket.Read(buffer)
			if err != nil {
				return
			}
			if strings.Contains(string(buffer[:n]), "READY=1") {
				close(ready)
				return
			}
		}
	}()
	go func() {
		for lines := bufio.NewScanner(output); lines.Scan(); {
			m.mu.Lock()
			fmt.Fprintln(&m.log, lines.Text())
			m.mu.Unlock()
		}
		_ = process.Wait() // how it ended, the test asks otherwise
		socket.Close()
		close(gone)
	}()
	return host.Job{Unit: name}, nil
}

func (u etcdUnits) Wait(ctx context.Context, job host.Job) (host.Unit, error) {
	u.m.mu.Lock()
	ready, gone := u.m.ready, u.m.gone
	u.m.mu.Unlock()
	select {
	case <-ready:
		return host.Unit{Name: job.Unit, ActiveState: "active"}, nil
	case <-gone:
		return host.Unit{Name: job.Unit, ActiveState: "failed", Result: "exit-code"}, nil
	case <-ctx.Done():
		return host.Unit{}, context.Cause(ctx)
	}
}

// freePorts returns ports of 127.0.0.1 that nobody listens on.
func freePorts(t *testing.T, count int) []int {
	t.Helper()
	var ports []int
	for range count {
		listener, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer listener.Close()
		ports = append(ports, listener.Addr().(*net.TCPAddr).Port)
	}
	return ports
}

func etcdPut(t *testing.T, endpoint, key string) {
	t.Helper()
	etcdPost(t, endpoint+"/v3/kv/put", fmt.Sprintf(`{"key": %q, "value": "eA=="}`, base64.StdEncoding.EncodeToString([]byte(key))))
}

// etcdPost asks until etcd does it: it adds no member while another has just come.
func etcdPost(t *testing.T, url, body string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Minute)
	defer cancel()
	for {
		reply, err := http.Post(url, "application/json", strings.NewReader(body))
		if err != nil {
			t.Fatal(err)
		}
		reply.Body.Close()
		if reply.StatusCode == http.StatusOK {
			return
		}
		if !sleep(ctx, firstBackoff) {
			t.Fatalf("%s: %s", url, reply.Status)
		}
	}
}

func wantCode(t *testing.T, err error, code fault.Code, texts ...string) {
	t.Helper()
	var failed *fault.Error
	if !errors.As(err, &failed) || failed.Code != code {
		t.Fatalf("error %v, want code %s", err, code)
	}
	for _, text := range texts {
		if !strings.Contains(err.Error(), text) {
			t.Errorf("error %q does not name %q", err, text)
		}
	}
}

// C29, with the real thing: three members begin at about the same time, one is killed and
// comes back with its data, and no member ever begins anew over data or in the place of
// lost ones.
func TestEtcdForReal(t *testing.T) {
	t.Parallel()
	program := realEtcd(t)
	ctx, cancel := context.WithTimeout(t.Context(), 4*time.Minute)
	defer cancel()

	ports := freePorts(t, 6)
	var members, endpoints []string
	for i := range 3 {
		members = append(members, fmt.Sprintf("etcd-%d=http://127.0.0.1:%d", i+1, ports[i]))
		endpoints = append(endpoints, fmt.Sprintf("http://127.0.0.1:%d", ports[3+i]))
	}
	plan := func(i int) EtcdPlan {
		_, peer, _ := strings.Cut(members[i], "=")
		return EtcdPlan{Name: fmt.Sprintf("etcd-%d", i+1), InitialCluster: strings.Join(members, ","), State: "new", Token: "etcd-cluster-1",
			Flags: []string{"--initial-advertise-peer-urls", peer, "--listen-peer-urls", peer, "--advertise-client-urls", endpoints[i], "--listen-client-urls", endpoints[i]}}
	}
	machines := make([]*etcdMachine, 3)
	errs := make([]error, 3)
	var all sync.WaitGroup
	for i := range machines {
		machines[i] = newEtcdMachine(t, program)
		all.Go(func() {
			var member EtcdMember
			if member, errs[i] = MakeEtcd(ctx, machines[i].Host(), plan(i), discard); errs[i] == nil && (member.Members != 3 || member.DataDir != etcdFolder) {
				errs[i] = fmt.Errorf("member %s", member)
			}
		})
	}
	all.Wait()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
	first, last := machines[0], machines[2]
	etcdPut(t, endpoints[0], "/registry/x")

	// A further run finds all as it is, and so does a later boot.
	text := last.Read(etcdService)
	last.Actions()
	for _, run := range []func() (EtcdMember, error){
		func() (EtcdMember, error) { return MakeEtcd(ctx, last.Host(), plan(2), discard) },
		func() (EtcdMember, error) { return RunEtcd(ctx, last.Host(), discard) },
	} {
		if _, err := run(); err != nil {
			t.Fatal(err)
		}
		if done := last.Actions(); len(done) > 0 || last.Read(etcdService) != text {
			t.Errorf("a further run did %q", done)
		}
	}
	if !strings.Contains(text, "AssertDirectoryNotEmpty=/var/lib/etcd/member/wal\n") || !strings.Contains(text, "--initial-cluster-state existing") {
		t.Errorf("the unit would begin anew:\n%s", text)
	}

	// Killed, it comes back with its data.
	last.kill()
	if _, err := RunEtcd(ctx, last.Host(), discard); err != nil {
		t.Fatal(err)
	}
	client, err := etcdHTTP(last.Host(), EtcdTLS{})
	if err != nil {
		t.Fatal(err)
	}
	if keys, err := countKeys(ctx, client, endpoints[2], "/registry/"); err != nil || keys != 1 {
		t.Errorf("%d keys, %v; want the one", keys, err)
	}

	// A further member joins the cluster that runs, and is what it is on the next run.
	more := freePorts(t, 2)
	peer, own := fmt.Sprintf("http://127.0.0.1:%d", more[0]), fmt.Sprintf("http://127.0.0.1:%d", more[1])
	etcdPost(t, endpoints[0]+"/v3/cluster/member/add", fmt.Sprintf(`{"peerURLs": [%q]}`, peer))
	fourth := EtcdPlan{Name: "etcd-4", InitialCluster: strings.Join(members, ",") + ",etcd-4=" + peer, State: "existing", Token: "etcd-cluster-1",
		Flags: []string{"--initial-advertise-peer-urls", peer, "--listen-peer-urls", peer, "--advertise-client-urls", own, "--listen-client-urls", own}}
	joiner := newEtcdMachine(t, program)
	for range 2 {
		if _, err := MakeEtcd(ctx, joiner.Host(), fourth, discard); err != nil {
			t.Fatal(err)
		}
	}

	if ok, detail, err := EtcdHealth(ctx, first.Host()); err != nil || !ok || !strings.HasPrefix(detail, "4 of 4 members work, 1 may fail") {
		t.Errorf("health %v, %q, %v", ok, detail, err)
	}

	// A control plane does not begin over another's data, nor without a quorum.
	control := InitPlan{ExternalEtcd: endpoints}
	_, err = AwaitExternalEtcd(ctx, testMachine(t).Host(), control, discard)
	wantCode(t, err, fault.EtcdDataForeign, "1 objects below /registry")
	last.kill()
	begun := testMachine(t)
	begun.Write(journalFile, `{"phase":"started"}`)
	down, err := AwaitExternalEtcd(ctx, begun.Host(), control, discard)
	if err != nil || len(down) != 1 || !strings.Contains(down[0], endpoints[2]) {
		t.Errorf("down %q, %v; want the third", down, err)
	}
	first.kill()
	patience, stop := context.WithCancel(ctx)
	_, err = AwaitExternalEtcd(patience, begun.Host(), control, func(format string, args ...any) {
		if said := fmt.Sprintf(format, args...); strings.Contains(said, endpoints[0]) && strings.Contains(said, "of 3 endpoints") {
			stop()
		}
	})
	wantCode(t, err, fault.EtcdUnhealthy, endpoints[0]+": ", endpoints[2]+": ", "no quorum")

	// Data of others are never touched, and lost ones are not replaced by nothing.
	for name, change := range map[string]func(*EtcdPlan){
		"another cluster": func(p *EtcdPlan) { p.Token = "etcd-cluster-2" },
		"member etcd-3":   func(p *EtcdPlan) { *p = plan(1) },
	} {
		other := plan(2)
		change(&other)
		_, err := MakeEtcd(ctx, last.Host(), other, discard)
		wantCode(t, err, fault.EtcdDataForeign, name, etcdFolder)
	}
	if last.Read(etcdService) != text {
		t.Error("the unit was changed for another cluster")
	}
	if err := os.Rename(last.Path(etcdFolder), last.Path("/elsewhere")); err != nil {
		t.Fatal(err)
	}
	_, err = RunEtcd(ctx, last.Host(), discard)
	wantCode(t, err, fault.EtcdDataMissing, "etcd-3")
	_, err = MakeEtcd(ctx, last.Host(), plan(2), discard)
	wantCode(t, err, fault.EtcdDataMissing, "etcd-3")

	// What CloudStack's own unit has left is gone on with.
	if err := os.Remove(last.Path(etcdService)); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(last.Path("/elsewhere"), last.Path("/etcd-3.etcd")); err != nil {
		t.Fatal(err)
	}
	member, err := MakeEtcd(ctx, last.Host(), plan(2), discard)
	if err != nil || member.DataDir != "/etcd-3.etcd" {
		t.Errorf("member %s, %v", member, err)
	}
}

// A member that does not start fails with what etcd said.
func TestEtcdForRealFails(t *testing.T) {
	t.Parallel()
	m := newEtcdMachine(t, realEtcd(t))
	ports := freePorts(t, 2)
	peer, own := fmt.Sprintf("http://127.0.0.1:%d", ports[0]), fmt.Sprintf("http://127.0.0.1:%d", ports[1])
	_, err := MakeEtcd(t.Context(), m.Host(), EtcdPlan{Name: "etcd-1", InitialCluster: "etcd-1=" + peer, State: "new",
		Flags: []string{"--initial-advertise-peer-urls", peer, "--listen-peer-urls", peer, "--advertise-client-urls", own, "--listen-client-urls", own, "--unheard-of"}}, discard)
	wantCode(t, err, fault.EtcdFailed, "exit-code")
	if log := strings.Join(fault.As(err).Log, "\n"); !strings.Contains(log, "unheard-of") {
		t.Errorf("log %q", log)
	}
}
