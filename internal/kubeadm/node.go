// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	rootKubeconfig = "/root/.kube/config"
	apiManifest    = "/etc/kubernetes/manifests/kube-apiserver.yaml"
	etcdData       = "/var/lib/etcd/member"
	// comeBackLimit is how long an API server gets to answer after a kill, which
	// may have been a reboot, before it counts as broken; failedLimit is the same
	// where kubeadm itself gave up.
	comeBackLimit = 3 * time.Minute
	failedLimit   = 15 * time.Second
	maxInitLog    = 8 << 20
)

// Init makes this machine the first control node of its cluster and writes
// root's kubeconfig. On a machine that is one already it does nothing but the
// latter. What a killed or failed earlier try left is removed with `kubeadm reset`
// first, but only if the machine never became a member (pain-points C25, K1); a
// try that fails other than in preflight is made once more. The first error is the
// one returned: fault.KubeadmPreflight with all failed checks, else
// fault.KubeadmInitFailed. kubeadm's output goes to InitLog, secrets taken out.
func Init(ctx context.Context, h *host.Host, plan InitPlan, report host.Report) error {
	config, err := renderInit(plan)
	if err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot run kubeadm init")
	}
	i := &initRun{h: h, config: config, scrub: scrubber(config.secrets), report: say(report)}
	if err := i.run(ctx); err != nil {
		return err
	}
	admin, err := h.ReadFile(AdminConf)
	if err == nil {
		_, err = h.WriteFile(rootKubeconfig, admin, 0o600)
	}
	if err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot write root's kubeconfig")
	}
	return nil
}

type initRun struct {
	h      *host.Host
	config *initConfig
	scrub  func(string) string
	report host.Report
	bootID string
}

func (i *initRun) run(ctx context.Context) (err error) {
	journal, err := readJournal(i.h)
	if err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot tell what became of an earlier kubeadm init")
	}
	if journal.Phase == phaseMember {
		return nil
	}
	if _, err := i.h.WriteFile(configFile, i.config.file, 0o600); err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot run kubeadm init")
	}
	defer func() {
		if _, removeErr := i.h.Remove(configFile); removeErr != nil && err == nil {
			err = fault.Wrap(fault.KubeadmInitFailed, removeErr, "cannot remove kubeadm's configuration")
		}
	}()
	bootID, err := i.h.BootID()
	if err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot run kubeadm init")
	}
	i.bootID = bootID
	limit := comeBackLimit
	if journal.Phase == phaseFailed && journal.BootID == bootID {
		limit = failedLimit
	}
	done, err := i.clear(ctx, journal.Phase, limit)
	if err != nil {
		return err
	}
	if done {
		return i.keep(phaseMember, "")
	}
	return i.attempts(ctx, journal.FirstError)
}

// keep journals the phase.
func (i *initRun) keep(p phase, firstError string) error {
	if p == phaseMember {
		// What the journal vouches for must be on the disk before the journal is.
		i.h.Kernel.Sync()
	}
	if err := (journal{Phase: p, BootID: i.bootID, FirstError: firstError}).write(i.h); err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot keep a record of kubeadm init")
	}
	return nil
}

// clear deals with what an earlier kubeadm init left: it completes a cluster that
// can be joined already, which makes done true, and removes anything less.
func (i *initRun) clear(ctx context.Context, p phase, limit time.Duration) (done bool, err error) {
	switch i.inspect(ctx, limit) {
	case clusterComplete:
		return true, nil
	case clusterOpen:
		return true, i.finish(ctx)
	case clusterBroken:
		if p != phaseNone {
			return false, i.reset(ctx)
		}
		// Not nodeagent's: kubeadm's preflight will say what is in the way.
	}
	return false, nil
}

// attempts runs kubeadm init, at most twice. earlier is the first error of
// earlier runs.
func (i *initRun) attempts(ctx context.Context, earlier string) error {
	var first *fault.Error
	for {
		if err := i.keep(phaseStarted, earlier); err != nil {
			return err
		}
		failed := i.attempt(ctx)
		if failed == nil {
			return i.keep(phaseMember, "")
		}
		if ctx.Err() != nil {
			// Cut short, not failed: the next run finds it as after a kill.
			return failed
		}
		if first != nil {
			if failed.Message != first.Message {
				first.Message += " (and the second time: " + failed.Message + ")"
			}
			return errors.Join(first, i.keep(phaseFailed, earlier))
		}
		first = failed
		if earlier == "" {
			earlier = first.Message
		} else if earlier != first.Message {
			first.Message += " (the first failure on this machine was: " + earlier + ")"
		}
		if err := i.keep(phaseFailed, earlier); err != nil {
			return errors.Join(first, err)
		}
		if first.Code == fault.KubeadmPreflight {
			return first
		}
		i.report("%s; trying once more", first.Message)
		done, err := i.clear(ctx, phaseFailed, failedLimit)
		if err != nil {
			return first // what clear met is a consequence; it is in InitLog
		}
		if done {
			return i.keep(phaseMember, "")
		}
	}
}

// attempt runs kubeadm init once.
func (i *initRun) attempt(ctx context.Context) *fault.Error {
	args := append([]string{"init", "--config", configFile, "--skip-token-print", "--skip-certificate-key-print"}, i.config.args...)
	return i.kubeadm(ctx, "kubeadm init", args...)
}

// reset removes what an unfinished init left.
func (i *initRun) reset(ctx context.Context) error {
	i.report("removing what an unfinished kubeadm init left")
	if err := i.kubeadm(ctx, "kubeadm reset", "reset", "--force", "--cri-socket", i.config.criSocket); err != nil {
		return err
	}
	return nil
}

