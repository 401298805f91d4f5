// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync/atomic"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

// fakeKubeadm plays kubeadm on a machine: init leaves its files, reset takes them
// away, and init refuses where they are.
type fakeKubeadm struct {
	m        *hosttest.Machine
	api      *testAPI
	failures []string // of the next inits: what they print
	ran      []string
}

const exitStatus = "exit status 1"

func newFakeKubeadm(t *testing.T, api *testAPI) *fakeKubeadm {
	f := &fakeKubeadm{m: hosttest.New(t), api: api}
	f.m.Program(Kubeadm, f.run)
	return f
}

func (f *fakeKubeadm) run(command host.Command) (string, error) {
	args := strings.Join(command.Args, " ")
	f.ran = append(f.ran, args)
	failed := &host.CommandError{Command: command.String(), ExitCode: 1, Err: errors.New(exitStatus)}
	config := f.m.Path(configFile)
	if command.Args[0] == "reset" {
		for _, name := range leftovers {
			if err := os.RemoveAll(f.m.Path(name)); err != nil {
				return "", err
			}
		}
		return "[reset] Deleted\n", nil
	}
	if info, err := os.Stat(config); err != nil || info.Mode() != 0o600 {
		return "", fmt.Errorf("the configuration is %v (%v), want mode 0600", info, err)
	}
	if command.Args[1] == "phase" {
		return "[addons] Applied\n", nil
	}
	if f.m.Host().Exists(apiManifest) {
		return "\t[ERROR FileAvailable--etc-kubernetes-manifests-kube-apiserver.yaml]: it already exists\nerror: error execution phase preflight: preflight checks failed\n", failed
	}
	f.leave()
	// kubeadm at -v=5 can show anything.
	out := "I1120 11:49:37.431347   11600 x.go:1] token " + testToken + "\n[init] Using Kubernetes version: v1.34.4\n[upload-certs] Using certificate key:\n" + testKey + "\n"
	if len(f.failures) > 0 {
		out, f.failures = out+f.failures[0], f.failures[1:]
		return out, failed
	}
	return out, nil
}

// leave puts down what an init does.
func (f *fakeKubeadm) leave() {
	for _, name := range leftovers {
		f.m.Write(name, "x")
	}
	f.m.Write(AdminConf, f.api.kubeconfig)
}

func (f *fakeKubeadm) init(t *testing.T, reports *[]string) error {
	t.Helper()
	return Init(t.Context(), f.m.Host(), cloudStackPlan(), func(format string, args ...any) {
		if reports != nil {
			*reports = append(*reports, fmt.Sprintf(format, args...))
		}
	})
}

// noSecrets looks for the token and the key in all that stays or is shown: C33.
func (f *fakeKubeadm) noSecrets(t *testing.T, texts ...string) {
	t.Helper()
	texts = append(texts, f.ran...)
	texts = append(texts, f.m.Actions()...)
	root := f.m.Path("/")
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		text, err := os.ReadFile(path)
		texts = append(texts, string(text))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, text := range texts {
		for _, hidden := range []string{testToken, testKey, "0123456789abcdef"} {
			if strings.Contains(text, hidden) {
				t.Errorf("%q shows the secret %s", text, hidden)
			}
		}
	}
}

const initCommand = "init --config /run/nodeagent/kubeadm.yaml --skip-token-print --skip-certificate-key-print --upload-certs --v=5"

const resetCommand = "reset --force --cri-socket unix:///run/containerd/containerd.sock --v=5"

func TestInitOnce(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t))
	var reports []string
	for range 2 {
		if err := f.init(t, &reports); err != nil {
			t.Fatal(err)
		}
	}
	if want := []string{initCommand}; !slices.Equal(f.ran, want) {
		t.Errorf("kubeadm ran as %q, want %q", f.ran, want)
	}
	if got := f.m.Read(rootKubeconfig); got != f.api.kubeconfig {
		t.Errorf("root's kubeconfig = %q, want admin.conf", got)
	}
	for name, want := range map[string]fs.FileMode{rootKubeconfig: 0o600, InitLog: 0o600} {
		if info, err := os.Stat(f.m.Path(name)); err != nil || info.Mode() != want {
			t.Errorf("%s is %v (%v), want mode %v", name, info, err, want)
		}
	}
	if f.m.Host().Exists(configFile) {
		t.Error("kubeadm's configuration is still there")
	}
	if want := "[init] Using Kubernetes version: v1.34.4"; !slices.Contains(reports, want) {
		t.Errorf("reports %q lack %q", reports, want)
	}
	if log := f.m.Read(InitLog); !strings.Contains(log, "[upload-certs] Using certificate key:\n[redacted]\n") || !strings.Contains(log, initCommand) {
		t.Errorf("log is\n%s", log)
	}
	f.noSecrets(t, reports...)
}

