// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"reflect"
	"slices"
	"strings"
	"time"

	"github.com/pelletier/go-toml/v2"

	"nodeagent/internal/fault"
	"nodeagent/internal/host"
)

const (
	containerdProgram = "/usr/bin/containerd"
	containerdUnit    = "containerd.service"
	containerdConfig  = "/etc/containerd/config.toml"
	// restartLimit bounds one start of containerd; its own unit allows 90 s.
	restartLimit = 3 * time.Minute
)

// ConfigureContainerd gives containerd the settings Kubernetes needs: cgroups
// through systemd, the sandbox image kubeadm expects, CNI plugins in /opt/cni/bin,
// the CRI plugin on. It restarts containerd only if the settings it runs with
// differ, waits until it answers, and reads the settings back over the CRI
// (pain-points C19, C21, C24). registry is the cluster's private one, or nil. It
// reports whether it changed a file or restarted. Errors are fault.ContainerdFailed
// and fault.SandboxMismatch.
func ConfigureContainerd(ctx context.Context, h *host.Host, sandboxImage string, registry *Registry, report host.Report) (changed bool, err error) {
	return configureContainerd(ctx, h, wanted{sandboxImage, registry}, say(report), dialCRI(h.Path(CRISocket)))
}

// wanted is what a node's containerd must have beside what all have.
type wanted struct {
	sandboxImage string
	registry     *Registry // or nil
}

// criStatus asks containerd for the settings it runs with.
type criStatus func(ctx context.Context) (criSettings, error)

func configureContainerd(ctx context.Context, h *host.Host, want wanted, report host.Report, status criStatus) (bool, error) {
	changed, err := writeContainerdConfig(ctx, h, want)
	if err != nil {
		return changed, err
	}
	unit, err := h.Units.State(ctx, containerdUnit)
	if err != nil {
		return changed, fault.Wrap(fault.ContainerdFailed, err, "cannot configure containerd")
	}
	// A run that was killed may have written the file and not restarted: what
	// containerd runs with tells.
	if !changed && unit.ActiveState == "active" {
		running, err := askCRI(ctx, h, status)
		if err == nil && running.check(want.sandboxImage) == nil {
			return false, nil
		}
	}
	report("restarting containerd")
	if err := restartContainerd(ctx, h); err != nil {
		return true, err
	}
	report("waiting for containerd to answer")
	running, err := askCRI(ctx, h, status)
	if err != nil {
		return true, err
	}
	return true, running.check(want.sandboxImage)
}

func restartContainerd(ctx context.Context, h *host.Host) error {
	ctx, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	job, err := h.Units.Restart(ctx, containerdUnit)
	if err != nil {
		return fault.Wrap(fault.ContainerdFailed, err, "cannot restart containerd")
	}
	unit, err := h.Units.Wait(ctx, job)
	if err != nil {
		return fault.Wrap(fault.ContainerdFailed, err, "cannot restart containerd")
	}
	if unit.ActiveState != "active" {
		return fault.New(fault.ContainerdFailed, "cannot restart containerd: %s is %s (%s)", containerdUnit, unit.ActiveState, unit.Result)
	}
	return nil
}

// askCRI waits for containerd to answer on its socket.
func askCRI(ctx context.Context, h *host.Host, status criStatus) (criSettings, error) {
	ctx, cancel := context.WithTimeout(ctx, restartLimit)
	defer cancel()
	running, err := status(ctx)
	if err == nil && running.SandboxImage == "" {
		running.SandboxImage, err = loadedSandbox(ctx, h)
	}
	if err == nil {
		return running, nil
	}
	failed := fault.Wrap(fault.ContainerdFailed, err, "cannot reach containerd over %s", CRISocket)
	if errors.Is(err, errNoCRI) {
		// Containerd before 1.6 has no CRI v1, and Kubernetes from 1.26 on wants it
		// (pain-point C23); or the plugin did not load (C21).
		version, _ := h.Run.Run(ctx, host.Command{Path: containerdProgram, Args: []string{"--version"}})
		failed = failed.WithHint("%s has no working CRI v1; Kubernetes 1.26 and later need containerd 1.6 or later. See `journalctl -u containerd`.",
			strings.TrimSpace(string(version)))
	}
	return criSettings{}, failed
}

