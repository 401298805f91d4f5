// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"nodeagent/internal/host"
)

// The files in a store's folder.
const (
	identityFile = "identity.json"
	viewFile     = "view.json"
	databaseDir  = "db"
)

// attempts is how many starts of a database may end the process before it counts as
// damaged: the library is C, and may abort on files it does not expect.
const attempts = 3

// minimumFree is what the database's log needs to begin: it is laid out in files of 8 MB.
const minimumFree = 64 << 20

// identity is what a control node is in which database.
type identity struct {
	// Database is the name the database got when it was begun. Members of one do not talk
	// to those of another: a control node that lost its files is not taken for its former self.
	Database string `json:"database"`
	ID       uint64 `json:"id"` // 0: this node began the database
	Address  string `json:"address"`
	Joined   bool   `json:"joined"`
	// Peers are the other members' addresses, as last heard.
	Peers []string `json:"peers,omitempty"`
	// Starts is how many starts have not come to an end.
	Starts int `json:"starts,omitempty"`
	// Damaged are the folders of databases that were set aside, newest last.
	Damaged []string `json:"damaged,omitempty"`
}

func loadIdentity(dir string) (*identity, error) {
	data, err := os.ReadFile(filepath.Join(dir, identityFile))
	if errors.Is(err, fs.ErrNotExist) {
		return &identity{}, nil
	}
	if err != nil {
		return nil, err
	}
	var i identity
	if json.Unmarshal(data, &i) != nil {
		return &identity{}, nil // as if it had been lost; what is in db is set aside
	}
	return &i, nil
}

func (i *identity) save(dir string) error {
	data, err := json.Marshal(i)
	if err != nil {
		return err
	}
	_, err = (&host.Host{}).WriteFile(filepath.Join(dir, identityFile), append(data, '\n'), 0o600)
	return err
}

// setAside moves the database out of the way, whole, and forgets who this node was in it.
func (i *identity) setAside(dir string, now time.Time) (name string, err error) {
	from := filepath.Join(dir, databaseDir)
	name = from + ".damaged-" + now.UTC().Format("20060102T150405Z")
	for n := 1; ; n++ {
		if err = os.Rename(from, name); !errors.Is(err, fs.ErrExist) && !errors.Is(err, unix.ENOTEMPTY) || n > 100 {
			break
		}
		name = fmt.Sprintf("%s.damaged-%s-%d", from, now.UTC().Format("20060102T150405Z"), n)
	}
	if err != nil {
		return "", err
	}
	if err := host.SyncDir(dir); err != nil {
		return "", err
	}
	*i = identity{Peers: i.Peers, Damaged: append(i.Damaged, name)}
	return name, i.save(dir)
}

// freeBytes is what a program may still write below a folder.
func freeBytes(dir string) (int64, error) {
	var fs unix.Statfs_t
	if err := unix.Statfs(dir, &fs); err != nil {
		return 0, os.NewSyscallError("statfs", err)
	}
	return int64(fs.Bavail) * fs.Bsize, nil
}

func randomName() string {
	name := make([]byte, 8)
	_, _ = rand.Read(name) // it does not fail: package crypto/rand
	return hex.EncodeToString(name)
}

// randomID is of a member that joins. 0 and 1 have a meaning of their own.
func randomID() uint64 {
	id := make([]byte, 8)
	_, _ = rand.Read(id)
	return binary.BigEndian.Uint64(id)>>1 | 2
}
