// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"slices"
	"strconv"
	"time"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

// CA is how sure a node that joined can be that the cluster is its own.
type CA struct {
	Hash     string // sha256:hex of the CA's public key; "" when nobody asked
	Verified bool   // against what the userdata said of it (K3)
}

// Join makes this machine a member of a cluster, with plan.ControlPlane one more
// control node of it. It waits until the cluster can be joined, as long as ctx
// lasts; the CA that it saw then is the one that kubeadm is to find. On a machine
// that is a member already it does nothing. What a killed or failed earlier try left
// is removed with `kubeadm reset`, but only if the machine never became a member.
// The first error is the one returned, of a code that says what is to be done.
// kubeadm's output goes to JoinLog, secrets taken out.
func Join(ctx context.Context, h *host.Host, plan JoinPlan, report host.Report) (CA, error) {
	config, err := renderJoin(plan)
	if err != nil {
		return CA{}, fault.Wrap(fault.KubeadmJoinFailed, err, "cannot run kubeadm join")
	}
	j := &joinRun{plan: plan, ca: CA{Verified: len(plan.CAHashes) > 0 || plan.DiscoveryFile != ""}}
	j.run = &run{h: h, verb: "join", code: fault.KubeadmJoinFailed, log: JoinLog, config: config,
		scrub: scrubber(config.secrets), report: say(report), inspect: j.inspect, finish: j.finish, prepare: j.prepare}
	if err := j.checkCluster(ctx); err != nil {
		return CA{}, err
	}
	if err := j.run.run(ctx); err != nil {
		return CA{}, err
	}
	if plan.ControlPlane {
		return j.ca, j.giveRootKubeconfig()
	}
	return j.ca, nil
}

type joinRun struct {
	*run
	plan JoinPlan
	ca   CA
}

// Limits of the clocks' difference. Certificates of a new cluster are valid from
// five minutes before they were made; a token ends to the minute.
const (
	maxSkew    = 4 * time.Minute
	clockLimit = 3 * time.Minute // for the time service to set the clock right (K4)
)

const defaultAPIPort = 6443 // kubeadm's

// prepare waits until the cluster can be joined, and binds kubeadm to its CA.
func (j *joinRun) prepare(ctx context.Context) error {
	if j.plan.DiscoveryFile != "" {
		file, err := j.h.ReadFile(j.plan.DiscoveryFile)
		if err == nil {
			j.plan.Endpoint, err = endpointOf(string(file))
		}
		if err != nil {
			return fault.Wrap(fault.KubeadmJoinFailed, err, "cannot use the discovery file %s", j.plan.DiscoveryFile)
		}
	}
	if j.plan.Endpoint == "" { // nor in the userdata's own file, as kubeadm will say
		return nil
	}
	info, err := awaitCluster(ctx, j.plan.Endpoint, j.plan.Token.Reveal(), j.report)
	if err != nil {
		return fault.Wrap(fault.APIUnreachable, err, "cannot join the cluster")
	}
	if err := j.awaitClock(ctx, &info); err != nil {
		return err
	}
	if err := joinSkew(info.version, j.plan.Version, j.plan.ControlPlane); err != nil {
		return err
	}
	j.ca.Hash = info.caHash
	if len(j.plan.CAHashes) > 0 || j.plan.DiscoveryFile != "" {
		return nil // kubeadm compares
	}
	j.plan.CAHashes = []string{info.caHash}
	if j.config, err = renderJoin(j.plan); err != nil {
		return fault.Wrap(fault.KubeadmJoinFailed, err, "cannot run kubeadm join")
	}
	return nil
}

// awaitClock gives the time service a while to set a clock right that differs too
// much from the server's: the certificates would not be valid.
func (j *joinRun) awaitClock(ctx context.Context, info *clusterInfo) error {
	limited, cancel := context.WithTimeout(ctx, clockLimit)
	defer cancel()
	told := false
	for info.skew().Abs() > maxSkew {
		if !told {
			j.report("waiting for the clock to be set: it is %s", saySkew(info.skew()))
			told = true
		}
		if !sleep(limited, awaitPause) {
			return fault.New(fault.ClockSkew, "this machine's clock is %s of the API server %s; kubeadm would take its certificates for not valid",
				saySkew(info.skew()), j.plan.Endpoint)
		}
		again, err := awaitCluster(limited, j.plan.Endpoint, j.plan.Token.Reveal(), func(string, ...any) {})
		if err == nil {
			*info = again
		}
	}
	return nil
}

func saySkew(skew time.Duration) string {
	if skew < 0 {
		return skew.Abs().Round(time.Second).String() + " behind that"
	}
	return skew.Round(time.Second).String() + " ahead of that"
}

// inspect looks how far an earlier join came.
func (j *joinRun) inspect(ctx context.Context, limit time.Duration) clusterState {
	if !slices.ContainsFunc(leftovers, j.h.Exists) {
		return clusterNone
	}
	if !j.h.Exists(KubeletConf) || j.plan.ControlPlane && !j.h.Exists(apiManifest) {
		return clusterBroken
	}
	api, err := openAPI(j.h, KubeletConf)
	if err != nil {
		return clusterBroken
	}
	defer api.Close()
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	j.report("asking the cluster what it knows of an earlier kubeadm join")
	node, err := api.awaitNode(ctx, j.plan.NodeName)
	switch {
	case err != nil:
		return clusterBroken
	case !j.plan.ControlPlane || node.isControlPlane():
		return clusterComplete
	}
	// Its own API server is ready only with its etcd, which then is a member.
	own := j.config.ownAPI
	server := net.JoinHostPort(own.AdvertiseAddress, strconv.Itoa(cmp.Or(own.BindPort, defaultAPIPort)))
	if err := api.at("https://" + server).waitAnswer(ctx); err != nil {
		return clusterBroken
	}
	return clusterOpen
}

// finish gives a control node, a member already, the label that it lacks.
func (j *joinRun) finish(ctx context.Context) error {
	if err := j.kubeadm(ctx, "kubeadm join phase control-plane-join", "join", "phase", "control-plane-join", "mark-control-plane", "--config", configFile); err != nil {
		return err
	}
	return nil
}

// controlPlaneLabel is what kubeadm gives a control node, as its last act.
const controlPlaneLabel = "node-role.kubernetes.io/control-plane"

func (n nodeObject) isControlPlane() bool {
	_, is := n.Metadata.Labels[controlPlaneLabel]
	return is
}

// awaitNode asks for a node until the server answers; one that it does not know is
// an error at once.
func (a *API) awaitNode(ctx context.Context, name string) (node nodeObject, err error) {
	for {
		err = a.getJSON(ctx, a.admin, nodePath(name), &node)
		if status := (*StatusError)(nil); err == nil || errors.As(err, &status) && status.Code == 404 {
			return node, err
		}
		if !sleep(ctx, firstBackoff) {
			return node, fmt.Errorf("cannot ask for node %s: %w", name, err)
		}
	}
}

// at is the same client of another server of the cluster.
func (a *API) at(server string) *API {
	other := *a
	other.server = server
	return &other
}
