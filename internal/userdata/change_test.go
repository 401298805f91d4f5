// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"os"
	"strings"
	"testing"

	"nodeagent/internal/host/hosttest"
)

// Contract 5.5, and 5.3 for the starts at which nothing may happen.
func TestCompare(t *testing.T) {
	t.Parallel()
	data := func(id, raw string) *Userdata {
		return &Userdata{Raw: []byte(raw), Meta: map[string]string{"instance-id": id}}
	}
	digest := data("", "control").Digest()
	for _, test := range []struct {
		name   string
		made   Made
		now    *Userdata
		want   Change
		reason string
	}{
		{"a stopped cluster started", Made{"u-1", digest, SemaphoresSet}, data("u-1", "control"), ChangeNone, "the userdata is the same"},
		{"an external node added", Made{"u-1", digest, SemaphoresRemoved}, data("u-1", "worker"), ChangeAsked, "cloud-init's semaphores were removed and the userdata is another"},
		{"asked to do the same again", Made{"u-1", digest, SemaphoresRemoved}, data("u-1", "control"), ChangeAsked, "cloud-init's semaphores were removed"},
		{"other userdata", Made{"u-1", digest, SemaphoresSet}, data("u-1", "worker"), ChangeNew, "the userdata is another"},
		{"other userdata, cloud-init cleaned", Made{"u-1", digest, SemaphoresUnknown}, data("u-1", "worker"), ChangeNew, "the userdata is another"},
		{"cloud-init cleaned", Made{"u-1", digest, SemaphoresUnknown}, data("u-1", "control"), ChangeNone, "the userdata is the same"},
		{"a copy of the machine", Made{"u-1", digest, SemaphoresSet}, data("u-2", "control"), ChangeNew, "the instance id is u-2, it was u-1"},
		{"made by an earlier nodeagent", Made{"u-1", "", SemaphoresSet}, data("u-1", "worker"), ChangeNone, "the userdata it was made of is not on record"},
		{"made by an earlier nodeagent, asked", Made{"u-1", "", SemaphoresRemoved}, data("u-1", "worker"), ChangeAsked, "cloud-init's semaphores were removed"},
		{"the router is gone", Made{"u-1", digest, SemaphoresSet}, nil, ChangeNone, "no userdata was found to compare with"},
		{"asked, and the router is gone", Made{"u-1", digest, SemaphoresRemoved}, nil, ChangeNone, "cloud-init's semaphores were removed, which asks to run again, but no userdata was found"},
	} {
		if got, reason := Compare(test.made, test.now); got != test.want || reason != test.reason {
			t.Errorf("%s: got %q, %q; want %q, %q", test.name, got, reason, test.want, test.reason)
		}
	}
}

func TestSemaphores(t *testing.T) {
	t.Parallel()
	m := hosttest.New(t)
	h := m.Host()
	want := func(id string, want Semaphores) {
		t.Helper()
		if got := ReadSemaphores(h, id); got != want {
			t.Errorf("semaphores of %q are %s, want %s", id, got, want)
		}
	}
	want("u-1", SemaphoresUnknown)
	m.Write("/var/lib/cloud/instances/u-1/sem/config_runcmd", "")
	want("u-1", SemaphoresSet)
	// rm -rf /var/lib/cloud/instances/<uuid>/sem/*
	if err := os.Remove(m.Path("/var/lib/cloud/instances/u-1/sem/config_runcmd")); err != nil {
		t.Fatal(err)
	}
	want("u-1", SemaphoresRemoved)

	m.Write("/var/lib/cloud/instances/u-1/sem/config_runcmd", "")
	m.Write("/var/lib/cloud/instances/u-1/user-data.txt", "x")
	for _, id := range []string{"", ".", "..", "../instances/u-1", "/", "u-1/"} {
		want(id, SemaphoresUnknown)
		if err := ForgetCloudInit(h, id); err != nil {
			t.Errorf("forget %q: %v", id, err)
		}
	}
	want("u-1", SemaphoresSet)
	if err := ForgetCloudInit(h, "u-1"); err != nil || !strings.HasPrefix(m.Read("/var/lib/cloud/instances/u-1/user-data.txt"), "x") {
		t.Errorf("forget u-1: %v", err)
	}
	want("u-1", SemaphoresUnknown)
}
