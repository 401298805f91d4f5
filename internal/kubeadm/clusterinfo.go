// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const clusterInfoPath = "/api/v1/namespaces/kube-public/configmaps/cluster-info"

// clusterInfo is what an API server tells anyone about its cluster, in the
// ConfigMap cluster-info that kubeadm init makes for those who join.
type clusterInfo struct {
	caHash string    // sha256:hex of the CA's public key, as kubeadm writes it
	signed bool      // for the bootstrap token that was asked for
	date   time.Time // the server's clock, to the second; zero when it does not say
	made   time.Time // when kubeadm init had made it, by the same clock; zero when it does not say
	asked  time.Time // by this machine's clock

	version string // of the API server: v1.34.4; "" when it does not say
}

// skew is how much this machine's clock is ahead of the server's; less than two
// seconds are not known.
func (c clusterInfo) skew() time.Duration {
	if c.date.IsZero() {
		return 0
	}
	return c.asked.Sub(c.date)
}

// awaitPause is between two looks at an API server that is not there or not ready:
// nothing tells when it is.
const awaitPause = 2 * time.Second

// signerLimit is how long the controller manager may take to sign cluster-info for
// a token. After that kubeadm is asked, and says what is wrong with the token. That of a
// cluster which is being made may not run yet: kubeadm init does not wait for it.
func (c clusterInfo) signerLimit() time.Duration {
	const young = 30 * time.Minute
	if !c.made.IsZero() && !c.date.IsZero() && c.date.Sub(c.made) < young {
		return 10 * time.Minute
	}
	return 30 * time.Second
}

// awaitCluster blocks until the API server at endpoint (host:port) has what a node
// needs to join with the token: the wait of a node that is faster than its control
// plane. Whose server it is is not checked; kubeadm does that. When ctx ends first
// the error says what the server answered last.
func awaitCluster(ctx context.Context, endpoint, token string, report host.Report) (clusterInfo, error) {
	id, _, _ := strings.Cut(token, ".")
	client := client(&tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: true})
	defer client.CloseIdleConnections()
	var last string
	var unsigned time.Time
	for {
		info, err := readClusterInfo(ctx, client, "https://"+endpoint, id)
		switch {
		case err == nil && info.signed:
			info.version = readVersion(ctx, client, "https://"+endpoint)
			return info, nil
		case err == nil:
			if unsigned.IsZero() {
				unsigned = time.Now()
			}
			limit := info.signerLimit()
			if time.Since(unsigned) > limit {
				return info, nil
			}
			err = fmt.Errorf("it has not signed its description for the bootstrap token %s yet, which may take %s", id, limit)
		}
		if ctx.Err() != nil {
			if last == "" {
				last = err.Error()
			}
			return clusterInfo{}, fmt.Errorf("cannot reach the cluster at %s: %s", endpoint, last)
		}
		if text := err.Error(); text != last {
			last = text
			report("waiting for the API server %s: %s", endpoint, text)
		}
		sleep(ctx, awaitPause)
	}
}

// readClusterInfo asks once.
func readClusterInfo(ctx context.Context, client *http.Client, server, tokenID string) (clusterInfo, error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, server+clusterInfoPath, nil)
	if err != nil {
		return clusterInfo{}, err
	}
	request.Header.Set("Accept", "application/json")
	info := clusterInfo{asked: time.Now()}
	reply, err := client.Do(request)
	if err != nil {
		return clusterInfo{}, withoutAddress(err)
	}
	defer reply.Body.Close()
	info.date, _ = http.ParseTime(reply.Header.Get("Date")) // a server that does not say has no clock to compare
	if reply.StatusCode != http.StatusOK {
		return info, statusError(reply)
	}
	var object struct {
		Metadata struct{ CreationTimestamp time.Time }
		Data     map[string]string
	}
	if err := json.NewDecoder(io.LimitReader(reply.Body, 1<<20)).Decode(&object); err != nil {
		return info, errors.New("its cluster-info is no ConfigMap")
	}
	info.made = object.Metadata.CreationTimestamp
	_, info.signed = object.Data["jws-kubeconfig-"+tokenID]
	info.caHash, err = caHashOf(object.Data["kubeconfig"])
	return info, err
}

// readVersion asks what /version tells anyone, unless the cluster forbids it.
func readVersion(ctx context.Context, client *http.Client, server string) string {
	api := API{server: server, anonymous: client}
	version, err := api.Version(ctx)
	if err != nil {
		return ""
	}
	return version
}

// oldestKubelet is how many minor versions a kubelet may be behind the API server
// (kubernetes.io/releases/version-skew-policy).
const oldestKubelet = 3

// joinSkew says why a node with the version of its ISO cannot join a cluster. kubeadm
// itself does not look: a control node would bring up an older API server, or wait for
// images that its ISO lacks, and leave a learner in etcd.
func joinSkew(cluster, iso string, controlPlane bool) error {
	_, theirs, err := minorVersion(cluster)
	_, ours, wrong := minorVersion(iso)
	skew := func(why string) error {
		return fault.New(fault.VersionSkew, "the cluster runs Kubernetes %s and the ISO holds %s: %s", cluster, WithV(iso), why)
	}
	switch {
	case err != nil || wrong != nil:
		return nil // what is no release is kubeadm's to judge
	case controlPlane && cluster != WithV(iso):
		return skew("a further control node needs the images of the cluster's version")
	case ours > theirs:
		return skew("a kubelet must not be newer than its API server")
	case theirs-ours > oldestKubelet:
		return skew(fmt.Sprintf("a kubelet may be %d minor versions older than its API server at most", oldestKubelet))
	}
	return nil
}

// endpointOf reads host:port of the cluster that a kubeconfig without contexts describes.
func endpointOf(kubeconfig string) (string, error) {
	var described struct {
		Clusters []struct{ Cluster struct{ Server string } }
	}
	if err := yaml.Unmarshal([]byte(kubeconfig), &described); err != nil || len(described.Clusters) != 1 {
		return "", errors.New("it does not describe one cluster")
	}
	endpoint, found := strings.CutPrefix(described.Clusters[0].Cluster.Server, "https://")
	if !found || strings.ContainsAny(endpoint, "/@") {
		return "", errors.New("its server is not of the form https://host:port")
	}
	return endpoint, nil
}

// caHashOf reads the CA of the cluster that a kubeconfig without contexts describes.
func caHashOf(kubeconfig string) (string, error) {
	var described struct {
		Clusters []struct {
			Cluster struct {
				CA string `yaml:"certificate-authority-data"`
			}
		}
	}
	if err := yaml.Unmarshal([]byte(kubeconfig), &described); err != nil || len(described.Clusters) != 1 {
		return "", errors.New("its cluster-info does not describe one cluster")
	}
	text, err := base64.StdEncoding.DecodeString(described.Clusters[0].Cluster.CA)
	if err != nil {
		return "", errors.New("its cluster-info has a CA that is not base64")
	}
	hash, err := hashCA(text)
	if err != nil {
		return "", fmt.Errorf("its cluster-info has %w", err)
	}
	return hash, nil
}

// hashCA returns the hash by which kubeadm knows the CA of a certificate in PEM.
func hashCA(text []byte) (string, error) {
	block, _ := pem.Decode(text)
	if block == nil {
		return "", errors.New("no CA")
	}
	certificate, err := x509.ParseCertificate(block.Bytes)
	if err != nil {
		return "", errors.New("a CA that is no certificate")
	}
	hash := sha256.Sum256(certificate.RawSubjectPublicKeyInfo)
	return "sha256:" + hex.EncodeToString(hash[:]), nil
}
