// SPDX-License-Identifier: Apache-2.0

//go:build vm

package vm

import (
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"nodeagent/internal/iso9660"
	"nodeagent/test/cloud"
	"nodeagent/test/iso"
	"nodeagent/test/lab"
)

// A worker that has no drive with an ISO gets its binaries from the virtual router, which
// begins to serve them only when the worker waits (contract 4.6 and 5.5).
func TestClusterRouterISO(t *testing.T) {
	ctx, l := newLab(t)
	image, err := iso.Build(ctx, os.Stderr, iso.Options{Version: lab.Version})
	if err != nil {
		t.Fatal(err)
	}
	spec, params, err := l.ControlNodeSpec("prod1-control-1", netip.MustParseAddr("10.1.1.57"))
	if err != nil {
		t.Fatal(err)
	}
	control := boot(t, ctx, l, spec)
	if err := control.InsertISO(ctx, image); err != nil {
		t.Fatal(err)
	}
	params.ISORouter = l.Cloud.Router.Address
	if spec, err = l.WorkerSpec(workerName, netip.MustParseAddr("10.1.1.61"), params); err != nil {
		t.Fatal(err)
	}
	worker := boot(t, ctx, l, spec)
	files := unpackISO(t, image)
	serve := func(step lab.Step) {
		t.Logf("%s %s: %s", step.Name, step.Status, step.Note)
		if strings.Contains(step.Note, fmt.Sprintf("virtual router %s offers no cks-iso (404)", l.Cloud.Router.Address)) {
			l.Cloud.Router.ServeISO(files)
		}
	}
	status, code, err := lab.Follow(ctx, worker, "", serve)
	if err != nil || code != 0 && code != 2 || len(status.Warnings) > 0 {
		t.Fatalf("worker: exit code %d, failures %v, warnings %v, %v", code, status.Failures(), status.Warnings, err)
	}
	step, _ := status.Step("iso")
	t.Logf("the ISO was there after %.0f s: %s", step.Seconds, step.Note)
	if want := fmt.Sprintf("v%s on http://%s/cks-iso/, ", lab.Version, l.Cloud.Router.Address); !strings.HasPrefix(step.Note, want) {
		t.Errorf("the step iso says %q, want %q", step.Note, want)
	}
	wantSteps(t, status, map[string]string{"images": "done", "release": "done", "ready": "done", "success": "done"})
	wantGates(t, ctx, worker)
	wantMade(t, ctx, worker, params)
	output(t, ctx, worker, "/usr/bin/test", "!", "-e", "/var/lib/nodeagent/cks-iso")
	checks := cloud.Checks{Cloud: l.Cloud, Control: control.Address, Key: l.Key}
	if err := checks.WaitNodes(ctx, 2); err != nil {
		t.Error(err)
	}
	// Each file once: nothing was begun again.
	seen := map[string]int{}
	for _, request := range l.Cloud.Router.Requests() {
		if name, ok := strings.CutPrefix(request.Path, "/cks-iso/"); ok && request.Client == worker.Address && path.Ext(name) == ".tar" {
			seen[name]++
		}
	}
	for name, requests := range seen {
		if requests != 2 { // HEAD and GET
			t.Errorf("%s was asked for %d times", name, requests)
		}
	}
	if len(seen) == 0 {
		t.Error("the worker asked the router for no image")
	}
}

// unpackISO returns a folder with an ISO's files.
func unpackISO(t *testing.T, image string) string {
	t.Helper()
	device, err := os.Open(image)
	if err != nil {
		t.Fatal(err)
	}
	defer device.Close()
	volume, err := iso9660.Open(device)
	if err != nil || volume == nil {
		t.Fatalf("%s: %v, %v", image, volume, err)
	}
	dir := filepath.Join(t.TempDir(), "iso")
	if err := os.CopyFS(dir, fs.FS(volume)); err != nil {
		t.Fatal(err)
	}
	return dir
}
