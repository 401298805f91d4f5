// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	_ "github.com/containerd/containerd/v2/client"
	_ "github.com/containerd/containerd/v2/core/images/archive"
	_ "github.com/pelletier/go-toml/v2"
	_ "go.yaml.in/yaml/v3"
	_ "golang.org/x/sync/errgroup"
	_ "google.golang.org/grpc"
	_ "k8s.io/cri-api/pkg/apis/runtime/v1"
	_ "github.com/klauspost/compress/zstd"
	_ "github.com/containerd/platforms"
	_ "github.com/opencontainers/image-spec/specs-go/v1"
	_ "github.com/distribution/reference"
)
