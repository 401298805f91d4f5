// SPDX-License-Identifier: Apache-2.0

// Command dqlite runs a command (of Go, usually) in the environment in which Go links
// libdqlite and all that it needs statically: `go run ./packaging/dqlite amd64 go test
// ./internal/fleet`. Without a command it prints the folder of the libraries.
//
// The libraries and the C library are Debian 13's, kept in the user's cache folder,
// because Debian 12's libdqlite is too old for go-dqlite; the compiler is this
// machine's. It needs mmdebstrap, and gcc for the architecture. With nodqlite among
// the variable TAGS it needs none of this: the command gets an environment without cgo.
package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"nodeagent/test/cache"
)

const (
	suite    = "trixie"
	packages = "libdqlite-dev,libuv1-dev,libsqlite3-dev,liblz4-dev,libxxhash-dev,libc6-dev,linux-libc-dev"
	// library and go-dqlite v3.0.0 in go.mod are a pair: a newer go-dqlite wants a newer
	// library, and refuses to start with an older one.
	library = `(?m)^Version: +1\.18\.`
	// tags: go-dqlite without its second binding of SQLite; name lookups in Go.
	tags = "dqlite,nosqlite3,netgo,osusergo"
)

// triplet names an architecture for the C compiler.
func triplet(arch string) (string, error) {
	names := map[string]string{"amd64": "x86_64-linux-gnu", "arm64": "aarch64-linux-gnu"}
	if names[arch] == "" {
		return "", fmt.Errorf("cannot link libdqlite for %q: amd64 or arm64 is expected", arch)
	}
	return names[arch], nil
}

func main() {
	if err := run(os.Args[1:]); err != nil {
		var ended *exec.ExitError
		if errors.As(err, &ended) {
			os.Exit(ended.ExitCode())
		}
		fmt.Fprintln(os.Stderr, "dqlite:", err)
		os.Exit(1)
	}
}

func run(args []string) error {
	if len(args) == 0 {
		return errors.New("usage: dqlite GOARCH [COMMAND [ARGUMENT...]]")
	}
	arch, args := args[0], args[1:]
	if slices.Contains(strings.Split(os.Getenv("TAGS"), ","), "nodqlite") && len(args) > 0 {
		return start(args, []string{"GOARCH=" + arch, "CGO_ENABLED=0", goFlags(os.Getenv("TAGS"))})
	}
	name, err := triplet(arch)
	if err != nil {
		return err
	}
	root, err := sysroot(arch, name)
	if err != nil {
		return err
	}
	if len(args) == 0 {
		fmt.Println(root)
		return nil
	}
	gcc := "gcc"
	if arch != runtime.GOARCH {
		gcc = name + "-gcc"
	}
	if _, err := exec.LookPath(gcc); err != nil {
		return fmt.Errorf("cannot compile for %s: install Debian's gcc-%s (or gcc, on %s itself), or build with TAGS=nodqlite: %w",
			arch, strings.ReplaceAll(name, "_", "-"), arch, err)
	}
	return start(args, environment(root, gcc, name, arch))
}

func start(args, environment []string) error {
	command := exec.Command(args[0], args[1:]...)
	command.Env = append(os.Environ(), environment...)
	command.Stdin, command.Stdout, command.Stderr = os.Stdin, os.Stdout, os.Stderr
	return command.Run()
}

func goFlags(tags string) string {
	return "GOFLAGS=" + strings.TrimSpace(os.Getenv("GOFLAGS")+" -tags="+strings.Trim(tags, ","))
}

// environment is what makes cgo take the libraries, and link all of the program
// statically. Go hands CGO_LDFLAGS to the linker as they are.
func environment(root, gcc, triplet, arch string) []string {
	libraries := filepath.Join(root, "usr/lib", triplet)
	return []string{
		"GOARCH=" + arch,
		"CGO_ENABLED=1",
		"CC=" + fmt.Sprintf("%s --sysroot=%s -L%s -B%s", gcc, root, libraries, libraries),
		"CGO_CFLAGS=-O2 -g0",
		"CGO_LDFLAGS=-static -Wl,--build-id=none -Wl,--no-warnings -Wl,--start-group -ldqlite -luv -lsqlite3 -llz4 -lxxhash -lm -Wl,--end-group",
		goFlags(os.Getenv("TAGS") + "," + tags),
	}
}

// sysroot returns the folder with the libraries, and makes it first where it is
// missing: 8 s, 50 MB.
func sysroot(arch, triplet string) (string, error) {
	return cache.Dir("dqlite-"+arch, []string{suite, packages, library}, func(dir string) error {
		command := exec.Command("mmdebstrap", "--variant=extract", "--architectures="+arch, "--include="+packages, suite, dir)
		if output, err := command.CombinedOutput(); err != nil {
			return fmt.Errorf("%s: %w\n%s", command, err, output)
		}
		about, err := os.ReadFile(filepath.Join(dir, "usr/lib", triplet, "pkgconfig/dqlite.pc"))
		if err != nil {
			return err
		}
		if !regexp.MustCompile(library).Match(about) {
			return fmt.Errorf("the libdqlite of Debian's %s is not the 1.18 that go-dqlite v3.0.0 is for", suite)
		}
		// mmdebstrap leaves it to root alone; who builds may be another user of the cache.
		return os.Chmod(dir, 0o755)
	})
}
