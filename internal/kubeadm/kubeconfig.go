// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/base64"
	"errors"
	"fmt"
	"net/url"

	"go.yaml.in/yaml/v3"

	"nodeagent/internal/host"
)

// OpenAPI reads the administrator's kubeconfig of a control node. It does not call
// the server; a file that does not exist yet is fs.ErrNotExist.
func OpenAPI(h *host.Host) (*API, error) { return openAPI(h, AdminConf) }

// OpenNodeAPI reads a kubeconfig that may look at this machine's node: the
// administrator's, else that of its kubelet. Otherwise it is like OpenAPI.
func OpenNodeAPI(h *host.Host) (*API, error) {
	if h.Exists(AdminConf) {
		return OpenAPI(h)
	}
	return openAPI(h, KubeletConf)
}

func openAPI(h *host.Host, file string) (*API, error) {
	text, err := h.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("cannot use the API: %w", err)
	}
	api, err := parseKubeconfig(text, h.ReadFile)
	if err != nil {
		return nil, fmt.Errorf("cannot use the API: %s: %w", file, err)
	}
	if api.bootID, err = h.BootID(); err != nil {
		return nil, fmt.Errorf("cannot use the API: %w", err)
	}
	return api, nil
}

// parseKubeconfig reads the current context of a kubeconfig as kubeadm writes it:
// the client's certificate is in the text itself or, of a kubelet, in files.
func parseKubeconfig(text []byte, read func(name string) ([]byte, error)) (*API, error) {
	var config struct {
		Current  string `yaml:"current-context"`
		Contexts []struct {
			Name    string
			Context struct{ Cluster, User string }
		}
		Clusters []struct {
			Name    string
			Cluster struct {
				Server string
				CA     string `yaml:"certificate-authority-data"`
			}
		}
		Users []struct {
			Name string
			User struct {
				Certificate     string `yaml:"client-certificate-data"`
				Key             string `yaml:"client-key-data"`
				CertificateFile string `yaml:"client-certificate"`
				KeyFile         string `yaml:"client-key"`
			}
		}
	}
	if err := yaml.Unmarshal(text, &config); err != nil {
		// The parser's message may quote the key.
		return nil, errors.New("it is not valid YAML")
	}
	var clusterName, userName string
	for _, c := range config.Contexts {
		if c.Name == config.Current {
			clusterName, userName = c.Context.Cluster, c.Context.User
		}
	}
	api := &API{}
	settings := &tls.Config{MinVersion: tls.VersionTLS12}
	for _, c := range config.Clusters {
		if c.Name != clusterName {
			continue
		}
		api.server = c.Cluster.Server
		ca, err := base64.StdEncoding.DecodeString(c.Cluster.CA)
		if err != nil {
			return nil, errors.New("its certificate authority is not base64")
		}
		settings.RootCAs = x509.NewCertPool()
		if !settings.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("its certificate authority is no certificate")
		}
	}
	if server, err := url.Parse(api.server); err != nil || server.Scheme != "https" || server.Host == "" {
		return nil, fmt.Errorf("its server %q is no https address", api.server)
	}
	api.anonymous = client(settings.Clone())
	for _, u := range config.Users {
		if u.Name != userName {
			continue
		}
		certificate, err1 := base64.StdEncoding.DecodeString(u.User.Certificate)
		key, err2 := base64.StdEncoding.DecodeString(u.User.Key)
		if err1 != nil || err2 != nil {
			return nil, errors.New("its client certificate is not base64")
		}
		if u.User.CertificateFile != "" && u.User.KeyFile != "" {
			certificate, err1 = read(u.User.CertificateFile)
			key, err2 = read(u.User.KeyFile)
			if err := errors.Join(err1, err2); err != nil {
				return nil, err
			}
		}
		pair, err := tls.X509KeyPair(certificate, key)
		if err != nil {
			return nil, errors.New("its client certificate and key cannot be used")
		}
		settings.Certificates = []tls.Certificate{pair}
		api.certificate = pair.Leaf
	}
	if len(settings.Certificates) == 0 {
		return nil, errors.New("it has no client certificate")
	}
	api.admin = client(settings)
	return api, nil
}
