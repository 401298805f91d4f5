// SPDX-License-Identifier: Apache-2.0

package iso

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"

	"nodeagent/test/cache"
)

// A recipe is a folder below modules with a go.mod and a go.sum and no code: its
// tool directives name the programs to build. Another version of the same thing
// is a second folder: copy one, replace the versions in go.mod, delete the
// indirect requirements and go.sum, and run go mod tidy there. The versions of
// etcd and CoreDNS are those that kubeadm config images list asks for.

// kubernetes builds kubeadm, kubelet, kubectl and the control plane, and returns
// the folder they are in.
func (b builder) kubernetes(ctx context.Context, version string) (string, error) {
	recipe := kubernetesRecipe(version)
	built, err := b.output(ctx, b.path("modules", recipe), "go", "list", "-m",
		"-f", `{{.Version}} {{.Time.UTC.Format "2006-01-02T15:04:05Z"}}`, "k8s.io/kubernetes")
	if err != nil {
		return "", err
	}
	gitVersion, date, _ := strings.Cut(built, " ")
	if gitVersion != "v"+version {
		return "", fmt.Errorf("cannot build Kubernetes %s: its recipe is for %s", version, gitVersion)
	}
	dir, err := b.recipe(ctx, recipe, kubernetesVariables(version, date))
	if err != nil {
		return "", err
	}

	// A wrong -X is silent, and a kubeadm of unknown version asks the internet.
	says, err := b.output(ctx, "", filepath.Join(dir, "kubeadm"), "version", "-o", "short")
	if err != nil {
		return "", err
	}
	if says != gitVersion {
		return "", fmt.Errorf("cannot use the kubeadm built: it calls itself %q, want %q", says, gitVersion)
	}
	return dir, nil
}

func kubernetesRecipe(version string) string { return filepath.Join("kubernetes", version) }

// kubernetesVariables are the linker's -X settings that Kubernetes' release
// build makes, in the two packages that have them.
func kubernetesVariables(version, date string) []string {
	parts := strings.SplitN(version, ".", 3)
	var variables []string
	for _, in := range []string{"k8s.io/component-base/version", "k8s.io/client-go/pkg/version"} {
		variables = append(variables,
			in+".gitVersion=v"+version,
			in+".gitMajor="+parts[0],
			in+".gitMinor="+parts[1],
			in+".gitCommit=",
			in+".gitTreeState=archive",
			in+".buildDate="+date,
		)
	}
	return variables
}

// imageNames asks kubeadm which images it will want.
func (b builder) imageNames(ctx context.Context, kubeadm, version string) ([]string, error) {
	list, err := b.output(ctx, "", kubeadm, "config", "images", "list", "--kubernetes-version", "v"+version)
	if err != nil {
		return nil, err
	}
	return strings.Fields(list), nil
}

func (b builder) haveRecipe(name string) error {
	_, err := os.Stat(b.path("modules", name, "go.mod"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("cannot build %s: no such recipe in %s", name, b.path("modules"))
	}
	return err
}

// recipe returns the folder with the programs that the recipe builds.
func (b builder) recipe(ctx context.Context, name string, variables []string) (string, error) {
	if err := b.haveRecipe(name); err != nil {
		return "", err
	}
	source := b.path("modules", name)
	files, err := cache.Files(source)
	if err != nil {
		return "", err
	}
	inputs := append([]string{runtime.Version(), files}, variables...)
	return cache.Dir(strings.ReplaceAll(name, string(filepath.Separator), "-"), inputs, func(dir string) error {
		b.logf("building %s", name)
		return b.goBuild(ctx, source, dir, variables, "tool")
	})
}

// goBuild builds static programs for the node into dir.
func (b builder) goBuild(ctx context.Context, source, dir string, variables []string, packages ...string) error {
	flags := []string{"-s", "-w"}
	for _, variable := range variables {
		flags = append(flags, "-X", variable)
	}
	args := append([]string{"build", "-trimpath", "-buildvcs=false",
		"-ldflags", strings.Join(flags, " "), "-o", dir + string(filepath.Separator)}, packages...)
	environment := []string{"CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOWORK=off"}
	return b.run(ctx, source, environment, "go", args...)
}

// moduleRoot is the folder of the nodeagent module, in which the caller works.
func moduleRoot(ctx context.Context) (string, error) {
	return builder{log: io.Discard}.output(ctx, "", "go", "list", "-m", "-f", "{{.Dir}}", "nodeagent")
}

// run runs a program in dir, with its output in the log.
func (b builder) run(ctx context.Context, dir string, environment []string, program string, args ...string) error {
	command := exec.CommandContext(ctx, program, args...)
	command.Dir, command.Stdout, command.Stderr = dir, b.log, b.log
	command.Env = append(os.Environ(), environment...)
	if err := command.Run(); err != nil {
		return fmt.Errorf("cannot run %s: %w", command, err)
	}
	return nil
}

// output runs a program in dir and returns what it printed, trimmed.
func (b builder) output(ctx context.Context, dir, program string, args ...string) (string, error) {
	command := exec.CommandContext(ctx, program, args...)
	command.Dir = dir
	out, err := command.Output()
	if failed := (*exec.ExitError)(nil); errors.As(err, &failed) {
		return "", fmt.Errorf("cannot run %s: %w: %s", command, err, strings.TrimSpace(string(failed.Stderr)))
	}
	if err != nil {
		return "", fmt.Errorf("cannot run %s: %w", command, err)
	}
	return strings.TrimSpace(string(out)), nil
}
