// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"path"
	"regexp"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// AddOns says which add-ons a cluster gets beside what kubeadm installs.
type AddOns struct {
	// ExternalCNI leaves network.yaml out: somebody else brings the pod network.
	ExternalCNI bool
}

// ApplyAddOns applies the ISO's manifests that Install kept: the network first,
// then headlamp or, where the ISO has none, the dashboard, and the role bindings
// that the management server's users rely on. A manifest the ISO does not have is
// passed over. What the API does not accept yet is tried again until ctx ends; a
// manifest it never will accept fails at once. Both are fault.AddOnFailed.
func ApplyAddOns(ctx context.Context, h *host.Host, addOns AddOns, report host.Report) error {
	api, err := OpenAPI(h)
	if err != nil {
		return fault.Wrap(fault.AddOnFailed, err, "cannot apply the add-ons")
	}
	defer api.Close()
	a := &applier{h: h, ready: api.waitAnswer, report: say(report)}
	var problems []error
	for _, task := range planAddOns(h.Exists, addOns) {
		problems = append(problems, a.apply(ctx, task))
	}
	if errors.Join(problems...) != nil {
		return fault.Join(fault.AddOnFailed, problems)
	}
	return nil
}

// addOn is one call of kubectl apply.
type addOn struct {
	name     string // of the manifest, or what it is
	file     string // "" for none
	manifest string // given on standard input
}

// planAddOns decides what to apply, in order.
func planAddOns(exists func(string) bool, addOns AddOns) []addOn {
	var tasks []addOn
	manifest := func(name string) bool {
		file := path.Join(Manifests, name)
		if !exists(file) {
			return false
		}
		tasks = append(tasks, addOn{name: name, file: file})
		return true
	}
	if !addOns.ExternalCNI {
		manifest("network.yaml")
	}
	bindings := adminBindings
	// Newer ISOs bring headlamp in the dashboard's place (cloudstack-contract.md,
	// 4.7).
	if !manifest("headlamp.yaml") && manifest("dashboard.yaml") {
		bindings += dashboardBinding
	}
	return append(tasks, addOn{name: "the role bindings", manifest: bindings})
}

// The bindings CloudStack's scripts make, under their names.
const (
	adminBindings = `apiVersion: rbac.authorization.k8s.io/v1
kind: RoleBinding
metadata:
  name: admin-binding
  namespace: default
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: admin}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: admin}
---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: cluster-admin-binding
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects:
- {apiGroup: rbac.authorization.k8s.io, kind: User, name: admin}
`
	dashboardBinding = `---
apiVersion: rbac.authorization.k8s.io/v1
kind: ClusterRoleBinding
metadata:
  name: kubernetes-dashboard-ui
roleRef: {apiGroup: rbac.authorization.k8s.io, kind: ClusterRole, name: cluster-admin}
subjects:
- {kind: ServiceAccount, name: kubernetes-dashboard, namespace: kubernetes-dashboard}
`
)

type applier struct {
	h      *host.Host
	ready  func(ctx context.Context) error // waits for the API server
	report host.Report
}

// apply runs kubectl until the manifest is accepted.
func (a *applier) apply(ctx context.Context, task addOn) error {
	for pause := firstBackoff; ; pause = min(pause*2, 5*maxBackoff) {
		if err := a.ready(ctx); err != nil {
			return fault.Wrap(fault.AddOnFailed, err, "cannot apply %s", task.name)
		}
		a.report("applying %s", task.name)
		command := host.Command{Path: Kubectl, Args: []string{"--kubeconfig", AdminConf, "apply", "-f"}}
		if task.file != "" {
			command.Args = append(command.Args, task.file)
		} else {
			command.Args = append(command.Args, "-")
			command.Stdin = strings.NewReader(task.manifest)
		}
		_, err := a.h.Run.Run(ctx, command)
		if err == nil {
			return nil
		}
		failed := fault.New(fault.AddOnFailed, "cannot apply %s: %s", task.name, rootCause(err))
		if output := kubectlErrors(err); len(output) > 0 {
			failed = fault.New(fault.AddOnFailed, "cannot apply %s: %s", task.name, strings.Join(output, "; ")).WithLog(output)
		}
		if hopeless(failed.Log) {
			return failed
		}
		a.report("%s; trying again", failed.Message)
		if !sleep(ctx, pause) {
			return failed
		}
	}
}

// kubectlErrors returns the lines of kubectl's output that are no success.
func kubectlErrors(err error) []string {
	var failed *host.CommandError
	if !errors.As(err, &failed) {
		return nil
	}
	var lines []string
	for _, line := range failed.Tail {
		if !appliedLine.MatchString(line) {
			lines = append(lines, line)
		}
	}
	return lines
}

var (
	appliedLine = regexp.MustCompile(`^\S+/\S+ (created|configured|unchanged|serverside-applied)$`)
	// What kubectl says of a text that no API server will take. An object of a
	// kind that is not there ("no matches for kind") may come with a CRD.
	hopelessLine = regexp.MustCompile(`^error: (error parsing|error converting YAML|error validating|the path ".*" does not exist)|is invalid: `)
)

// hopeless says that no error is one that time can mend.
func hopeless(lines []string) bool {
	for _, line := range lines {
		if strings.HasPrefix(line, "Warning:") {
			continue
		}
		// Validating needs the server, which may have gone away.
		if !hopelessLine.MatchString(line) || strings.Contains(line, "failed to download openapi") {
			return false
		}
	}
	return len(lines) > 0
}
