// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/backoff"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/status"
	cri "k8s.io/cri-api/pkg/apis/runtime/v1"

	"nodeagent/internal/fault"
)

// errNoCRI is a container runtime that answers, without the interface Kubernetes
// speaks.
var errNoCRI = errors.New("it has no runtime.v1.RuntimeService")

// criSettings is what a container runtime says of its own configuration.
type criSettings struct {
	SandboxImage  string // "" when it does not say: containerd 2.x
	SystemdCgroup *bool  // of runc; nil when it does not say
}

// check compares the settings with those Kubernetes needs. What the runtime does
// not say is taken for right: it has read our configuration file.
func (s criSettings) check(sandboxImage string) error {
	if s.SandboxImage != "" && s.SandboxImage != sandboxImage {
		return fault.New(fault.SandboxMismatch, "containerd uses the sandbox image %q, kubeadm wants %q", s.SandboxImage, sandboxImage)
	}
	if s.SystemdCgroup != nil && !*s.SystemdCgroup {
		return fault.New(fault.ContainerdFailed, "containerd does not manage cgroups through systemd: SystemdCgroup is false for runc")
	}
	return nil
}

// dialCRI returns a function that waits for a runtime to listen on the socket and
// asks it for its settings.
func dialCRI(socket string) criStatus {
	return func(ctx context.Context) (criSettings, error) {
		conn, err := grpc.NewClient("unix:"+socket,
			grpc.WithTransportCredentials(insecure.NewCredentials()),
			grpc.WithDefaultCallOptions(grpc.WaitForReady(true)),
			grpc.WithConnectParams(grpc.ConnectParams{
				Backoff:           backoff.Config{BaseDelay: 50 * time.Millisecond, Multiplier: 1.5, MaxDelay: time.Second},
				MinConnectTimeout: 5 * time.Second,
			}))
		if err != nil {
			return criSettings{}, err
		}
		defer conn.Close()
		client := cri.NewRuntimeServiceClient(conn)
		_, err = client.Version(ctx, &cri.VersionRequest{})
		// containerd listens before its CRI plugin has recovered its pods, and
		// refuses meanwhile; of the end of that there is no event.
		for err != nil && status.Code(err) != codes.Unimplemented && sleep(ctx, firstBackoff) {
			_, err = client.Version(ctx, &cri.VersionRequest{})
		}
		if status.Code(err) == codes.Unimplemented {
			return criSettings{}, fmt.Errorf("%w: %v", errNoCRI, err)
		}
		if err != nil {
			return criSettings{}, err
		}
		reply, err := client.Status(ctx, &cri.StatusRequest{Verbose: true})
		if err != nil {
			return criSettings{}, err
		}
		return parseSettings(reply.GetInfo()["config"])
	}
}

// parseSettings reads the configuration that containerd shows in the verbose
// status (internal/cri/server/status.go there).
func parseSettings(config string) (criSettings, error) {
	var settings criSettings
	if config == "" {
		return settings, nil
	}
	var shown struct {
		SandboxImage string `json:"sandboxImage"`
		Containerd   struct {
			Runtimes map[string]struct {
				Options struct{ SystemdCgroup *bool } `json:"options"`
			} `json:"runtimes"`
		} `json:"containerd"`
	}
	if err := json.Unmarshal([]byte(config), &shown); err != nil {
		return settings, fmt.Errorf("cannot read containerd's own account of its settings: %w", err)
	}
	settings.SandboxImage = shown.SandboxImage
	settings.SystemdCgroup = shown.Containerd.Runtimes["runc"].Options.SystemdCgroup
	return settings, nil
}
