// SPDX-License-Identifier: Apache-2.0

package kubeadm

import "nodeagent/internal/fault"

var (
	// runtimeWarning is all that kubeadm says of a containerd that does not answer
	// until something else fails.
	runtimeWarning = pattern(`Couldn't create the interface used for talking to the container runtime: (.*)$`)
	pulledImage    = pattern(`^ImagePull: failed to pull image (\S+):`)
)

const (
	// request is a request of the API server that failed.
	request = `(?:Get|Post|Put|Patch) "https://(?P<server>[^/"]+)/apis?/[^"]*": (?:tls: failed to verify certificate: )?`
	restart = "`systemctl restart nodeagent`"
)

// rules are tried in this order. Each has been seen: testdata/failures has the
// output of kubeadm that it was made for.
var rules = []rule{
	// The machine.
	{warning: runtimeWarning, cause: pattern(`preflight checks failed$|failed to create new CRI runtime service|waiting for the kubelet to start`), code: fault.ContainerdFailed,
		says: "containerd does not answer kubeadm", retry: retryOnce},
	{cause: pattern(`failed while waiting for the kubelet to start: .*returned error: (?P<why>.*)$`), code: fault.KubeletFailed,
		says: "kubelet did not get healthy (${why})", retry: retryOnce},
	{cause: pattern(`failed while waiting for the control plane to start: (?P<why>.*)$`), code: fault.ControlPlaneFailed,
		says: "the control plane of this node did not get healthy: ${why}", retry: retryOnce},
	{cause: pattern(`could not bootstrap the admin user in file admin\.conf: (?P<why>.*)$`), code: fault.ControlPlaneFailed,
		says: "the control plane of this node did not get healthy: ${why}", retry: retryOnce}, // 1.29 to 1.33
	{cause: pattern(`wait-control-plane: couldn't initialize a Kubernetes cluster$`), code: fault.ControlPlaneFailed,
		says: "kubelet or the control plane of this node did not get healthy in time", retry: retryOnce}, // before 1.31
	{verb: "join", cause: pattern(`failed while waiting for TLS bootstrap: `), code: fault.KubeletFailed, retry: retryOnce,
		says:   "kubelet got no certificate from the cluster",
		remedy: "See `journalctl -u kubelet`, and on a control node `kubectl get csr`: its controller manager signs the certificates. Then " + restart + "."},
	{cause: pattern(`nodes "(?P<name>[^"]+)" not found$`), code: fault.KubeletFailed, retry: retryOnce,
		says: "kubelet runs, but has not registered the node ${name}"},

	// The cluster's identity, and the clock.
	{verb: "join", cause: pattern(request + `x509: certificate has expired or is not yet valid: current time (?P<now>\S+) is before (?P<then>\S+)`),
		code: fault.ClockSkew, retry: retryClock,
		says: "this machine's clock says ${now}, but the certificate of the API server ${server} begins at ${then}"},
	{verb: "join", cause: pattern(request + `x509: certificate has expired or is not yet valid: current time (?P<now>\S+) is after (?P<then>\S+)`),
		code: fault.ClockSkew, retry: retryClock,
		says: "this machine's clock says ${now}, but the certificate of the API server ${server} ended at ${then}",
		remedy: "Compare this machine's clock (`timedatectl`) with the control node's. If it is right, the cluster's certificates have expired: " +
			"run `kubeadm certs renew all` on each control node and restart its control plane; then " + restart + " here."},
	{verb: "join", cause: pattern(`none of the public keys "(?P<seen>sha256:[0-9a-f]+)" are pinned`), code: fault.ClusterCAMismatch, retry: retryNever,
		says: "the cluster that answers has the CA ${seen}, which is not the one expected"},
	{verb: "join", cause: pattern(request + `x509: certificate signed by unknown authority`), code: fault.ClusterCAMismatch, retry: retryNever,
		says: "the API server ${server} has a certificate of another CA than its cluster"},
	{verb: "join", cause: pattern(request + `x509: certificate is valid for (?P<names>.*), not (?P<name>\S+)$`), code: fault.APICertificateInvalid, retry: retryNever,
		says: "the certificate of the API server is for ${names}, not for ${name}"},

	// The token.
	{verb: "join", cause: pattern(`could not find a JWS signature in the cluster-info ConfigMap for token ID "(?P<id>[^"]*)"`), code: fault.JoinTokenInvalid, retry: retryNever,
		says: "the cluster does not know the join token ${id}, or it has expired"},
	{verb: "join", cause: pattern(`failed to verify JWS signature of received cluster info object`), code: fault.JoinTokenInvalid, retry: retryNever,
		says: "the second half of the join token is not the one that the cluster has"},
	{verb: "join", cause: pattern(`: Unauthorized$`), code: fault.JoinTokenInvalid, retry: retryNever,
		says: "the cluster refuses the join token: it has expired, or may not be used to log in"},

	// The certificates of a further control node.
	{verb: "join", cause: pattern(`Secret "kubeadm-certs" was not found`), code: fault.CertificateKeyExpired, retry: retryNever,
		says: "the cluster does not hold the certificates for a further control node: kubeadm keeps them for two hours"},
	{verb: "join", cause: pattern(`error decoding secret data with provided key: `), code: fault.CertificateKeyWrong, retry: retryNever,
		says: "the certificate key of the userdata does not open the certificates that the cluster holds"},

	// What the cluster has.
	{verb: "join", cause: pattern(`configmaps "cluster-info" (?P<why>is forbidden|not found)`),
		code: fault.ClusterNotJoinable, retry: retryBackOff,
		says: "the cluster does not describe itself to nodes yet: its ConfigMap cluster-info ${why}"},
	{verb: "join", cause: pattern(`(?P<kind>[a-z]+) "(?P<name>[^"]+)" is forbidden: User "(?P<user>[^"]+)" cannot (?P<verb>[a-z]+) `), code: fault.ClusterNotJoinable, retry: retryNever,
		says: "the join token's user ${user} may not ${verb} ${kind} ${name}"},
	{verb: "join", cause: pattern(`configmaps "(?P<name>kubeadm-config|kubelet-config)" not found`), code: fault.ClusterNotJoinable, retry: retryNever,
		says: "the cluster has no ConfigMap ${name}, which kubeadm joins by"},
	{verb: "join", cause: pattern(`a Node with name "(?P<name>[^"]*)" and status "Ready" already exists`), code: fault.NodeNameTaken, retry: retryNever,
		says: "the cluster has a node ${name} already, and it is Ready"},
	{verb: "join", cause: pattern(`cluster that doesn't have a stable controlPlaneEndpoint address`), code: fault.ClusterNotJoinable, retry: retryNever,
		says:   "the cluster was made for one control node: it has no controlPlaneEndpoint",
		remedy: "Set controlPlaneEndpoint in the ConfigMap kubeadm-config of kube-system to an address that stays, or make the cluster with one; then " + restart + "."},

	// etcd.
	{verb: "join", cause: pattern(`etcdserver: too many learner members`), code: fault.EtcdLearnerLimit, retry: retryBackOff,
		says: "another control node is joining: etcd takes one at a time"},
	{verb: "join", cause: pattern(`the etcd member (?P<id>[0-9a-f]+) is not started$`), code: fault.EtcdUnhealthy, retry: retryOnce,
		says: "the etcd of this node did not start; the cluster waits for its member ${id}",
		remedy: "See the logs of etcd (`crictl ps -a`, /var/log/pods) and `journalctl -u kubelet` here, then " + restart +
			". Until it has joined no other control node can: remove the member with `etcdctl member remove` on a control node if this one is given up."},
	{verb: "join", cause: pattern(`^error execution phase (?:check-etcd|etcd-join): (?P<why>.*context deadline exceeded)$`), code: fault.EtcdUnhealthy, retry: retryBackOff,
		says: "the cluster's etcd does not answer: ${why}"},

	// The configuration, which nodeagent makes of the userdata.
	{cause: pattern(`only supports deploying clusters with the control plane version >= (?P<least>\S+)\. Current version: (?P<has>\S+)`), code: fault.VersionSkew, retry: retryNever,
		says: "the kubeadm of the ISO is for Kubernetes ${least} and newer, and the cluster has ${has}"},
	{cause: pattern(`^(?:no kind "\S+" is registered for version|your configuration file uses an old API spec:) "(?P<api>[^"]+)"`), code: fault.VersionSkew, retry: retryNever,
		says:   "the kubeadm of the ISO does not read the configuration that nodeagent writes, of ${api}",
		remedy: "Use an ISO of a Kubernetes version that this nodeagent knows, or a newer nodeagent."},
	{cause: pattern(`^\[?(?P<field>[a-z][A-Za-z.]*): Invalid value: (?P<why>.*)$`), code: fault.UserdataInvalid, retry: retryNever,
		says: "kubeadm refuses the value of ${field}: ${why}"},
	{cause: pattern(`^(?P<why>version ".*" doesn't match patterns .*|the bootstrap token ".*" was not of the form .*)$`), code: fault.UserdataInvalid, retry: retryNever,
		says: "kubeadm refuses a value: ${why}"},
	{cause: pattern(`^json: cannot unmarshal (?P<what>\S+) into Go struct field (?P<field>\S+) of type `), code: fault.UserdataInvalid, retry: retryNever,
		says: "kubeadm refuses the value of ${field}: it must not be a ${what}"},
	{verb: "join", cause: pattern(`invalid discovery token CA certificate hash: (?P<why>.*)$`), code: fault.UserdataInvalid, retry: retryNever,
		says: "kubeadm refuses the CA's hash: ${why}"},

	// Last, for it may be the consequence of any of the others.
	{verb: "join", cause: pattern(request + `(?P<why>(?:dial tcp|read tcp |write tcp |net/http: |http: |context deadline exceeded|EOF|unexpected EOF).*)$`),
		code: fault.APIUnreachable, retry: retryReachable,
		says: "the API server ${server} does not answer: ${why}"},
}

// findings are kinds of failed preflight checks.
var findings = []finding{
	{check: pattern(`^ImagePull: `), code: fault.ImageMissing, retry: retryNever},
	{check: pattern(`^CRI: `), code: fault.ContainerdFailed, retry: retryOnce},
	// The 15 s that an upgrade's trial job has are kubeadm's own (its phases/upgrade/health.go):
	// too few for a busy machine, and where no node takes pods it is left out.
	{check: pattern(`^CreateJob: .* did not complete in `), code: fault.UpgradeFailed, retry: retryUnchecked},
	// An API server that is there and too busy to answer: kubeadm asks each thing for seconds.
	{check: pattern(`(?:context deadline exceeded|Client\.Timeout exceeded|connection refused|TLS handshake timeout|i/o timeout)`), code: fault.APIUnreachable, retry: retryReachable,
		remedy: "See whether the machine has CPU time and memory left (`top`); then " + restart + "."},
	{check: pattern(`^(?:Port-\d+|FileAvailable--.*|DirAvailable--.*): `), code: fault.KubeadmPreflight, retry: retryNever,
		remedy: "This machine is, or was, a Kubernetes node: `kubeadm reset` takes away what it has of that (its data too); then " + restart + "."},
}
