// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
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
	i := &run{h: h, verb: "init", code: fault.KubeadmInitFailed, log: InitLog, config: config, scrub: scrubber(config.secrets), report: say(report)}
	i.inspect, i.finish = i.inspectInit, i.finishInit
	if err := i.run(ctx); err != nil {
		return err
	}
	return i.giveRootKubeconfig()
}

// run is a run of kubeadm init or join, with all that may have become of earlier
// ones.
type run struct {
	h      *host.Host
	verb   string     // init or join
	code   fault.Code // of a failure that has none of its own
	log    string     // where kubeadm's output goes
	config *config
	scrub  func(string) string
	report host.Report
	bootID string
	retry  retry // what may be done about kubeadm's last failure

	// inspect looks what an earlier run has left; the API server gets limit to answer.
	inspect func(ctx context.Context, limit time.Duration) clusterState
	// finish runs what one that was killed late had not come to.
	finish func(ctx context.Context) error
	// prepare, if any, waits for what an attempt needs, and may change config.
	prepare func(ctx context.Context) error
}

// giveRootKubeconfig makes kubectl work for root on a control node.
func (i *run) giveRootKubeconfig() error {
	admin, err := i.h.ReadFile(AdminConf)
	if err == nil {
		_, err = i.h.WriteFile(rootKubeconfig, admin, 0o600)
	}
	if err != nil {
		return fault.Wrap(i.code, err, "cannot write root's kubeconfig")
	}
	return nil
}

