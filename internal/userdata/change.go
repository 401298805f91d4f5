// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"

	"nodeagent/internal/host"
)

// Semaphores is the folder in which cloud-init notes what it has done for an
// instance.
type Semaphores string

// What the folder looks like.
const (
	SemaphoresSet     Semaphores = "set"
	SemaphoresRemoved Semaphores = "removed" // the folder is there, and empty
	SemaphoresUnknown Semaphores = "unknown" // no folder, or it cannot be read
)

// SemaphoreFolder is where cloud-init notes what it has done for an instance, or
// "" for an id that names no folder.
func SemaphoreFolder(instanceID string) string {
	if instanceID == "" || instanceID == "." || instanceID == ".." || instanceID != filepath.Base(instanceID) {
		return ""
	}
	return "/var/lib/cloud/instances/" + instanceID + "/sem"
}

// ReadSemaphores looks at the semaphores of an instance.
func ReadSemaphores(h *host.Host, instanceID string) Semaphores {
	folder := SemaphoreFolder(instanceID)
	if folder == "" {
		return SemaphoresUnknown
	}
	entries, err := os.ReadDir(h.Path(folder))
	switch {
	case err != nil:
		return SemaphoresUnknown
	case len(entries) == 0:
		return SemaphoresRemoved
	}
	return SemaphoresSet
}

// Made is what a machine was made of on an earlier boot.
type Made struct {
	InstanceID string
	Digest     string // of its userdata; "" when that was not recorded
	Semaphores Semaphores
}

// Digest is the SHA-256 of the userdata.
func (u Userdata) Digest() string {
	sum := sha256.Sum256(u.Raw)
	return hex.EncodeToString(sum[:])
}

// Change is what CloudStack wants of a machine that has been made.
type Change string

// The changes.
const (
	ChangeNone  Change = "same"
	ChangeNew   Change = "changed"
	ChangeAsked Change = "asked to run again"
)

// Compare says whether a machine is to be made again, and why or why not
// (contract 5.5): to have that, CloudStack's server removes cloud-init's semaphores,
// changes the userdata and reboots. now is nil when none was found: then nothing
// can be done. Compare is pure.
func Compare(made Made, now *Userdata) (Change, string) {
	removed := made.Semaphores == SemaphoresRemoved
	if now == nil && removed {
		return ChangeNone, "cloud-init's semaphores were removed, which asks to run again, but no userdata was found"
	}
	if now == nil {
		return ChangeNone, "no userdata was found to compare with"
	}
	id := now.Meta["instance-id"]
	switch {
	case id != made.InstanceID:
		return ChangeNew, "the instance id is " + id + ", it was " + made.InstanceID
	case removed && made.Digest != "" && now.Digest() != made.Digest:
		return ChangeAsked, "cloud-init's semaphores were removed and the userdata is another"
	case removed:
		return ChangeAsked, "cloud-init's semaphores were removed"
	case made.Digest == "":
		return ChangeNone, "the userdata it was made of is not on record"
	case now.Digest() != made.Digest:
		return ChangeNew, "the userdata is another"
	}
	return ChangeNone, "the userdata is the same"
}

// ForgetCloudInit makes cloud-init do everything for an instance again.
func ForgetCloudInit(h *host.Host, instanceID string) error {
	folder := SemaphoreFolder(instanceID)
	if folder == "" {
		return nil
	}
	return os.RemoveAll(h.Path(folder))
}
