// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"fmt"
	"maps"
	"path"
	"regexp"
	"slices"
	"strings"
	"sync"
)

// This file is what nodeagent knows of the commands in CloudStack's scripts: those
// whose effect it brings about itself, or that have none. A script that runs
// anything else was edited, and is left to cloud-init as it is.

// rule knows calls of one program.
type rule struct {
	each  *regexp.Regexp // every argument matches, or
	whole *regexp.Regexp // all arguments, joined by single blanks, match, or
	is    func(s *shellScript, args []string) bool
}

func each(pattern string) rule  { return rule{each: regexp.MustCompile(`^(?:` + pattern + `)$`)} }
func whole(pattern string) rule { return rule{whole: regexp.MustCompile(`^(?:` + pattern + `)$`)} }

const (
	iso       = `/mnt/k8sdisk/+`
	etcdISO   = `/mnt/etcddisk/+`
	manifests = `/tmp/k8sconfigscripts/+`
	// program is one of the binaries, spelled out, as a brace list, or as a loop's variable.
	program = `(?:kubeadm|kubelet|kubectl|\{kubeadm,kubelet,kubectl\})`
	addOns  = `/opt/(?:autoscaler/autoscaler_tmpl|provider/provider|csi/snapshot-crds|csi/manifest)\.yaml`
	online  = `https://(?:github\.com/(?:containernetworking/plugins|kubernetes-incubator/cri-tools|kubernetes-sigs/cri-tools)|` +
		`storage\.googleapis\.com/kubernetes-release|dl\.k8s\.io|raw\.githubusercontent\.com/kubernetes/(?:kubernetes|release))/\S+`
	onlineManifests = `https://(?:cloud\.weave\.works|raw\.githubusercontent\.com/(?:kubernetes/dashboard|kubernetes-sigs/headlamp))/\S+`
	arpSetting      = `net\.ipv4\.conf\.(?:default|all|eth0|ens35)\.arp_(?:announce|ignore)`
)

// shellCommands change nothing by themselves.
var shellCommands = sync.OnceValue(func() map[string]rule {
	anything, asks := whole(`.*`), tests(askedByScripts)
	return map[string]rule{
		"[": asks, "[[": asks, "test": asks, "((": anything, "for": anything,
		"true": anything, "false": anything, ":": anything, "break": anything, "continue": anything,
		"return": anything, "exit": anything, "set": whole(`(?:[-+][eux]+|[-+][eux]*o pipefail)(?: (?:[-+][eux]+|[-+][eux]*o pipefail))*`), "read": anything, "sleep": anything,
		"echo": anything, "printf": anything, "id": anything, "wait": whole(``),
		"grep": whole(`(?:-\w+ )*[^ /]+`), // of what is piped to it
		"tail": anything, "head": anything, "base64": anything, "tr": anything, "wc": anything,
		"sort": each(`-[rnuV]+`), // -o would write
	}
})

// with adds programs to the shell's own.
func with(programs map[string]rule) map[string]rule {
	all := maps.Clone(shellCommands())
	maps.Copy(all, programs)
	return all
}

