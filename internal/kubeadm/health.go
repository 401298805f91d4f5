// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/url"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"
	"unicode"

	"nodeagent/internal/host"
)

const (
	pkiFolder = "/etc/kubernetes/pki"
	etcdCA    = pkiFolder + "/etcd/ca.crt"
	// What kubeadm's own probes of etcd show.
	etcdClient   = pkiFolder + "/etcd/healthcheck-client"
	etcdEndpoint = "https://127.0.0.1:2379"
)

// renewWithin is when the end of a certificate is near (pain-point C27).
const renewWithin = 30 * 24 * time.Hour

// CertificateDays looks at all certificates that kubeadm and the kubelet made on this
// machine, those inside of kubeconfigs too. It says which one expires first, and ok is
// false where that is within 30 days. A machine without certificates is
// fs.ErrNotExist.
func CertificateDays(h *host.Host, now time.Time) (ok bool, detail string, err error) {
	expiries, err := expiries(h)
	if err != nil {
		return false, "", err
	}
	first := slices.MinFunc(expiries, func(a, b expiry) int { return a.end.Compare(b.end) })
	left, end := first.end.Sub(now), first.end.UTC().Format(time.DateOnly)
	switch {
	case left <= 0:
		return false, fmt.Sprintf("%s expired on %s: kubeadm certs renew all, then reboot", first.name, end), nil
	case left <= renewWithin:
		return false, fmt.Sprintf("%s expires in %d days: kubeadm certs renew all, then reboot", first.name, days(left)), nil
	}
	return true, fmt.Sprintf("%d days left of %s (%s)", days(left), first.name, end), nil
}

func days(d time.Duration) int { return int(d / (24 * time.Hour)) }

// expiry is when a certificate ends.
type expiry struct {
	name string // of its file, below /etc/kubernetes
	end  time.Time
}

func expiries(h *host.Host) ([]expiry, error) {
	var found []expiry
	for _, pattern := range []string{pkiFolder + "/*.crt", pkiFolder + "/etcd/*.crt", "/var/lib/kubelet/pki/kubelet-client-current.pem"} {
		files, err := filepath.Glob(h.Path(pattern))
		if err != nil {
			return nil, err
		}
		for _, file := range files {
			name := path.Join(path.Dir(pattern), filepath.Base(file))
			text, err := h.ReadFile(name)
			if err != nil {
				return nil, err
			}
			end, err := certificateEnd(text)
			if err != nil {
				return nil, fmt.Errorf("cannot read the certificate %s: %w", name, err)
			}
			found = append(found, expiry{strings.TrimPrefix(name, "/etc/kubernetes/"), end})
		}
	}
	for _, name := range []string{"admin.conf", "super-admin.conf", "controller-manager.conf", "scheduler.conf"} {
		file := "/etc/kubernetes/" + name
		if !h.Exists(file) {
			continue
		}
		api, err := openAPI(h, file)
		if err != nil {
			return nil, err
		}
		found = append(found, expiry{name, api.certificate.NotAfter})
	}
	if len(found) == 0 {
		return nil, fmt.Errorf("cannot find certificates in %s: %w", pkiFolder, fs.ErrNotExist)
	}
	return found, nil
}

// certificateEnd returns when the first certificate of a PEM text ends.
func certificateEnd(text []byte) (time.Time, error) {
	for block, rest := pem.Decode(text); block != nil; block, rest = pem.Decode(rest) {
		if block.Type != "CERTIFICATE" {
			continue
		}
		certificate, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return time.Time{}, err
		}
		return certificate.NotAfter, nil
	}
	return time.Time{}, errors.New("it holds no certificate")
}

// HasEtcd says whether a member of etcd runs on this machine, as a pod of kubeadm's or
// alone.
func HasEtcd(h *host.Host) bool { return h.Exists(etcdClient+".crt") || h.Exists(etcdService) }

