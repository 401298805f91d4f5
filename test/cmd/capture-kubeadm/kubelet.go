// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"go.yaml.in/yaml/v3"
)

// kubelet stands in for the kubelet: it answers its health check and runs the
// commands of the static pods.
type kubelet struct {
	machine *machine
	refuse  []string // pods that it does not run

	mu   sync.Mutex
	pods map[string]*pod
}

// pod is a static pod that runs.
type pod struct {
	stop context.CancelFunc // for good
	kill context.CancelFunc // once
}

// startKubelet starts the stand-in. It does not run the pods named.
func (m *machine) startKubelet(refuse ...string) error {
	var listener net.Listener
	err := m.within(func() (err error) {
		listener, err = net.Listen("tcp", "127.0.0.1:10248")
		return err
	})
	if err != nil {
		return err
	}
	m.kubelet = &kubelet{machine: m, refuse: refuse, pods: map[string]*pod{}}
	server := &http.Server{Handler: http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) { fmt.Fprint(w, "ok") })}
	go func() { _ = server.Serve(listener) }()
	go func() {
		for m.ctx.Err() == nil {
			if err := m.kubelet.sync(); err != nil {
				fmt.Fprintf(os.Stderr, "%s: %v\n", m.name, err)
			}
			time.Sleep(300 * time.Millisecond)
		}
		server.Close()
	}()
	return nil
}

// sync starts the pods whose manifests have come and ends those whose have gone.
func (k *kubelet) sync() error {
	dir := k.machine.path("etc/kubernetes/manifests")
	entries, err := os.ReadDir(dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	k.mu.Lock()
	defer k.mu.Unlock()
	there := map[string]bool{}
	for _, entry := range entries {
		name := strings.TrimSuffix(entry.Name(), ".yaml")
		there[name] = true
		if k.pods[name] != nil || slices.Contains(k.refuse, name) {
			continue
		}
		command, err := podCommand(filepath.Join(dir, entry.Name()))
		if err != nil {
			continue // still being written
		}
		ctx, cancel := context.WithCancel(k.machine.ctx)
		k.pods[name] = &pod{stop: cancel, kill: cancel}
		go k.keepRunning(ctx, k.pods[name], command)
	}
	for name, pod := range k.pods {
		if !there[name] {
			pod.stop()
			delete(k.pods, name)
		}
	}
	return nil
}

// keepRunning runs the command again whenever it ends.
func (k *kubelet) keepRunning(ctx context.Context, p *pod, command []string) {
	for ctx.Err() == nil {
		log, err := os.OpenFile(k.machine.path("var/log/"+command[0]+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o644)
		if err != nil {
			fmt.Fprintf(os.Stderr, "%s: %v\n", k.machine.name, err)
			return
		}
		once, kill := context.WithCancel(ctx)
		k.mu.Lock()
		p.kill = kill
		k.mu.Unlock()
		cmd := k.machine.command(once, 0, command[0], command[1:]...)
		cmd.Stdout, cmd.Stderr = log, log
		_ = cmd.Run()
		kill()
		log.Close()
		select {
		case <-ctx.Done():
		case <-time.After(time.Second):
		}
	}
}

// restart ends a pod's command, which then starts again.
func (k *kubelet) restart(name string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	k.pods[name].kill()
}

// stopAll ends the stand-in's pods and starts none again.
func (k *kubelet) stopAll() {
	k.mu.Lock()
	defer k.mu.Unlock()
	for name, pod := range k.pods {
		pod.stop()
		k.refuse = append(k.refuse, name)
	}
}

// podCommand reads the command of a static pod's one container.
func podCommand(path string) ([]string, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	var pod struct {
		Spec struct {
			Containers []struct{ Command []string }
		}
	}
	if err := yaml.Unmarshal(text, &pod); err != nil {
		return nil, err
	}
	if len(pod.Spec.Containers) != 1 || len(pod.Spec.Containers[0].Command) == 0 {
		return nil, fmt.Errorf("%s has no command", path)
	}
	return pod.Spec.Containers[0].Command, nil
}