// nodeCommands are the programs of the setup and deploy scripts.
var nodeCommands = sync.OnceValue(func() map[string]rule {
	return with(map[string]rule{
		"ls": each(iso + `docker/?`),

		"cd":    whole(`/opt/bin/?`),
		"blkid": each(`-o|device|-t|TYPE=iso9660|LABEL=\w+`),
		"mount": each(`-o|ro|\$\w+|/mnt/k8sdisk/?`), "umount": each(`\$\w+|/mnt/k8sdisk/?`), "rmdir": each(`/mnt/k8sdisk/?`),
		"eject": each(`\$\w+`),
		"mkdir": each(`-p|/mnt/k8sdisk/?|/aux-dwnld/?|/opt/cni/bin/?|/opt/bin/?|/opt/(?:autoscaler|provider|csi)/?|/tmp/k8sconfigscripts/?|` +
			`/etc/systemd/system/kubelet\.service\.d/?|/root/\.kube/?`),
		"tar":   each(`-[xzfvC]+|--extract|` + iso + `(?:cni|cri-tools)/\S+|/opt/(?:cni/)?bin/?`),
		"chmod": each(`\+x|0?755|(?:/opt/bin/)?` + program),
		"cp": each(`-[aifpr]+|\.|` + iso + `k8s/` + program + `|/opt/bin(?:/(?:` + program + `)?)?|` + iso + `[\w*-]+\.yaml|` + manifests + `?|/tmp/k8sconfigscripts|` +
			addOns + `|/etc/kubernetes/admin\.conf|/root/\.kube/config`),
		"rm": each(`-[rf]+|/tmp/k8sconfigscripts/?|/aux-dwnld/?`), "touch": each(`/home/cloud/success`),
		"chown": each(`-R|(?:\$:\$|root:root|0:0)|/root/\.kube/config|/opt/cni/bin/?`),
		// The way over the virtual router, whose address is read elsewhere.
		"wget": whole(`-r -R index\.html\* \S+/cks-iso -P /aux-dwnld/?`), "mv": whole(`/aux-dwnld/\S+/cks-iso/\* /mnt/k8sdisk/?`),
		"sed": whole(`s:/usr/bin:/opt/bin:g(?: ` + iso + `(?:kubelet\.service|10-kubeadm\.conf))?|` +
			`-i s([|#])sandbox_image = \.\*[|#]sandbox_image = "\$\w+"[|#]g /etc/containerd/config\.toml|` +
			`-i s/` + arpSetting + ` ?=\.\*\$?/` + arpSetting + ` = 0/ /etc/sysctl\.conf`),
		"sysctl":   each(`-[wqe]|` + arpSetting + `=0|net\.bridge\.bridge-nf-call-ip6?tables=1|net\.ipv4\.ip_forward=1`),
		"modprobe": each(`overlay|br_netfilter|ip_vs|ip_vs_rr|ip_vs_wrr|ip_vs_sh|nf_conntrack`),
		"systemctl": whole(`daemon-reload|restart containerd(?:\.service)?|(?:enable|start|restart|enable --now) kubelet(?:\.service)?|` +
			`is-active (?:--quiet )?setup-kube-system(?:\.service)?`),
		"ctr":  whole(`(?:-n k8s\.io )?(?:image|images|i) (?:import ` + iso + `docker/+\$\w+|(?:ls|list)(?: -q)?)`),
		"curl": each(`-[sSLkfO]+|--remote-name-all|` + online + `|https://[\w.]+:6443/version`),
		"kubectl": whole(`version.*|get .*|apply -f (?:` + manifests + `(?:network|dashboard|headlamp)\.yaml|` + onlineManifests + `)|` +
			`create rolebinding admin-binding --role=admin --user=admin|` +
			`create clusterrolebinding cluster-admin-binding --clusterrole=cluster-admin --user=admin|` +
			`create clusterrolebinding kubernetes-dashboard-ui --clusterrole=cluster-admin --serviceaccount=kubernetes-dashboard:kubernetes-dashboard|` +
			`create serviceaccount headlamp-admin (?:-n|--namespace) kube-system|` +
			`create clusterrolebinding headlamp-admin --clusterrole=cluster-admin --serviceaccount=kube-system:headlamp-admin`),
		// The calls that make the node are read elsewhere, argument by argument.
		"kubeadm": whole(`(?:init|join)(?: -.*| [^ ]*:.*|)|config images (?:pull|list).*|version.*|reset -f`),
	})
})