func (i *run) run(ctx context.Context) (err error) {
	journal, err := readJournal(i.h)
	if err != nil {
		return fault.Wrap(i.code, err, "cannot tell what became of an earlier kubeadm %s", i.verb)
	}
	if journal.Phase == phaseMember {
		return nil
	}
	if err := i.writeConfig(); err != nil {
		return err
	}
	defer func() {
		if _, removeErr := i.h.Remove(configFile); removeErr != nil && err == nil {
			err = fault.Wrap(i.code, removeErr, "cannot remove kubeadm's configuration")
		}
	}()
	bootID, err := i.h.BootID()
	if err != nil {
		return fault.Wrap(i.code, err, "cannot run kubeadm %s", i.verb)
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
	if err := i.prepared(ctx); err != nil {
		return err
	}
	return i.attempts(ctx, journal.FirstError)
}

func (i *run) writeConfig() error {
	if _, err := i.h.WriteFile(configFile, i.config.file, 0o600); err != nil {
		return fault.Wrap(i.code, err, "cannot run kubeadm %s", i.verb)
	}
	return nil
}

// keep journals the phase.
func (i *run) keep(p phase, firstError string) error {
	if p == phaseMember {
		// What the journal vouches for must be on the disk before the journal is.
		i.h.Kernel.Sync()
	}
	if err := (journal{Phase: p, BootID: i.bootID, FirstError: firstError}).write(i.h); err != nil {
		return fault.Wrap(i.code, err, "cannot keep a record of kubeadm %s", i.verb)
	}
	return nil
}

// clear deals with what an earlier run left: it completes what others build on
// already, which makes done true, and removes anything less.
func (i *run) clear(ctx context.Context, p phase, limit time.Duration) (done bool, err error) {
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

// Between two attempts at what only time or others can mend.
const (
	firstRetry = 5 * time.Second
	lastRetry  = time.Minute
)

// attempts runs kubeadm until it succeeds, as often as its failures promise something
// of it: once more where nobody knows better, until ctx ends where another node or the
// API server is awaited. earlier is the first error of earlier runs.
func (i *run) attempts(ctx context.Context, earlier string) error {
	var first *fault.Error
	pause, onceMore := firstRetry, true
	for {
		if err := i.keep(phaseStarted, earlier); err != nil {
			return err
		}
		failed := i.attempt(ctx)
		if failed == nil {
			return i.keep(phaseMember, "")
		}
		if ctx.Err() != nil && first == nil {
			// Cut short, not failed: the next run finds it as after a kill.
			return failed
		}
		policy, again := i.retry, first != nil
		if !again {
			first = failed
			if earlier == "" {
				earlier = first.Message
			} else if earlier != first.Message {
				first.Message += " (the first failure on this machine was: " + earlier + ")"
			}
		}
		if err := i.keep(phaseFailed, earlier); err != nil {
			return errors.Join(first, err)
		}
		if ctx.Err() != nil || policy == retryNever || policy == retryOnce && !onceMore {
			if again && failed.Message != first.Message {
				first.Message += " (and the last time: " + failed.Message + ")"
			}
			return first
		}
		i.report("%s; trying once more", failed.Message)
		done, err := i.clear(ctx, phaseFailed, failedLimit)
		if err != nil {
			return first // what clear met is a consequence; it is in the log
		}
		if done {
			return i.keep(phaseMember, "")
		}
		if policy == retryOnce {
			onceMore = false
			continue
		}
		// Between half and one and a half of it: nodes that were in each other's way
		// must not meet again each time (K6).
		if !sleep(ctx, pause/2+rand.N(pause)) {
			return first
		}
		pause = min(2*pause, lastRetry)
		if err := i.prepared(ctx); err != nil {
			return errors.Join(first, err)
		}
	}
}

// prepared waits for what an attempt needs.
func (i *run) prepared(ctx context.Context) error {
	if i.prepare == nil {
		return nil
	}
	if err := i.prepare(ctx); err != nil {
		return err
	}
	return i.writeConfig()
}

// attempt runs kubeadm once.
func (i *run) attempt(ctx context.Context) *fault.Error {
	args := []string{i.verb, "--config", configFile}
	if i.verb == "init" {
		args = append(args, "--skip-token-print", "--skip-certificate-key-print")
	}
	return i.kubeadm(ctx, "kubeadm "+i.verb, append(args, i.config.args...)...)
}

// reset removes what an unfinished run left; of a control node that had joined etcd
// also its member (K7).
func (i *run) reset(ctx context.Context) error {
	i.report("removing what an unfinished kubeadm %s left", i.verb)
	if err := i.kubeadm(ctx, "kubeadm reset", "reset", "--force", "--cri-socket", i.config.criSocket); err != nil {
		return err
	}
	return nil
}

// finishInit runs what an init that was killed late had not come to. The cluster can
// be joined already, so it must not be reset.
func (i *run) finishInit(ctx context.Context) error {
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
func (i *run) kubeadm(ctx context.Context, what string, args ...string) *fault.Error {
	log, err := i.openLog()
	if err != nil {
		return fault.Wrap(i.code, err, "cannot run %s", what)
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
		i.report("%s is not complete: %v", i.log, logErr)
	}
	if err == nil {
		return nil
	}
	failure := classify(i.verb, &output)
	i.retry = failure.retry
	if failure.cause == "" || ctx.Err() != nil {
		failure.cause = i.scrub(rootCause(err))
	}
	if where := output.where(); ctx.Err() != nil && where != "" {
		failure.cause += " at: " + where
	}
	return fault.New(failure.code, "%s failed: %s", what, failure.cause).WithHint("%s", failure.remedy).WithLog(output.tail).WithLogPath(i.log)
}

// rootCause is why a program ended, without its arguments.
func rootCause(err error) string {
	if failed := (*host.CommandError)(nil); errors.As(err, &failed) {
		return failed.Err.Error()
	}
	return err.Error()
}

func (i *run) openLog() (*os.File, error) {
	path := i.h.Path(i.log)
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

// clusterState is what an earlier run of kubeadm left on this machine.
type clusterState int

const (
	clusterNone     clusterState = iota // nothing
	clusterBroken                       // something, but nothing that others build on
	clusterOpen                         // of init, an API server that others can join; of join, a member: the rest is missing
	clusterComplete                     // all that kubeadm makes
)

// leftovers are files of which any one means that kubeadm began.
var leftovers = []string{AdminConf, "/etc/kubernetes/kubelet.conf", "/etc/kubernetes/pki/ca.crt", apiManifest,
	"/etc/kubernetes/manifests/etcd.yaml", "/var/lib/kubelet/kubeadm-flags.env", etcdData}

func (i *run) inspectInit(ctx context.Context, limit time.Duration) clusterState {
	if !slices.ContainsFunc(leftovers, i.h.Exists) {
		return clusterNone
	}
	if !i.h.Exists(AdminConf) || !i.h.Exists(apiManifest) || !i.config.externalEtcd && !i.h.Exists(etcdData) {
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
	state := api.state(ctx)
	// Etcd elsewhere keeps what a run before the last reset has made there.
	if i.config.externalEtcd && state != clusterBroken && !api.isDescribed(ctx, i.h) {
		return clusterBroken
	}
	return state
}

// isDescribed says whether those who join are told of the CA that this machine has.
func (a *API) isDescribed(ctx context.Context, h *host.Host) bool {
	var object struct{ Data map[string]string }
	admin, err := h.ReadFile(AdminConf)
	if err != nil || a.getJSON(ctx, a.admin, clusterInfoPath, &object) != nil {
		return false
	}
	own, err := caHashOf(string(admin))
	told, toldErr := caHashOf(object.Data["kubeconfig"])
	return err == nil && toldErr == nil && own == told
}

// state looks for the objects kubeadm init makes last: cluster-info, by which
// others join (phase bootstrap-token), and kube-proxy's role binding (phase addon,
// phases/addons/proxy/proxy.go in kubeadm).
func (a *API) state(ctx context.Context) clusterState {
	if err := a.waitAnswer(ctx); err != nil {
		return clusterBroken
	}
	const proxyRole = "/apis/rbac.authorization.k8s.io/v1/namespaces/kube-system/rolebindings/kube-proxy"
	if !a.existsInTime(ctx, clusterInfoPath) {
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
