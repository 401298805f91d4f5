// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"encoding/pem"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// A machine that CloudStack's server has taken out of its cluster with `kubeadm reset`
// (contract 5.5, scale down of an external node) is none of its members any more.
func TestTakeStock(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		phase   phase
		kubelet bool
		want    Stock
		left    bool // of the journal
	}{
		"never a node":      {want: Stock{Version: "v1.34.4"}},
		"member":            {phase: phaseMember, kubelet: true, want: Stock{Version: "v1.34.4", Member: true}, left: true},
		"taken out":         {phase: phaseMember, want: Stock{Version: "v1.34.4"}},
		"on its way":        {phase: phaseStarted, kubelet: true, want: Stock{Version: "v1.34.4"}, left: true},
		"others' work":      {kubelet: true, want: Stock{Version: "v1.34.4"}},
		"failed on its way": {phase: phaseFailed, want: Stock{Version: "v1.34.4"}, left: true},
	} {
		m := testMachine(t)
		m.Write(Kubeadm, "kubeadm v1.34.4")
		if test.kubelet {
			m.Write(KubeletConf, "x")
		}
		if test.phase != phaseNone {
			if err := (journal{Phase: test.phase}).write(m.Host()); err != nil {
				t.Fatal(err)
			}
		}
		got, err := TakeStock(t.Context(), m.Host())
		if err != nil || got != test.want || m.Host().Exists(journalFile) != test.left {
			t.Errorf("%s: %+v, %v, journal %v; want %+v", name, got, err, m.Host().Exists(journalFile), test.want)
		}
	}
	m := testMachine(t)
	m.Write(Kubeadm, "half written")
	m.Program(Kubeadm, func(host.Command) (string, error) { return "", &host.CommandError{ExitCode: 126} })
	if got, err := TakeStock(t.Context(), m.Host()); err != nil || got != (Stock{}) {
		t.Errorf("a program that does not run: %+v, %v", got, err)
	}
}

// A member of the cluster that the userdata names stays one; of another it stays one
// too, for nobody has asked for its end, and the boot fails.
func TestJoinOfAMember(t *testing.T) {
	t.Parallel()
	api, other := joinable(t, nil), joinable(t, nil)
	for _, own := range []*testAPI{api, other} {
		f := newFakeKubeadm(t, api)
		f.m.Write(KubeletConf, api.kubeconfig)
		f.m.Write(caFile, string(pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: own.Certificate().Raw})))
		if err := (journal{Phase: phaseMember}).write(f.m.Host()); err != nil {
			t.Fatal(err)
		}
		plan := planFor(api)
		_, err := Join(t.Context(), f.m.Host(), plan, discard)
		if same := hashOf(own) == hashOf(api); same != (err == nil) || len(f.ran) > 0 {
			t.Errorf("same cluster %v: error %v after %q", same, err, f.ran)
		} else if !same && (fault.As(err).Code != fault.OtherClusterMember || !strings.Contains(fault.As(err).Hint, "nodeagent reset")) {
			t.Errorf("error = %v, want %s", err, fault.OtherClusterMember)
		}
	}
}