// etcdCommands are the programs of the setup script of an etcd node.
var etcdCommands = sync.OnceValue(func() map[string]rule {
	return with(map[string]rule{
		"blkid": each(`-o|device|-t|TYPE=iso9660|LABEL=\w+`),
		"mount": each(`-o|ro|\$\w+|/mnt/etcddisk/?`), "umount": each(`\$\w+|/mnt/etcddisk/?`), "rmdir": each(`/mnt/etcddisk/?`),
		"eject": each(`\$\w+`),
		"mkdir": each(`-p|/mnt/etcddisk/?|/opt/bin/?`),
		"tar":   each(`-[xzfvC]+|` + etcdISO + `etcd/\S+|/opt/bin/?`),
		"mv":    whole(`/opt/bin/etcd\*/etcd\* /opt/bin/?`), "rm": each(`-[rf]+|/opt/bin/etcd-\*`),
	})
})

// preparations are the commands that CloudStack's runcmd has before the scripts, as
// far as they are not about containerd, and others that cannot matter to the node. All
// of runcmd is one script: what ends it, or waits, is none of them.
var preparations = sync.OnceValue(func() map[string]rule {
	anything, asks := whole(`.*`), tests(askedByRuncmd)
	return map[string]rule{
		"chown":     each(`-R|cloud:cloud|/home/cloud(?:/\.ssh)?/?`),
		"systemctl": whole(`daemon-reload`),
		"[":         asks, "test": asks, "sleep": whole(`\d{1,2}s?`), // while awaiting a file
		"true": anything, "false": anything, ":": anything, "echo": anything, "printf": anything, "id": anything, "wait": whole(``),
	}
})

// ownFiles are the files those scripts write by redirection, with the commands
// whose output nodeagent knows.
var ownFiles = sync.OnceValue(func() map[string]rule {
	return map[string]rule{
		"/etc/systemd/system/kubelet.service":                   whole(`sed .*`),
		"/etc/systemd/system/kubelet.service.d/10-kubeadm.conf": whole(`sed .*`),
		"/etc/default/kubelet":                                  whole(`echo KUBELET_EXTRA_ARGS=--cgroup-driver=systemd`),
		"/etc/sysctl.conf":                                      whole(`echo ` + arpSetting + ` = 0`),
		"/root/.bashrc":                                         whole(`echo export PATH=\$PATH:/opt/bin`),
		"/home/cloud/success":                                   whole(`echo true`),
	}
})

// containerdCommands are those that write containerd's configuration, which
// nodeagent does itself.
var containerdCommands = sync.OnceValue(func() map[string]rule {
	return map[string]rule{
		"containerd":       whole(`config default`),
		"sed":              whole(`-i (?:s/SystemdCgroup ?= ?false/SystemdCgroup ?= ?true/g?|/[^/]*runc\.options[^/]*/a [\\\s]*SystemdCgroup ?= ?true) /etc/containerd/config\.toml`),
		"setup-containerd": whole(``),
		"systemctl":        whole(`daemon-reload|(?:re)?start containerd(?:\.service)?`),
		"mkdir":            each(`-p|/etc/containerd/?`),
		"bash":             whole(`(?:-x )?/opt/bin/setup-containerd`),
	}
})

// registryCommands are the programs of setup-containerd.
var registryCommands = sync.OnceValue(func() map[string]rule {
	return with(map[string]rule{
		"containerd": whole(`config default`),
		"sed":        whole(`-i (?s:/\\\[plugins\."io\.containerd\.grpc\.v1\.cri"\.registry(?:\.mirrors)?\\\]/a .*) /etc/containerd/config\.toml`),
		"systemctl":  whole(`daemon-reload|restart containerd(?:\.service)?`),
	})
})

var containerdFiles = sync.OnceValue(func() map[string]rule {
	return map[string]rule{containerdConfig: whole(`containerd config default`)}
})

// ownVariables may be set for a command or exported.
var ownVariables = pattern(`^(?:PATH|KUBECONFIG|LC_ALL|LANG|registry\w*)=`)

