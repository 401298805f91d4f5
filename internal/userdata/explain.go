// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"slices"
	"strconv"
	"strings"

	"nodeagent/internal/secret"
)

// Explanation says where one value came from. It holds no secret.
type Explanation struct {
	Key   string `json:"key"`
	Value string `json:"value"`
	From  string `json:"from"`
}

// Explain says where the intent's values came from, in the order of its fields; what
// was not given and has no default is left out.
func (i Intent) Explain() []Explanation {
	var e explainer
	e.origins = i.Origins
	e.add("mode", string(i.Mode))
	e.add("version", i.Version)
	e.add("endpoint", i.Endpoint)
	e.add("advertiseAddress", i.AdvertiseAddress)
	e.number("bindPort", i.BindPort)
	e.add("nodeName", i.NodeName)
	e.add("certSANs", strings.Join(i.CertSANs, ", "))
	e.hidden("token", i.Token)
	e.add("tokenTTL", i.TokenTTL)
	e.add("discovery", i.Discovery.String())
	e.hidden("certificateKey", i.CertificateKey)
	e.truth("uploadCerts", i.UploadCerts)
	e.add("ignorePreflight", strings.Join(i.IgnorePreflight, ", "))
	e.add("criSocket", i.CRISocket)
	e.put("flags", i.Flags.String())
	e.add("kubeadmConfig", i.KubeadmConfig)
	e.add("externalEtcd", strings.Join(i.ExternalEtcd, ", "))
	if i.Etcd != nil {
		e.add("etcd", i.Etcd.Name+" at "+i.Etcd.Address)
	}
	e.truth("externalCNI", i.ExternalCNI)
	if i.Registry != nil {
		e.add("registry", i.Registry.Host)
	}
	if i.WaitInterval > 0 {
		e.add("waitInterval", i.WaitInterval.String())
	}
	e.number("waitAttempts", i.WaitAttempts)
	e.truth("ejectISO", i.EjectISO)
	e.add("vrISO", i.VRISO)
	e.number("sshKeys", i.SSHKeys)
	return e.list
}

// Shown is the intent as it may be printed: what stands in a field for something else
// and looks like a secret is struck out of it.
func (i Intent) Shown() Intent {
	lists := []*[]string{&i.CertSANs, &i.IgnorePreflight, &i.ExternalEtcd, &i.HandoverReasons}
	texts := []*string{&i.Version, &i.Endpoint, &i.AdvertiseAddress, &i.NodeName, &i.TokenTTL, &i.Discovery.File, &i.CRISocket, &i.KubeadmConfig, &i.VRISO}
	if i.Flags != nil {
		i.Flags = i.Flags.shown()
	}
	if i.Etcd != nil {
		etcd := *i.Etcd
		if etcd.Flags != nil {
			etcd.Flags = etcd.Flags.shown()
		}
		texts = append(texts, &etcd.Name, &etcd.Address, &etcd.InitialCluster, &etcd.State, &etcd.Token)
		i.Etcd = &etcd
	}
	if i.Registry != nil {
		registry := *i.Registry
		texts = append(texts, &registry.Host, &registry.URL, &registry.Username)
		i.Registry = &registry
	}
	hashes := slices.Clone(i.Discovery.CAHashes) // public, if they are
	for at, hash := range hashes {
		if !hashForm().MatchString(hash) {
			hashes[at] = withoutSecrets(hash)
		}
	}
	i.Discovery.CAHashes = hashes
	for _, text := range texts {
		*text = withoutSecrets(*text)
	}
	for _, list := range lists {
		*list = slices.Clone(*list)
		for at := range *list {
			(*list)[at] = withoutSecrets((*list)[at])
		}
	}
	return i
}

// String says how the cluster is known to be the right one.
func (d Discovery) String() string {
	switch {
	case d.File != "":
		return "by the kubeconfig " + d.File
	case len(d.CAHashes) > 0:
		return "by the CA's hash"
	case d.UnsafeSkipCA:
		return "not at all (the CA is not verified)"
	}
	return ""
}

type explainer struct {
	origins map[string]string
	list    []Explanation
}

func (e *explainer) add(key, value string) { e.put(key, withoutSecrets(value)) }

// put takes a value that holds no secret.
func (e *explainer) put(key, shown string) {
	if shown == "" {
		return
	}
	from := e.origins[key]
	if from == "" {
		from = "default"
	}
	e.list = append(e.list, Explanation{key, shown, from})
}

func (e *explainer) hidden(key string, value secret.Text) { e.add(key, value.String()) }

func (e *explainer) number(key string, value int) {
	if value != 0 {
		e.add(key, strconv.Itoa(value))
	}
}

// truth leaves out a false that nobody has said.
func (e *explainer) truth(key string, value bool) {
	if value || e.origins[key] != "" {
		e.add(key, strconv.FormatBool(value))
	}
}

// Explain says which boot args the machine's own settings came from.
func (a BootArgs) Explain() []Explanation {
	var list []Explanation
	add := func(key, value string, args ...string) {
		if value != "" {
			list = append(list, Explanation{key, withoutSecrets(value), "boot args " + strings.Join(args, ", ")})
		}
	}
	add("role", a.Type(), "type")
	add("hostname", a.Name(), "name")
	for _, nic := range a.Interfaces() {
		value, args := nic.Address.String(), []string{nic.Name + "ip", nic.Name + "mask"}
		if nic.Gateway.IsValid() {
			value, args = value+" via "+nic.Gateway.String(), append(args, "gateway")
		}
		add(nic.Name, value, args...)
	}
	for _, server := range a.Nameservers() {
		for _, key := range nameserverKeys() {
			if text, _ := a.Get(key); text == server.String() {
				add("nameserver", text, key)
				break
			}
		}
	}
	if a.RootDiskBytes() > 0 {
		text, _ := a.Get(rootDiskSize)
		add("disk", text+" GiB", rootDiskSize)
	}
	return list
}