// K1, C25: a failed init is reset and tried once more; the first error stays.
func TestInitFailsThenSucceeds(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t))
	f.failures = []string{"error: error execution phase wait-control-plane: no answer with " + testToken + "\n"}
	if err := f.init(t, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{initCommand, resetCommand, initCommand}; !slices.Equal(f.ran, want) {
		t.Errorf("kubeadm ran as %q, want %q", f.ran, want)
	}
	f.noSecrets(t)
}

func TestInitKeepsTheFirstError(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t))
	f.failures = []string{"error: first " + testKey + "\n", "error: second\n", "error: third\n", "error: third\n"}
	err := f.init(t, nil)
	failed := fault.As(err)
	if err == nil || failed.Code != fault.KubeadmInitFailed || !strings.HasPrefix(err.Error(), "kubeadm init failed: first [redacted]") || !strings.Contains(err.Error(), "second") {
		t.Errorf("error = %v, want %s with the first failure first", err, fault.KubeadmInitFailed)
	}
	if len(failed.Log) == 0 || !strings.Contains(strings.Join(failed.Log, "\n"), "first") {
		t.Errorf("log = %q, want kubeadm's last lines", failed.Log)
	}
	f.noSecrets(t, append(failed.Log, err.Error())...)

	// Another start of nodeagent: what was left is reset first, and the first
	// failure of all is still told.
	f.ran = nil
	err = f.init(t, nil)
	if want := []string{resetCommand, initCommand, resetCommand, initCommand}; !slices.Equal(f.ran, want) {
		t.Errorf("kubeadm ran as %q, want %q", f.ran, want)
	}
	if err == nil || !strings.Contains(err.Error(), "third") || !strings.Contains(err.Error(), "first [redacted]") {
		t.Errorf("error = %v, want the third failure and the first", err)
	}
	if err := f.init(t, nil); err != nil {
		t.Errorf("at last: %v", err)
	}
}

func TestInitPreflight(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t))
	f.failures = []string{string(testdata(t, "kubeadm/preflight-1.34.txt"))}
	err := f.init(t, nil)
	if err == nil || fault.As(err).Code != fault.KubeadmPreflight || len(f.ran) != 1 {
		t.Fatalf("error = %v after %q, want %s after one run", err, f.ran, fault.KubeadmPreflight)
	}
	for _, want := range []string{"KubeletVersion: couldn't get kubelet version", "FileContent--proc-sys-net-ipv4-ip_forward: "} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("error %q lacks %q", err, want)
		}
	}
}

// existing serves the objects that are there.
func existing(t *testing.T, paths ...string) *testAPI {
	handlers := map[string]http.HandlerFunc{"/readyz": says("ok")}
	for _, path := range paths {
		handlers[path] = says("{}")
	}
	return newTestAPI(t, handlers)
}

const proxyRolePath = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/kube-proxy"

