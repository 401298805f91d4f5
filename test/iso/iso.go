// SPDX-License-Identifier: Apache-2.0

// Package iso builds a CKS binaries ISO in the layout that CloudStack's own
// builder makes, from pinned Go modules: the tests install real Kubernetes from
// it without fetching any binary. It needs Go, xorriso and mmdebstrap.
package iso

import (
	"context"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"slices"
	"strings"

	"nodeagent/test/cache"
)

// DefaultVersion is the Kubernetes version of an ISO that asks for none.
const DefaultVersion = "1.34.4"

// Options say which ISO is wanted; the zero value is the one that CloudStack
// would register for DefaultVersion.
type Options struct {
	// Version of Kubernetes, without "v"; "" is DefaultVersion. Unless Small,
	// there must be a recipe for it in modules/kubernetes.
	Version string
	// Label is the volume label; "" is CDROM.
	Label string
	// Omit names files and folders to leave out, relative to the ISO's root.
	Omit []string
	// Small puts tiny stand-ins in place of everything that takes long to build.
	// Nothing on such an ISO can run a cluster.
	Small bool
}

// Build returns the path of the ISO that the options describe. It blocks for
// about ten minutes when nothing is cached, and writes its progress to log. The
// file belongs to the cache: callers only read it.
func Build(ctx context.Context, log io.Writer, options Options) (path string, err error) {
	if options.Version == "" {
		options.Version = DefaultVersion
	}
	if options.Label == "" {
		options.Label = "CDROM"
	}
	if err := options.check(); err != nil {
		return "", err
	}
	b := builder{log: log}
	if b.root, err = moduleRoot(ctx); err != nil {
		return "", err
	}
	inputs, err := b.inputs(ctx, options)
	if err != nil {
		return "", err
	}
	dir, err := cache.Dir("iso", inputs, func(dir string) error {
		return b.iso(ctx, dir, options)
	})
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, isoName), nil
}

const isoName = "binaries.iso"

var (
	versionPattern = regexp.MustCompile(`^[0-9]+\.[0-9]+\.[0-9]+$`)
	labelPattern   = regexp.MustCompile(`^[A-Za-z0-9_-]{1,32}$`)
)

func (o Options) check() error {
	if !versionPattern.MatchString(o.Version) {
		return fmt.Errorf("cannot build an ISO of version %q: want MAJOR.MINOR.PATCH", o.Version)
	}
	if !labelPattern.MatchString(o.Label) {
		return fmt.Errorf("cannot build an ISO with label %q: want 1 to 32 letters, digits, - or _", o.Label)
	}
	for _, name := range o.Omit {
		if !filepath.IsLocal(name) || filepath.Clean(name) == "." {
			return fmt.Errorf("cannot omit %q: want a path below the ISO's root", name)
		}
	}
	return nil
}

// builder makes the parts of an ISO.
type builder struct {
	root string // of the nodeagent module
	log  io.Writer
}

func (b builder) path(names ...string) string {
	return filepath.Join(append([]string{b.root, "test", "iso"}, names...)...)
}

func (b builder) logf(format string, args ...any) {
	fmt.Fprintf(b.log, format+"\n", args...)
}

// inputs are everything that an ISO with these options is made from.
func (b builder) inputs(ctx context.Context, options Options) ([]string, error) {
	code, err := filepath.Glob(b.path("*.go"))
	if err != nil {
		return nil, err
	}
	code = slices.DeleteFunc(code, func(name string) bool { return strings.HasSuffix(name, "_test.go") })
	paths := append(code, b.path("files"))
	if !options.Small {
		if err := b.haveRecipe(kubernetesRecipe(options.Version)); err != nil {
			return nil, err
		}
		// The programs as built, rather than their sources and go.mod: most
		// changes there leave them the same.
		programs, err := b.ownPrograms(ctx, options.Version)
		if err != nil {
			return nil, err
		}
		paths = append(paths, b.path("modules"), programs)
	}
	sources, err := cache.Files(paths...)
	return []string{runtime.Version(), sources, fmt.Sprintf("%#v", options)}, err
}

// iso writes the ISO into dir.
func (b builder) iso(ctx context.Context, dir string, options Options) error {
	var (
		contents payload
		err      error
	)
	if options.Small {
		contents = smallPayload(options.Version)
	} else if contents, err = b.payload(ctx, options.Version); err != nil {
		return err
	}

	tree := filepath.Join(dir, "tree")
	defer os.RemoveAll(tree)
	if err := writeTree(tree, contents); err != nil {
		return err
	}
	if err := omit(tree, options.Omit); err != nil {
		return err
	}
	b.logf("writing the ISO")
	return b.run(ctx, dir, nil, "xorriso", "-as", "mkisofs", "-quiet",
		"-V", options.Label, "-J", "-R", "-o", filepath.Join(dir, isoName), tree)
}