var binDirs = pattern(`^(?:/opt/bin|/usr/bin|/bin|/sbin|/usr/sbin)$`)

// knows says whether every way a command can run is one of the rules'.
func knows(s *shellScript, c shellCommand, programs, files map[string]rule) bool {
	for _, argv := range s.variants(c.words) {
		if !knowsArgv(s, c.split(argv), c.writes, programs, files) {
			return false
		}
	}
	return true
}

func knowsArgv(s *shellScript, argv, writes []string, programs, files map[string]rule) bool {
	writes = slices.DeleteFunc(slices.Clone(writes), func(target string) bool { return target == "/dev/null" })
	if onlyAssigns(argv) {
		return len(writes) == 0
	}
	for len(argv) > 1 && ownVariables().MatchString(argv[0]) {
		argv = argv[1:]
	}
	if argv[0] == "sudo" && len(argv) > 1 {
		argv = argv[1:]
	}
	name := argv[0]
	if binDirs().MatchString(path.Dir(name)) {
		name = path.Base(name)
	}
	args := strings.Join(argv[1:], " ")
	switch known, ok := programs[name]; {
	case s.functions[name] && len(argv) == 1:
	case name == "export" || name == "local":
		if !allOwnVariables(argv[1:]) {
			return false
		}
	case !ok, known.is != nil && !known.is(s, argv[1:]), known.whole != nil && !known.whole.MatchString(args):
		return false
	case known.each != nil && slices.ContainsFunc(argv[1:], func(arg string) bool { return !known.each.MatchString(arg) }):
		return false
	}
	for _, target := range writes {
		for _, variant := range s.variants([]string{target}) {
			known, ok := files[path.Clean(variant[0])]
			if !ok || !known.whole.MatchString(strings.TrimSpace(name+" "+args)) {
				return false
			}
		}
	}
	return true
}

func onlyAssigns(argv []string) bool {
	return !slices.ContainsFunc(argv, func(word string) bool { return !assignment().MatchString(word) })
}

func allOwnVariables(args []string) bool {
	return !slices.ContainsFunc(args, func(word string) bool { return !ownVariables().MatchString(word) })
}

// strangers describes the commands of a script that can run and that nodeagent does
// not know.
func strangers(name string, s *shellScript, programs map[string]rule) []string {
	files := ownFiles()
	if name == path.Base(containerdScript) {
		files = containerdFiles()
	}
	var found []string
	for i, c := range s.commands {
		if s.unreachable(c) {
			continue
		}
		if knows(s, c, programs, files) {
			if what := s.misplaced(i); what != "" {
				found = append(found, fmt.Sprintf("%s line %d%s", name, c.line, what))
			}
			continue
		}
		if len(c.words) > 0 && slices.Contains([]string{"[", "[[", "test"}, c.words[0]) {
			found = append(found, fmt.Sprintf("%s line %d: its condition is not one of CloudStack's", name, c.line))
			continue
		}
		if slices.ContainsFunc(c.words, func(word string) bool { return strings.Contains(word, "{{") }) {
			found = append(found, fmt.Sprintf("%s line %d holds a placeholder that CloudStack has not filled in", name, c.line))
			continue
		}
		found = append(found, fmt.Sprintf("%s line %d%s", name, c.line, stranger(name, c)))
	}
	if s.beyond != "" {
		found = append(found, fmt.Sprintf("%s: the script uses %s", name, s.beyond))
	}
	return found
}

// stranger says that a command is not known. What stands in setup-containerd is the
// registry's password: a quote in it makes commands of its rest.
func stranger(script string, c shellCommand) string {
	if script == path.Base(containerdScript) {
		return " is not as CloudStack writes it; a quote, a semicolon or a $ in the registry's user name or password may be the cause"
	}
	if name := programName(c); name != "" {
		return ": the command " + quote(name) + " is not one of CloudStack's"
	}
	return " runs a command that is not one of CloudStack's"
}