// EtcdHealth asks this machine's etcd for its members and each of them whether it
// works: over the JSON form of etcd's API (etcd.io/docs, api_grpc_gateway). ok is false
// where a member does not answer; detail says how many more may fail (K7). It returns
// when ctx ends at the latest.
func EtcdHealth(ctx context.Context, h *host.Host) (ok bool, detail string, err error) {
	if h.Exists(etcdService) {
		return etcdAloneHealth(ctx, h)
	}
	etcd, err := etcdHTTP(h, EtcdTLS{etcdCA, etcdClient + ".crt", etcdClient + ".key"})
	if err != nil {
		return false, "", fmt.Errorf("cannot ask etcd: %w", err)
	}
	defer etcd.CloseIdleConnections()
	return etcdHealth(ctx, etcd, etcdEndpoint)
}

type etcdMember struct {
	Name       string
	ClientURLs []string
	IsLearner  bool
}

func etcdHealth(ctx context.Context, etcd *http.Client, endpoint string) (ok bool, detail string, err error) {
	members, err := etcdMembers(ctx, etcd, endpoint)
	if err != nil {
		return false, "", fmt.Errorf("cannot list etcd's members: %w", err)
	}
	problems := make([]error, len(members))
	var all sync.WaitGroup
	for i, member := range members {
		all.Go(func() { problems[i] = memberHealth(ctx, etcd, member) })
	}
	all.Wait()
	voters, working := 0, 0
	var texts []string
	for i, member := range members {
		switch {
		case member.IsLearner:
			texts = append(texts, member.Name+" is joining")
			continue
		case problems[i] != nil:
			texts = append(texts, fmt.Sprintf("%s: %v", member.Name, problems[i]))
		default:
			working++
		}
		voters++
	}
	detail = fmt.Sprintf("%d of %d members work", working, voters)
	switch spare := working - (voters/2 + 1); {
	case spare < 0:
		detail += ", too few for etcd to work"
	case spare == 0:
		detail += ", none may fail"
	default:
		detail += fmt.Sprintf(", %d may fail", spare)
	}
	return working == voters, strings.Join(append([]string{detail}, texts...), "; "), nil
}

const maxEtcdMembers = 64 // etcd's own advice is 7

func etcdMembers(ctx context.Context, etcd *http.Client, endpoint string) ([]etcdMember, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodPost, endpoint+"/v3/cluster/member/list", strings.NewReader("{}"))
	if err != nil {
		return nil, err
	}
	reply, err := etcd.Do(request)
	if err != nil {
		return nil, withoutAddress(err)
	}
	defer reply.Body.Close()
	if reply.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("it answers %s", reply.Status)
	}
	var list struct{ Members []etcdMember }
	if err := json.NewDecoder(io.LimitReader(reply.Body, maxReply)).Decode(&list); err != nil {
		return nil, err
	}
	if len(list.Members) == 0 || len(list.Members) > maxEtcdMembers {
		return nil, fmt.Errorf("it names %d members", len(list.Members))
	}
	return list.Members, nil
}

// memberHealth asks a member for its health.
func memberHealth(ctx context.Context, etcd *http.Client, member etcdMember) error {
	if len(member.ClientURLs) == 0 {
		return errors.New("has not started")
	}
	return askEtcd(ctx, etcd, member.ClientURLs[0])
}

// printable makes one line of a text from elsewhere that a terminal can show.
func printable(text string) string {
	return strings.Map(func(r rune) rune {
		if !unicode.IsPrint(r) {
			return '?'
		}
		return r
	}, strings.Join(strings.Fields(text), " "))
}