// loadedSandbox reads the sandbox image from the configuration as containerd puts
// it together from all its files; containerd 2.x does not show it over the CRI.
func loadedSandbox(ctx context.Context, h *host.Host) (string, error) {
	text, err := h.Run.Run(ctx, host.Command{Path: containerdProgram, Args: []string{"config", "dump"}})
	if err != nil {
		return "", err
	}
	var config map[string]any
	if err := toml.Unmarshal(text, &config); err != nil {
		return "", fmt.Errorf("cannot read the output of containerd config dump: %w", err)
	}
	tables, err := tablesOf(config)
	if err != nil {
		return "", err
	}
	value, _ := lookUp(config, tables.sandbox...)
	image, _ := value.(string)
	return image, nil
}

// writeContainerdConfig brings the configuration file up to date.
func writeContainerdConfig(ctx context.Context, h *host.Host, want wanted) (changed bool, err error) {
	mode := fs.FileMode(0o644)
	if info, err := os.Stat(h.Path(containerdConfig)); err == nil && info.Mode() == 0o600 {
		mode = 0o600 // an earlier run put credentials in
	}
	if want.registry != nil {
		if err := want.registry.check(); err != nil {
			return false, err
		}
		mode = 0o600 // it holds the credentials
	}
	old, err := h.ReadFile(containerdConfig)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return false, fault.Wrap(fault.ContainerdFailed, err, "cannot configure containerd")
	}
	base := old
	if !configuresRunc(old) {
		// Absent, or the few lines that Debian's and Docker's packages bring.
		if base, err = h.Run.Run(ctx, host.Command{Path: containerdProgram, Args: []string{"config", "default"}}); err != nil {
			return false, fault.Wrap(fault.ContainerdFailed, err, "cannot configure containerd")
		}
	}
	config, files, err := editContainerdConfig(base, want)
	if err != nil {
		return false, fault.Wrap(fault.ContainerdFailed, err, "cannot configure containerd in %s", containerdConfig)
	}
	// What the configuration moves elsewhere is there first.
	hosts, err := writeHosts(h, files)
	if err != nil {
		return hosts, err
	}
	if changed, err = h.WriteFile(containerdConfig, config, mode); err != nil {
		return changed || hosts, fault.Wrap(fault.ContainerdFailed, err, "cannot configure containerd")
	}
	return changed || hosts, nil
}

// The CRI plugin's tables by configuration version: one plugin up to containerd
// 1.7 (docs/cri/config.md there), two from 2.0 on. Version 4 of containerd 2.3
// moved the server's settings, not these (containerd's version/version.go).
var (
	criTablesV2 = criTables{
		runtime:  []string{"plugins", "io.containerd.grpc.v1.cri"},
		sandbox:  []string{"plugins", "io.containerd.grpc.v1.cri", "sandbox_image"},
		registry: []string{"plugins", "io.containerd.grpc.v1.cri", "registry"},
	}
	criTablesV3 = criTables{
		runtime:  []string{"plugins", "io.containerd.cri.v1.runtime"},
		sandbox:  []string{"plugins", "io.containerd.cri.v1.images", "pinned_images", "sandbox"},
		registry: []string{"plugins", "io.containerd.cri.v1.images", "registry"},
	}
)

type criTables struct {
	runtime  []string // the table with containerd.runtimes and cni
	sandbox  []string // the sandbox image's key
	registry []string // the table with config_path, mirrors and configs
}

// under is a key below a table.
func under(table []string, keys ...string) []string { return append(slices.Clip(table), keys...) }

func tablesOf(config map[string]any) (criTables, error) {
	switch version, _ := config["version"].(int64); version {
	case 2:
		return criTablesV2, nil
	case 3, 4:
		return criTablesV3, nil
	default:
		// No version means 1, whose tables have other names.
		return criTables{}, fmt.Errorf("cannot edit configuration version %d: only 2, 3 and 4 are known", max(version, 1))
	}
}

