// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"errors"
	"io"
	"net/http"
	"slices"
	"strings"
	"testing"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
	"nodeagent/internal/host/hosttest"
)

func TestPlanAddOns(t *testing.T) {
	t.Parallel()
	for name, test := range map[string]struct {
		files    []string
		addOns   AddOns
		want     []string
		bindsWeb bool
	}{
		"an older ISO":     {files: []string{"network.yaml", "dashboard.yaml"}, want: []string{"network.yaml", "dashboard.yaml"}, bindsWeb: true},
		"a newer ISO":      {files: []string{"network.yaml", "headlamp.yaml"}, want: []string{"network.yaml", "headlamp.yaml"}},
		"both":             {files: []string{"dashboard.yaml", "headlamp.yaml"}, want: []string{"headlamp.yaml"}},
		"an external CNI":  {files: []string{"network.yaml", "dashboard.yaml"}, addOns: AddOns{ExternalCNI: true}, want: []string{"dashboard.yaml"}, bindsWeb: true},
		"nothing":          {},
		"others' manifest": {files: []string{"provider.yaml", "manifest.yaml"}},
	} {
		tasks := planAddOns(func(file string) bool { return slices.Contains(test.files, strings.TrimPrefix(file, Manifests+"/")) }, test.addOns)
		var got []string
		for _, task := range tasks[:len(tasks)-1] {
			got = append(got, task.name)
		}
		bindings := tasks[len(tasks)-1].manifest
		if !slices.Equal(got, test.want) || strings.Contains(bindings, "name: kubernetes-dashboard-ui") != test.bindsWeb {
			t.Errorf("%s: plan = %q, want %q (dashboard's binding: %v)", name, got, test.want, test.bindsWeb)
		}
		for _, binding := range []string{"name: admin-binding", "name: cluster-admin-binding"} {
			if !strings.Contains(bindings, binding) {
				t.Errorf("%s: bindings lack %q", name, binding)
			}
		}
	}
}

func refusal(lines ...string) error {
	return &host.CommandError{ExitCode: 1, Tail: lines, Err: errors.New(exitStatus)}
}

func addOnMachine(t *testing.T) *hosttest.Machine {
	m := hosttest.New(t)
	m.Write(AdminConf, newTestAPI(t, map[string]http.HandlerFunc{"/readyz": says("ok")}).kubeconfig)
	m.Write(Manifests+"/network.yaml", "kind: DaemonSet\n")
	m.Write(Manifests+"/dashboard.yaml", "kind: Deployment\n")
	return m
}

func TestApplyAddOnsRetries(t *testing.T) {
	t.Parallel()
	m := addOnMachine(t)
	var applied []string
	busy := 2
	m.Program(Kubectl, func(command host.Command) (string, error) {
		if busy--; busy >= 0 {
			return "", refusal("serviceaccount/podnet created", `error: error validating "x": failed to download openapi: connection refused`)
		}
		last := command.Args[len(command.Args)-1]
		if last == "-" {
			text, err := io.ReadAll(command.Stdin)
			if err != nil || !strings.Contains(string(text), "kubernetes-dashboard-ui") {
				t.Errorf("kubectl was given %q (%v)", text, err)
			}
		}
		applied = append(applied, last)
		return "", nil
	})
	if err := ApplyAddOns(t.Context(), m.Host(), AddOns{}, nil); err != nil {
		t.Fatal(err)
	}
	if want := []string{Manifests + "/network.yaml", Manifests + "/dashboard.yaml", "-"}; !slices.Equal(applied, want) {
		t.Errorf("applied %q, want %q", applied, want)
	}
	if want := "run /opt/bin/kubectl --kubeconfig /etc/kubernetes/admin.conf apply -f " + Manifests + "/network.yaml"; m.Actions()[0] != want {
		t.Errorf("kubectl was not run as %q", want)
	}
}

// A manifest that is no manifest fails at once, and the others are applied all the
// same: an ISO built with a failed download holds an HTML page.
func TestApplyAddOnsGivesUpOnNonsense(t *testing.T) {
	t.Parallel()
	m := addOnMachine(t)
	runs := 0
	m.Program(Kubectl, func(command host.Command) (string, error) {
		runs++
		if strings.HasSuffix(command.Args[len(command.Args)-1], "dashboard.yaml") {
			return "", refusal(`error: error validating "dashboard.yaml": error validating data: invalid object to validate`)
		}
		return "", nil
	})
	err := ApplyAddOns(t.Context(), m.Host(), AddOns{}, nil)
	if err == nil || fault.As(err).Code != fault.AddOnFailed || !strings.Contains(err.Error(), "dashboard.yaml") || runs != 3 {
		t.Errorf("error = %v after %d runs, want %s after 3", err, runs, fault.AddOnFailed)
	}
}

func TestHopeless(t *testing.T) {
	t.Parallel()
	for line, want := range map[string]bool{
		`error: error parsing x.yaml: error converting YAML to JSON`:                                   true,
		`error: error validating "x.yaml": error validating data: unknown field "spec.x"`:              true,
		`The Deployment "d" is invalid: spec.selector: Required value`:                                 true,
		`error: error validating "x": failed to download openapi: Get "https://x": connection refused`: false,
		`error: resource mapping not found: no matches for kind "X" in version "y/v1"`:                 false,
		`The connection to the server 10.1.1.57:6443 was refused`:                                      false,
		`Error from server (InternalError): failed calling webhook`:                                    false,
	} {
		if got := hopeless([]string{"Warning: old", line}); got != want {
			t.Errorf("hopeless(%q) = %v, want %v", line, got, want)
		}
	}
	if hopeless(nil) {
		t.Error("an error without output is hopeless: kubectl may have been killed")
	}
}
