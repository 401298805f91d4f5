// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"context"
	"errors"
	"strings"
	"testing"
	"testing/fstest"

	containerd "github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/plugins/content/local"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"

	"nodeagent/internal/fault"
)

// namedImages keeps which images get a name, and refuses it: so far a test goes.
type namedImages struct {
	images.Store
	names []string
}

var errNamed = errors.New("so far the test goes")

func (n *namedImages) Get(context.Context, string) (images.Image, error) {
	return images.Image{}, errdefs.ErrNotFound
}

func (n *namedImages) Update(_ context.Context, image images.Image, _ ...string) (images.Image, error) {
	n.names = append(n.names, image.Name)
	return image, errNamed
}

type noLeases struct{ leases.Manager }

func (noLeases) Create(context.Context, ...leases.Opt) (leases.Lease, error) {
	return leases.Lease{ID: "test"}, nil
}
func (noLeases) Delete(context.Context, leases.Lease, ...leases.DeleteOpt) error { return nil }

type noLabels struct{}

func (noLabels) Get(digest.Digest) (map[string]string, error) { return nil, nil }
func (noLabels) Set(digest.Digest, map[string]string) error   { return nil }
func (noLabels) Update(_ digest.Digest, labels map[string]string) (map[string]string, error) {
	return labels, nil
}

// An archive that is not the one the manifest lists gives no image a name, however
// sound it is in itself, and is what a failure of its import is put down to.
func TestImportVerifies(t *testing.T) {
	t.Parallel()
	good := string(tarOf(t, dockerFiles(t, []string{pause}, "one", "two")))
	other := string(tarOf(t, dockerFiles(t, []string{pause}, "one", "tvo")))
	lying := string(tarOf(t, append(dockerFiles(t, []string{pause}, "one", "two"), file{name: "1/layer.tar", text: "tvo"})))
	const differs = "docker/pause.tar of the binaries ISO in /dev/sr0 is not the file that SHA256SUMS lists"
	for title, test := range map[string]struct {
		archive string
		sums    map[string]sum
		leave   []string
		named   int
		code    fault.Code
		want    string // "" for none
	}{
		"as listed":             {archive: good, sums: sumsOf("docker/pause.tar", good), named: 1, code: fault.Internal, want: errNamed.Error()},
		"no manifest":           {archive: good, named: 1, code: fault.Internal, want: errNamed.Error()},
		"another image":         {archive: other, sums: sumsOf("docker/pause.tar", good), code: fault.ISOChecksum, want: differs},
		"a damaged layer":       {archive: lying, sums: sumsOf("docker/pause.tar", good), code: fault.ISOChecksum, want: differs},
		"the same, unlisted":    {archive: lying, code: fault.Internal, want: "cannot send"},
		"a damaged table":       {archive: strings.Repeat("x", len(good)), sums: sumsOf("docker/pause.tar", good), code: fault.ISOChecksum, want: differs},
		"the same, no manifest": {archive: strings.Repeat("x", len(good)), code: fault.ISOInvalid, want: "cannot use it"},
		"damaged but not used":  {archive: other, sums: sumsOf("docker/pause.tar", good), leave: []string{pause}},
	} {
		t.Run(title, func(t *testing.T) {
			t.Parallel()
			store, err := local.NewLabeledStore(t.TempDir(), noLabels{})
			if err != nil {
				t.Fatal(err)
			}
			named := &namedImages{}
			client, err := containerd.New("", containerd.WithDefaultNamespace(imageNamespace), containerd.WithServices(
				containerd.WithContentStore(store), containerd.WithImageStore(named), containerd.WithLeasesService(noLeases{})))
			if err != nil {
				t.Fatal(err)
			}
			listing := ImageFile{Name: "pause.tar", Bytes: int64(len(test.archive))}
			iso := &isoFiles{ctx: t.Context(), where: "the binaries ISO in /dev/sr0", limit: readLimit, sums: test.sums,
				files: fstest.MapFS{"docker/pause.tar": {Data: []byte(test.archive)}}}
			i := &importer{client: client, leave: test.leave, platform: linuxAMD64, progress: newProgress([]ImageFile{listing})}
			err = i.importFile(t.Context(), iso, listing)
			if len(named.names) != test.named {
				t.Errorf("named %q, want %d", named.names, test.named)
			}
			if test.want == "" {
				if err != nil {
					t.Errorf("error %v", err)
				}
				return
			}
			if err == nil || !strings.Contains(err.Error(), test.want) || fault.As(err).Code != test.code {
				t.Errorf("error %v, want %s with %q", err, test.code, test.want)
			}
		})
	}
}

func sumsOf(name, text string) map[string]sum {
	sums, err := parseSums([]byte(sumLine(name, text)))
	if err != nil {
		panic(err)
	}
	return sums
}
