// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"cmp"
	"context"
	"fmt"
	"io"
	"slices"

	containerd "github.com/containerd/containerd/v2/client"

	"nodeagent/internal/host"
)

// ListContainers writes one line for every container of Kubernetes that containerd knows: its
// pod, its state and its image. It asks containerd itself, and blocks at most until ctx
// ends.
func ListContainers(ctx context.Context, h *host.Host, w io.Writer) error {
	if !h.Exists(CRISocket) {
		return fmt.Errorf("cannot list containers: containerd does not run")
	}
	client, err := containerd.New(h.Path(CRISocket), containerd.WithDefaultNamespace(imageNamespace), containerd.WithTimeout(dialLimit))
	if err != nil {
		return fmt.Errorf("cannot reach containerd: %w", err)
	}
	defer client.Close()
	containers, err := client.Containers(ctx)
	if err != nil {
		return fmt.Errorf("cannot list containers: %w", err)
	}
	var lines []string
	for _, container := range containers {
		info, err := container.Info(ctx)
		if err != nil { // it is gone by now
			continue
		}
		state := "no process"
		if task, err := container.Task(ctx, nil); err == nil {
			if status, err := task.Status(ctx); err == nil {
				state = string(status.Status)
				if status.Status == containerd.Stopped {
					state = fmt.Sprintf("%s with %d at %s", state, status.ExitStatus, status.ExitTime.UTC().Format("2006-01-02T15:04:05Z"))
				}
			}
		}
		// The labels that the kubelet gives: kubernetes/pkg/kubelet/types/labels.go
		name := cmp.Or(info.Labels["io.kubernetes.container.name"], "(sandbox)")
		lines = append(lines, fmt.Sprintf("%s/%s %s: %s; %s; created %s; %s\n", info.Labels["io.kubernetes.pod.namespace"], info.Labels["io.kubernetes.pod.name"],
			name, state, info.Image, info.CreatedAt.UTC().Format("2006-01-02T15:04:05Z"), info.ID))
	}
	slices.Sort(lines)
	for _, line := range lines {
		if _, err := io.WriteString(w, line); err != nil {
			return err
		}
	}
	return nil
}
