// SPDX-License-Identifier: Apache-2.0

package kubeadm

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"

	"nodeagent/internal/host"
)

const journalFile = "/var/lib/nodeagent/kubeadm.json"

// phase is how far this machine is on its way into a cluster. Only a machine of
// phaseStarted or phaseFailed may be reset: it never became a member (pain-point
// K1).
type phase string

const (
	phaseNone    phase = ""        // kubeadm was never run by nodeagent
	phaseStarted phase = "started" // kubeadm runs, or was killed
	phaseFailed  phase = "failed"  // kubeadm ended with an error
	phaseMember  phase = "member"  // kubeadm succeeded
)

// journal is what outlives a kill. Its texts hold no secrets.
type journal struct {
	Phase  phase  `json:"phase"`
	BootID string `json:"bootID,omitempty"` // of the boot that wrote it
	// FirstError is the first failure since the machine was last unused; later
	// ones are often only its consequences.
	FirstError string `json:"firstError,omitempty"`
}

func readJournal(h *host.Host) (journal, error) {
	text, err := h.ReadFile(journalFile)
	if errors.Is(err, fs.ErrNotExist) {
		return journal{}, nil
	}
	if err != nil {
		return journal{}, err
	}
	var j journal
	if err := json.Unmarshal(text, &j); err != nil {
		return journal{}, fmt.Errorf("cannot read %s: %w", journalFile, err)
	}
	switch j.Phase {
	case phaseNone, phaseStarted, phaseFailed, phaseMember:
		return j, nil
	}
	return journal{}, fmt.Errorf("cannot read %s: unknown phase %q", journalFile, j.Phase)
}

func (j journal) write(h *host.Host) error {
	text, err := json.Marshal(j)
	if err != nil {
		return err
	}
	_, err = h.WriteFile(journalFile, append(text, '\n'), 0o600)
	return err
}