// A kill at any instruction of an earlier Init: what is found decides.
func TestInitAfterAKill(t *testing.T) {
	t.Parallel()
	finish := []string{"init phase kubelet-finalize all --config /run/nodeagent/kubeadm.yaml --v=5", "init phase addon all --config /run/nodeagent/kubeadm.yaml --v=5"}
	for name, test := range map[string]struct {
		phase   phase
		objects []string
		partial bool // without admin.conf
		clean   bool
		want    []string
	}{
		"before kubeadm ran":              {phase: phaseStarted, clean: true, want: []string{initCommand}},
		"in the certificates":             {phase: phaseStarted, partial: true, want: []string{resetCommand, initCommand}},
		"before others can join":          {phase: phaseStarted, want: []string{resetCommand, initCommand}},
		"when others can join":            {phase: phaseStarted, objects: []string{clusterInfoPath}, want: finish},
		"after kubeadm, before the note":  {phase: phaseStarted, objects: []string{clusterInfoPath, proxyRolePath}},
		"a member without an API":         {phase: phaseMember},
		"a cluster that others made":      {objects: []string{clusterInfoPath, proxyRolePath}},
		"leftovers that others made":      {partial: true, want: []string{initCommand}}, // K1: never reset
		"a half cluster that others made": {want: []string{initCommand}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			f := newFakeKubeadm(t, existing(t, test.objects...))
			if !test.clean {
				f.leave()
			}
			if test.partial {
				if err := os.Remove(f.m.Path(AdminConf)); err != nil {
					t.Fatal(err)
				}
			}
			if test.phase != phaseNone {
				if err := (journal{Phase: test.phase}).write(f.m.Host()); err != nil {
					t.Fatal(err)
				}
			}
			err := f.init(t, nil)
			refused := test.phase == phaseNone && test.want != nil
			if (err != nil) != refused {
				t.Errorf("error = %v, want one: %v", err, refused)
			}
			if !slices.Equal(f.ran, test.want) {
				t.Errorf("kubeadm ran as %q, want %q", f.ran, test.want)
			}
			if got, err := readJournal(f.m.Host()); err != nil || (!refused && got.Phase != phaseMember) {
				t.Errorf("journal = %+v, %v; want a member", got, err)
			}
		})
	}
}

// finish leaves out what the userdata does.
func TestInitFinishSkipsPhases(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t, clusterInfoPath))
	f.leave()
	if err := (journal{Phase: phaseStarted}).write(f.m.Host()); err != nil {
		t.Fatal(err)
	}
	plan := cloudStackPlan()
	plan.Flags = []string{"--skip-phases=addon/kube-proxy"}
	if err := Init(t.Context(), f.m.Host(), plan, discard); err != nil {
		t.Fatal(err)
	}
	if len(f.ran) != 1 || !strings.Contains(f.ran[0], "kubelet-finalize") {
		t.Errorf("kubeadm ran as %q, want kubelet-finalize alone", f.ran)
	}
}

// Where kubeadm fails late, others may have joined: no reset.
func TestInitFailsLate(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t, clusterInfoPath))
	f.failures = []string{"error: error execution phase addon/coredns: timed out\n"}
	if err := f.init(t, nil); err != nil {
		t.Fatal(err)
	}
	if len(f.ran) != 3 || !strings.Contains(f.ran[1], "kubelet-finalize") || !strings.Contains(f.ran[2], "phase addon all") {
		t.Errorf("kubeadm ran as %q, want init and then the last phases", f.ran)
	}
}

// The time being up is no reason to try again, or to reset.
func TestInitStopsWithTheContext(t *testing.T) {
	t.Parallel()
	f := newFakeKubeadm(t, existing(t))
	ctx, cancel := context.WithCancel(t.Context())
	f.m.Program(Kubeadm, func(command host.Command) (string, error) {
		f.ran = append(f.ran, command.Args[0])
		cancel()
		return "[wait-control-plane] Waiting\n", &host.CommandError{Command: command.String(), Err: context.Canceled}
	})
	err := Init(ctx, f.m.Host(), cloudStackPlan(), discard)
	if err == nil || !strings.Contains(err.Error(), "[wait-control-plane] Waiting") || len(f.ran) != 1 {
		t.Errorf("error = %v after %q, want one run and where it stood", err, f.ran)
	}
}

func TestReadJournalRefuses(t *testing.T) {
	t.Parallel()
	for _, text := range []string{"", "{", `{"phase":"other"}`} {
		m := hosttest.New(t)
		m.Write(journalFile, text)
		if got, err := readJournal(m.Host()); err == nil {
			t.Errorf("journal of %q = %+v, want an error: it decides about a reset", text, got)
		}
	}
}

func TestAPIStateWaitsForTheServer(t *testing.T) {
	t.Parallel()
	var asked atomic.Int32
	server := newTestAPI(t, map[string]http.HandlerFunc{
		"/readyz": func(w http.ResponseWriter, _ *http.Request) {
			if asked.Add(1) < 3 {
				w.WriteHeader(http.StatusInternalServerError)
			}
		},
		clusterInfoPath: says("{}"),
	})
	if got := server.open(t).state(t.Context()); got != clusterOpen || asked.Load() != 3 {
		t.Errorf("state = %d after %d questions, want open after 3", got, asked.Load())
	}
}