// finish runs what an init that was killed late had not come to. The cluster can
// be joined already, so it must not be reset.
func (i *initRun) finish(ctx context.Context) error {
	for _, name := range []string{"kubelet-finalize", "addon"} {
		if slices.ContainsFunc(i.config.skipped, func(skipped string) bool { return strings.HasPrefix(skipped, name) }) {
			continue
		}
		args := []string{"init", "phase", name, "all", "--config", configFile}
		if err := i.kubeadm(ctx, "kubeadm init phase "+name, args...); err != nil {
			return err
		}
	}
	return nil
}

// kubeadm runs kubeadm and keeps its output.
func (i *initRun) kubeadm(ctx context.Context, what string, args ...string) *fault.Error {
	log, err := i.openLog()
	if err != nil {
		return fault.Wrap(fault.KubeadmInitFailed, err, "cannot run %s", what)
	}
	defer log.Close()
	if !slices.ContainsFunc(args, func(arg string) bool {
		return strings.HasPrefix(arg, "--v=") || arg == "--v" || strings.HasPrefix(arg, "-v")
	}) {
		args = append(args, "--v=5")
	}
	var output kubeadmOutput
	var logErr error
	write := func(line string) {
		if _, err := fmt.Fprintln(log, line); err != nil && logErr == nil {
			logErr = err
		}
	}
	write(fmt.Sprintf("=== %s %s %s", time.Now().UTC().Format(time.RFC3339), Kubeadm, i.scrub(strings.Join(args, " "))))
	_, err = i.h.Run.Run(ctx, host.Command{Path: Kubeadm, Args: args, Line: func(line string) {
		line = i.scrub(line)
		write(line)
		if progress := output.add(line); progress != "" {
			i.report("%s", progress)
		}
	}})
	if logErr != nil {
		i.report("%s is not complete: %v", InitLog, logErr)
	}
	if err == nil {
		return nil
	}
	if len(output.preflight) > 0 {
		return fault.New(fault.KubeadmPreflight, "%s found this machine unfit: %s", what, strings.Join(output.preflight, "; ")).WithLog(output.tail)
	}
	cause := output.cause
	if cause == "" || ctx.Err() != nil {
		cause = i.scrub(rootCause(err))
	}
	if ctx.Err() != nil && len(output.tail) > 0 {
		cause += " at: " + output.tail[len(output.tail)-1]
	}
	return fault.New(fault.KubeadmInitFailed, "%s failed: %s", what, cause).WithLog(output.tail)
}

// rootCause is why a program ended, without its arguments.
func rootCause(err error) string {
	if failed := (*host.CommandError)(nil); errors.As(err, &failed) {
		return failed.Err.Error()
	}
	return err.Error()
}

func (i *initRun) openLog() (*os.File, error) {
	path := i.h.Path(InitLog)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	flags := os.O_CREATE | os.O_WRONLY | os.O_APPEND
	if info, err := os.Stat(path); err == nil && info.Size() > maxInitLog {
		flags |= os.O_TRUNC
	}
	log, err := os.OpenFile(path, flags, 0o600)
	if err != nil {
		return nil, err
	}
	if err := log.Chmod(0o600); err != nil {
		log.Close()
		return nil, err
	}
	return log, nil
}

// clusterState is what an earlier kubeadm init left on this machine.
type clusterState int

const (
	clusterNone     clusterState = iota // nothing
	clusterBroken                       // something, but no API server that others could join
	clusterOpen                         // an API server that others can join; the rest is missing
	clusterComplete                     // all that kubeadm init makes
)

// leftovers are files of which any one means that an init began.
var leftovers = []string{AdminConf, "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki/ca.crt", apiManifest,
	"/etc/kubernetes/manifests/etcd.yaml", "/var/lib/kubelet/kubeadm-flags.env", etcdData}

func (i *initRun) inspect(ctx context.Context, limit time.Duration) clusterState {
	if !slices.ContainsFunc(leftovers, i.h.Exists) {
		return clusterNone
	}
	if !i.h.Exists(AdminConf) || !i.h.Exists(apiManifest) || !i.h.Exists(etcdData) {
		return clusterBroken
	}
	api, err := OpenAPI(i.h)
	if err != nil {
		return clusterBroken
	}
	defer api.Close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	i.report("asking the API server of an earlier kubeadm init what it has")
	return api.state(ctx)
}

// state looks for the objects kubeadm init makes last: cluster-info, by which
// others join (phase bootstrap-token), and kube-proxy's role binding (phase addon,
// phases/addons/proxy/proxy.go in kubeadm).
func (a *API) state(ctx context.Context) clusterState {
	if err := a.waitAnswer(ctx); err != nil {
		return clusterBroken
	}
	const (
		clusterInfo = "/api/v1/namespaces/kube-public/configmaps/cluster-info"
		proxyRole   = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/kube-proxy"
	)
	if !a.existsInTime(ctx, clusterInfo) {
		return clusterBroken
	}
	if !a.existsInTime(ctx, proxyRole) {
		return clusterOpen
	}
	return clusterComplete
}

// existsInTime asks until it gets an answer: a server that has just come up refuses
// for a while. Without an answer until ctx ends the object is not there.
func (a *API) existsInTime(ctx context.Context, path string) bool {
	for {
		there, err := a.exists(ctx, path)
		if err == nil {
			return there
		}
		if !sleep(ctx, firstBackoff) {
			return false
		}
	}
}