// configuresRunc says whether a configuration sets up the runtime itself, so
// that it is somebody's work and not a package's stub.
func configuresRunc(text []byte) bool {
	var config map[string]any
	if toml.Unmarshal(text, &config) != nil {
		return len(bytes.TrimSpace(text)) > 0 // somebody's, and broken: let the edit say so
	}
	for _, tables := range []criTables{criTablesV2, criTablesV3} {
		if _, ok := lookUp(config, under(tables.runtime, "containerd", "runtimes", "runc")...); ok {
			return true
		}
	}
	return false
}

// criPlugins are the names under which the CRI plugin can be switched off.
var criPlugins = map[string]bool{
	"cri": true, "io.containerd.grpc.v1.cri": true,
	"io.containerd.cri.v1.images": true, "io.containerd.cri.v1.runtime": true,
}

// editContainerdConfig returns a configuration with Kubernetes' settings in it
// and all others kept. A text that has them already is returned as it is;
// otherwise comments and order are lost. files are the hosts.toml it needs, by
// host.
func editContainerdConfig(text []byte, want wanted) (edited []byte, files map[string][]byte, err error) {
	var config, before map[string]any
	if err := errors.Join(toml.Unmarshal(text, &config), toml.Unmarshal(text, &before)); err != nil {
		return nil, nil, fmt.Errorf("cannot read it: %w", err)
	}
	tables, err := tablesOf(config)
	if err != nil {
		return nil, nil, err
	}
	if disabled, ok := config["disabled_plugins"].([]any); ok {
		kept := []any{}
		for _, plugin := range disabled {
			if name, _ := plugin.(string); !criPlugins[name] {
				kept = append(kept, plugin)
			}
		}
		config["disabled_plugins"] = kept
	}

	type setting struct {
		value any
		keys  []string
	}
	settings := []setting{
		{want.sandboxImage, tables.sandbox},
		{true, under(tables.runtime, "containerd", "runtimes", "runc", "options", "SystemdCgroup")},
		{"io.containerd.runc.v2", under(tables.runtime, "containerd", "runtimes", "runc", "runtime_type")},
		{"/etc/cni/net.d", under(tables.runtime, "cni", "conf_dir")},
	}
	// Containerd 2.1 has a list of folders in place of the one, and refuses both.
	if _, ok := lookUp(config, under(tables.runtime, "cni", "bin_dirs")...); ok {
		settings = append(settings, setting{[]any{cniFolder}, under(tables.runtime, "cni", "bin_dirs")})
	} else {
		settings = append(settings, setting{cniFolder, under(tables.runtime, "cni", "bin_dir")})
	}
	for _, s := range settings {
		if err := set(config, s.value, s.keys...); err != nil {
			return nil, nil, err
		}
	}
	if want.registry != nil {
		if files, err = editRegistries(config, tables, want.registry); err != nil {
			return nil, nil, err
		}
	}
	if reflect.DeepEqual(config, before) {
		return text, files, nil
	}
	edited, err = toml.Marshal(config)
	return edited, files, err
}

func lookUp(table map[string]any, keys ...string) (value any, ok bool) {
	for i, key := range keys {
		if value, ok = table[key]; !ok || i == len(keys)-1 {
			return value, ok
		}
		if table, ok = value.(map[string]any); !ok {
			return nil, false
		}
	}
	return nil, false
}

// set puts a value below nested tables, which it makes as needed.
func set(table map[string]any, value any, keys ...string) error {
	for i, key := range keys[:len(keys)-1] {
		next, ok := table[key]
		if !ok {
			next = map[string]any{}
			table[key] = next
		}
		if table, ok = next.(map[string]any); !ok {
			return fmt.Errorf("cannot set %s: %q is no table", strings.Join(keys, "."), strings.Join(keys[:i+1], "."))
		}
	}
	table[keys[len(keys)-1]] = value
	return nil
}
