// SPDX-License-Identifier: Apache-2.0

package deb

import (
	"debug/buildinfo"
	"debug/elf"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden files anew")

// built is a package and what is in it.
type built struct {
	arch   string
	file   string
	root   string // its files, unpacked
	binary string
}

func unpack(t *testing.T, dist, arch string) built {
	t.Helper()
	b := built{arch: arch, file: filepath.Join(dist, fmt.Sprintf("nodeagent_%s_%s.deb", version, arch)), root: t.TempDir()}
	tool(t, "dpkg-deb", "--raw-extract", b.file, b.root)
	b.binary = filepath.Join(b.root, "usr/bin/nodeagent")
	return b
}

func TestPackage(t *testing.T) {
	work := t.TempDir()
	tree := snapshot(t, filepath.Join(work, "tree"))
	here := build(t, tree, filepath.Join(work, "here"), conditions{arch: "amd64", umask: "022"})
	there := build(t, tree, filepath.Join(work, "there"), conditions{arch: "amd64", umask: "077",
		env: []string{"TZ=America/Los_Angeles", "LC_ALL=C", "GOMAXPROCS=1"}})
	t.Run("is the same whoever builds it", func(t *testing.T) {
		name := fmt.Sprintf("nodeagent_%s_amd64.deb", version)
		if read(t, filepath.Join(here, name)) != read(t, filepath.Join(there, name)) {
			t.Errorf("two builds differ:\n%s", differing(t, here, there, name))
		}
	})

	arm := build(t, tree, filepath.Join(work, "arm"), conditions{arch: "arm64", umask: "022"})
	amd64, arm64 := unpack(t, here, "amd64"), unpack(t, arm, "arm64")
	for _, b := range []built{amd64, arm64} {
		t.Run(b.arch, func(t *testing.T) {
			t.Run("contents", func(t *testing.T) { checkContents(t, b) })
			t.Run("control", func(t *testing.T) { checkControl(t, b) })
			t.Run("binary", func(t *testing.T) { checkBinary(t, b) })
			t.Run("copyright", func(t *testing.T) { checkCopyright(t, b) })
		})
	}
	t.Run("arm64 does what amd64 does", func(t *testing.T) { compareRuns(t, amd64, arm64) })
	t.Run("lintian", func(t *testing.T) {
		tool(t, "lintian", "--allow-root", "--fail-on", "error,warning", "--tag-display-limit", "0", amd64.file)
	})
	t.Run("completions", func(t *testing.T) { checkCompletions(t, amd64) })
	t.Run("man pages", func(t *testing.T) { checkManPages(t, amd64) })
	t.Run("docs/cli", func(t *testing.T) {
		checkReference(t, filepath.Join(tree, "docs/cli"), filepath.Join(here, "amd64/cli"))
	})
	t.Run("changelog", func(t *testing.T) { checkChangelog(t, amd64) })
	t.Run("installed", func(t *testing.T) { testLifecycles(t, amd64.file) })
}

// differing names what differs between two builds: members of the packages, or
// what went into them.
func differing(t *testing.T, a, b, name string) string {
	t.Helper()
	list := func(dist string) string { return tool(t, "dpkg-deb", "--contents", filepath.Join(dist, name)) }
	text := ""
	if list(a) != list(b) {
		text = "the lists of files differ\n"
	}
	output, _ := exec.Command("diff", "-rq", filepath.Join(a, "amd64"), filepath.Join(b, "amd64")).CombinedOutput()
	return text + string(output)
}

// The names, modes and owners of all files. A new command or unit changes it: run
// with -update.
func checkContents(t *testing.T, b built) {
	var got strings.Builder
	for line := range strings.Lines(tool(t, "dpkg-deb", "--contents", b.file)) {
		fields := strings.Fields(line) // mode, owner, size, date, time, name
		fmt.Fprintln(&got, fields[0], fields[1], strings.Join(fields[5:], " "))
	}
	golden := "testdata/contents.golden"
	if *update {
		write(t, golden, got.String(), 0o644)
	}
	if want := read(t, golden); got.String() != want {
		t.Errorf("the package holds\n%s\nwant\n%s", got.String(), want)
	}
}

func checkControl(t *testing.T, b built) {
	for field, want := range map[string]string{
		"Package": "nodeagent", "Version": version, "Architecture": b.arch, "Section": "admin", "Priority": "optional",
		"Maintainer": "nodeagent developers <nodeagent@localhost.invalid>", "Depends": "systemd, kmod",
		"Homepage": "https://cloudstack.apache.org/",
	} {
		if got := strings.TrimSpace(tool(t, "dpkg-deb", "--field", b.file, field)); got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	if got := read(t, filepath.Join(b.root, "DEBIAN/conffiles")); got != "/etc/nodeagent/nodeagent.yaml\n" {
		t.Errorf("conffiles: %q", got)
	}
	for _, script := range []string{"postinst", "prerm", "postrm"} {
		path := filepath.Join(b.root, "DEBIAN", script)
		if read(t, path) != read(t, filepath.Join(source(t), "packaging/scripts", script)) {
			t.Errorf("%s is not that of packaging/scripts", script)
		}
		tool(t, "sh", "-n", path)
		tool(t, "shellcheck", path)
	}
}

// One static file of the right machine, without traces of who built it or how, and
// without the generator of the docs.
func checkBinary(t *testing.T, b built) {
	file, err := elf.Open(b.binary)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	if want := map[string]elf.Machine{"amd64": elf.EM_X86_64, "arm64": elf.EM_AARCH64}[b.arch]; file.Machine != want {
		t.Errorf("machine %s, want %s", file.Machine, want)
	}
	for _, program := range file.Progs {
		if program.Type == elf.PT_INTERP || program.Type == elf.PT_DYNAMIC {
			t.Errorf("it is not static: it has a %s", program.Type)
		}
	}
	info, err := buildinfo.ReadFile(b.binary)
	if err != nil {
		t.Fatal(err)
	}
	settings := map[string]string{}
	for _, setting := range info.Settings {
		settings[setting.Key] = setting.Value
		if strings.HasPrefix(setting.Key, "vcs") {
			t.Errorf("it tells %s of the repository", setting)
		}
	}
	if settings["-trimpath"] != "true" || settings["CGO_ENABLED"] != "1" {
		t.Errorf("build settings %v, want -trimpath, and cgo for libdqlite", settings)
	}
	for _, module := range info.Deps {
		if strings.Contains(module.Path, "md2man") {
			t.Errorf("the generator of the docs is in it: %s", module.Path)
		}
	}
}

// The licences of what is linked want their notices shipped with the program.
func checkCopyright(t *testing.T, b built) {
	info, err := buildinfo.ReadFile(b.binary)
	if err != nil {
		t.Fatal(err)
	}
	text := read(t, filepath.Join(b.root, "usr/share/doc/nodeagent/copyright"))
	want := []string{"\n std@" + info.GoVersion + "/*\n", "\n k8s.io/cri-api@", "/usr/share/common-licenses/Apache-2.0",
		"\nLicense: Expat\n Permission is hereby granted, free of charge, to any person", "\n Copyright (c) 2014 Simon Eskildsen\n"}
	for _, module := range info.Deps {
		want = append(want, "\n "+module.Path+"@"+module.Version+"/*\n")
	}
	for _, part := range want {
		if !strings.Contains(text, part) {
			t.Errorf("the copyright file lacks %q", part)
		}
	}
}

func checkCompletions(t *testing.T, b built) {
	for shell, name := range map[string]string{
		"bash": "usr/share/bash-completion/completions/nodeagent",
		"zsh":  "usr/share/zsh/vendor-completions/_nodeagent",
		"fish": "usr/share/fish/vendor_completions.d/nodeagent.fish",
	} {
		if read(t, filepath.Join(b.root, name)) != tool(t, b.binary, "completion", shell) {
			t.Errorf("%s is not what `nodeagent completion %s` prints", name, shell)
		}
	}
}

// Every command has a page, of the date of the source in UTC.
func checkManPages(t *testing.T, b built) {
	folder := filepath.Join(b.root, "usr/share/man/man8")
	pages := []string{"nodeagent"}
	for line := range strings.Lines(tool(t, b.binary, "__complete", "")) {
		if name, _, found := strings.Cut(line, "\t"); found && name != "help" {
			pages = append(pages, "nodeagent-"+name)
		}
	}
	if len(pages) < 7 {
		t.Fatalf("the program has the commands %q only", pages)
	}
	head := regexp.MustCompile(`(?m)^\.TH "NODEAGENT.*" "8" "Jan 2027" "nodeagent" `)
	for _, page := range pages {
		text := tool(t, "zcat", filepath.Join(folder, page+".8.gz"))
		if !head.MatchString(text) {
			t.Errorf("%s has no title line of January 2027:\n%s", page, text)
		}
	}
	if growpart := tool(t, "zcat", filepath.Join(folder, "nodeagent-growpart.8.gz")); !strings.Contains(growpart, "--free-percent") {
		t.Errorf("the page of growpart lacks its options:\n%s", growpart)
	}
}

func checkReference(t *testing.T, committed, generated string) {
	output, err := exec.Command("diff", "-ru", committed, generated).CombinedOutput()
	if err != nil {
		t.Errorf("docs/cli is not up to date, run `make docs`:\n%s", output)
	}
}

func checkChangelog(t *testing.T, b built) {
	text := tool(t, "zcat", filepath.Join(b.root, "usr/share/doc/nodeagent/changelog.Debian.gz"))
	if !strings.HasPrefix(text, "nodeagent ("+version+") unstable; urgency=medium\n\n  * ") ||
		!strings.Contains(text, "\n -- nodeagent developers <nodeagent@localhost.invalid>  Fri, 01 Jan 2027 00:30:00 +0000\n") {
		t.Errorf("changelog:\n%s", text)
	}
}

// compareRuns has both programs do the same, arm64's in QEMU's user emulation.
func compareRuns(t *testing.T, amd64, arm64 built) {
	run := func(b built, argv ...string) string {
		argv = append([]string{b.binary}, argv...)
		if b.arch == "arm64" {
			argv = append([]string{"qemu-aarch64"}, argv...)
		}
		return tool(t, argv[0], argv[1:]...)
	}
	if got := run(arm64, "version"); !strings.HasPrefix(got, "nodeagent "+version+" go") || !strings.HasSuffix(got, " arm64\n") {
		t.Errorf("version on arm64: %q", got)
	}
	folder := t.TempDir()
	bootArgs := filepath.Join(folder, "cmdline")
	write(t, bootArgs, " template=domP type=cksnode name=node-1 eth0ip=10.1.1.57 eth0mask=255.255.255.0 gateway=10.1.1.1 dns1=10.1.1.1", 0o644)
	plan := []string{"plan", "--boot-args", bootArgs, "--user-data", filepath.Join(source(t), "test/cloud/testdata/control-node.yml"), "-o", "json"}
	if want, got := run(amd64, plan...), run(arm64, plan...); got != want || !strings.Contains(got, `"mode": "init"`) {
		t.Errorf("plan on arm64:\n%s\non amd64:\n%s", got, want)
	}

	// An image as growpart of cloud-guest-utils finds it: grown behind the last
	// partition.
	image := func(arch string) string {
		path := filepath.Join(folder, arch+".img")
		write(t, path, "", 0o644)
		truncate(t, path, 64<<20)
		sfdisk := exec.Command("sfdisk", "--quiet", path)
		sfdisk.Stdin = strings.NewReader("label: gpt\nlabel-id: 6E6F6465-6167-456E-8400-000000000001\n" +
			"start=2048, size=8192, uuid=6E6F6465-6167-456E-8400-000000000002\nstart=10240, size=8192, uuid=6E6F6465-6167-456E-8400-000000000003\n")
		if output, err := sfdisk.CombinedOutput(); err != nil {
			t.Fatalf("sfdisk: %v\n%s", err, output)
		}
		truncate(t, path, 128<<20)
		return path
	}
	images := map[string]string{"amd64": image("amd64"), "arm64": image("arm64")}
	before := read(t, images["arm64"])
	for _, options := range [][]string{{"--dry-run"}, nil} {
		args := func(b built) []string { return append(append([]string{"growpart"}, options...), images[b.arch], "2") }
		want, got := run(amd64, args(amd64)...), run(arm64, args(arm64)...)
		if got != want || !strings.HasPrefix(got, "CHANGE") {
			t.Errorf("growpart %q on arm64 says %q, on amd64 %q", options, got, want)
		}
		if dry := len(options) > 0; dry != (read(t, images["arm64"]) == before) {
			t.Errorf("growpart %q on arm64: image unchanged: %v", options, !dry)
		}
	}
	if read(t, images["arm64"]) != read(t, images["amd64"]) {
		t.Error("arm64 left another image than amd64")
	}
	if verdict := tool(t, "sfdisk", "--verify", images["arm64"]); !strings.Contains(verdict, "No errors detected") {
		t.Errorf("sfdisk --verify says:\n%s", verdict)
	}
}

func truncate(t *testing.T, path string, size int64) {
	t.Helper()
	if err := os.Truncate(path, size); err != nil {
		t.Fatal(err)
	}
}
