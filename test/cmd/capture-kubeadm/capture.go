// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// scenario is one way to fail.
type scenario struct {
	name string
	join bool // kubeadm join, with a cluster there; else init
	// ruins says that the cluster is of no use afterwards.
	ruins bool
	// bare leaves the machine without containerd.
	bare bool
	cpus int // 0 is all
	// kill ends kubeadm after this time, as the deadline of a step does.
	kill time.Duration
	// prepare makes the machine, and on a join the cluster, fit to fail, and
	// returns the configuration file.
	prepare func(l *lab, m *machine, c *cluster) (config string, err error)
	// then, when there is one, makes what was prepared fail: kubeadm runs twice and
	// the second output is kept.
	then func(l *lab, m *machine, c *cluster) error
}

// failure is what is kept of one.
type failure struct {
	output []byte
	meta   meta
}

type meta struct {
	Kubeadm  string   `json:"kubeadm"` // version
	Command  string   `json:"command"`
	ExitCode int      `json:"exitCode"` // -1 when it was killed
	Secrets  []string `json:"secrets"`  // of the configuration file
}

// tooLong ends a kubeadm that does not.
const tooLong = 4 * time.Minute

func (l *lab) capture(ctx context.Context, s scenario) (*failure, error) {
	var c *cluster
	if s.join {
		var err error
		if c, err = l.theCluster(); err != nil {
			return nil, err
		}
	}
	if s.join {
		defer func() {
			if s.ruins || c.restore() != nil {
				l.drop()
			}
		}()
	}
	name, address := "control-1", clusterHost
	if s.join {
		name, address = "node-1", joinerHost
	} else {
		l.drop() // it has the address
	}
	m, err := l.machine(name, address)
	if err != nil {
		return nil, err
	}
	defer m.off()
	if !s.bare {
		if err := m.startContainerd(); err != nil {
			return nil, err
		}
	}
	config, err := s.prepare(l, m, c)
	if err != nil {
		return nil, fmt.Errorf("cannot prepare it: %w", err)
	}
	if err := m.write(configFile, config, 0o600); err != nil {
		return nil, err
	}
	args := []string{"init", "--config", configFile, "--skip-token-print", "--skip-certificate-key-print", "--upload-certs", "--v=5"}
	if s.join {
		args = []string{"join", "--config", configFile, "--v=5"}
	}
	if s.then != nil {
		if _, err := m.kubeadm(ctx, s, args); err != nil {
			return nil, err
		}
		if err := s.then(l, m, c); err != nil {
			return nil, err
		}
	}
	f, err := m.kubeadm(ctx, s, args)
	if err != nil {
		return nil, err
	}
	if f.meta.ExitCode == 0 {
		return nil, fmt.Errorf("kubeadm did not fail:\n%s", f.output)
	}
	f.meta.Kubeadm = withV(l.programs.version)
	f.meta.Secrets = secretsOf(config)
	return f, nil
}

// kubeadm runs it and keeps what it printed.
func (m *machine) kubeadm(ctx context.Context, s scenario, args []string) (*failure, error) {
	limit := tooLong
	if s.kill > 0 {
		limit = s.kill
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	var output bytes.Buffer
	cmd := m.command(ctx, s.cpus, "/opt/bin/kubeadm", args...)
	cmd.Stdout, cmd.Stderr = &output, &output
	err := cmd.Run()
	if failed := (*exec.ExitError)(nil); err != nil && !errors.As(err, &failed) {
		return nil, err
	}
	if ctx.Err() != nil && s.kill == 0 {
		return nil, fmt.Errorf("kubeadm did not end:\n%s", output.Bytes())
	}
	return &failure{output: output.Bytes(), meta: meta{
		Command: "/opt/bin/kubeadm " + strings.Join(args, " "), ExitCode: cmd.ProcessState.ExitCode(),
	}}, nil
}

// secretsOf returns the tokens and the key of a configuration file.
func secretsOf(config string) []string {
	var secrets []string
	for line := range strings.Lines(config) {
		name, value, _ := strings.Cut(strings.TrimLeft(line, " -"), ": ")
		value = strings.Trim(value, "\" \n")
		switch name {
		case "token", "tlsBootstrapToken", "certificateKey":
			secrets = append(secrets, value)
		}
		if _, half, ok := strings.Cut(value, "."); ok && name != "certificateKey" && strings.HasSuffix(strings.ToLower(name), "token") {
			secrets = append(secrets, half)
		}
	}
	slices.Sort(secrets)
	return slices.Compact(secrets)
}

// keep writes the failure's files into dir.
func (f *failure) keep(dir string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(f.meta, "", "  ")
	if err != nil {
		return err
	}
	return errors.Join(
		os.WriteFile(filepath.Join(dir, "output.txt"), f.output, 0o644),
		os.WriteFile(filepath.Join(dir, "meta.json"), append(text, '\n'), 0o644))
}