// FailingPods says whether the containers of kube-system's pods on a node work: init
// containers of network plugins fail where nobody looks (pain-point C31), and a controller
// manager or scheduler on a machine that is too slow loses its lease and starts again, later
// each time. detail names the one that failed last, with the last line that it wrote, which
// may hold anything. It returns when ctx ends at the latest.
func (a *API) FailingPods(ctx context.Context, nodeName string) (ok bool, detail string, err error) {
	last, pods, err := a.lastFailure(ctx, nodeName)
	if err != nil {
		return false, "", err
	}
	if last.pod == "" {
		return true, fmt.Sprintf("none of this node's %d in kube-system fails", pods), nil
	}
	line, err := a.lastLine(ctx, last)
	if err != nil {
		line = "its log cannot be read: " + err.Error()
	}
	return false, last.String() + ": " + line, nil
}

// lastFailure returns the container that failed last of those of kube-system on a node, if
// one did, and how many pods there are.
func (a *API) lastFailure(ctx context.Context, nodeName string) (last containerFailure, count int, err error) {
	query := url.Values{"fieldSelector": {"spec.nodeName=" + strings.ToLower(nodeName)}, "limit": {"1000"}}
	var pods struct{ Items []podObject }
	if err := a.getJSON(ctx, a.admin, "/api/v1/namespaces/kube-system/pods?"+query.Encode(), &pods); err != nil {
		return last, 0, fmt.Errorf("cannot list the pods of kube-system: %w", err)
	}
	for _, pod := range pods.Items {
		for _, f := range pod.failures() {
			if f.ended.After(last.ended) {
				last = f
			}
		}
	}
	return last, len(pods.Items), nil
}

// podObject is a pod as far as its containers' failures go.
type podObject struct {
	Metadata struct{ Name string }
	Status   struct{ InitContainerStatuses, ContainerStatuses []containerStatus }
}

type containerStatus struct {
	Name         string
	Ready        bool // of an init container: it ended well
	RestartCount int
	State        struct {
		Waiting             *struct{ Reason string }
		Running, Terminated *ended
	}
	LastState struct{ Terminated *ended }
}

// ended is how a container ended.
type ended struct {
	ExitCode   int
	FinishedAt time.Time
}

// containerFailure is a container that does not do its work.
type containerFailure struct {
	pod, container string
	exitCode       int
	restarts       int
	ended          time.Time
	previous       bool // another try of it runs
}

func (f containerFailure) String() string {
	again := ""
	if f.restarts > 1 {
		again = fmt.Sprintf(", started again %d times", f.restarts)
	}
	return fmt.Sprintf("%s of %s ended with %d%s", f.container, f.pod, f.exitCode, again)
}

// failures are the pod's init containers that ended badly, tried again or not, and its
// other containers that the kubelet waits to start again.
func (p podObject) failures() (found []containerFailure) {
	add := func(c containerStatus, how *ended) {
		if how != nil && how.ExitCode != 0 {
			found = append(found, containerFailure{p.Metadata.Name, c.Name, how.ExitCode, c.RestartCount, how.FinishedAt, c.State.Running != nil})
		}
	}
	for _, c := range p.Status.InitContainerStatuses {
		if !c.Ready {
			add(c, cmp.Or(c.State.Terminated, c.LastState.Terminated))
		}
	}
	for _, c := range p.Status.ContainerStatuses {
		if c.State.Waiting != nil && c.State.Waiting.Reason == "CrashLoopBackOff" {
			add(c, c.LastState.Terminated)
		}
	}
	return found
}

// lastLine returns the last line that a container wrote.
func (a *API) lastLine(ctx context.Context, f containerFailure) (string, error) {
	query := url.Values{"container": {f.container}, "tailLines": {"1"}, "limitBytes": {"4096"}}
	if f.previous {
		query.Set("previous", "true")
	}
	body, err := a.get(ctx, a.admin, "/api/v1/namespaces/kube-system/pods/"+url.PathEscape(f.pod)+"/log?"+query.Encode())
	if err != nil {
		return "", err
	}
	defer body.Close()
	text, err := io.ReadAll(io.LimitReader(body, 4096))
	if err != nil {
		return "", err
	}
	return cmp.Or(printable(string(text)), "it wrote nothing"), nil
}
