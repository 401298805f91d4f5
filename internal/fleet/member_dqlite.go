// SPDX-License-Identifier: Apache-2.0

//go:build dqlite && !nodqlite

package fleet

import (
	"context"
	"database/sql"
	"database/sql/driver"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/canonical/go-dqlite/v3"
	"github.com/canonical/go-dqlite/v3/client"
	dqlitesql "github.com/canonical/go-dqlite/v3/driver"
	"golang.org/x/sys/unix"
)

// snapshots keep the log of changes short: it is in memory too, and a member that was away
// gets the whole database, which is small.
var snapshots = dqlite.SnapshotParams{Threshold: 128, Trailing: 256}

type dqliteMember struct {
	node    *dqlite.Node
	address string
	bind    string
	store   client.NodeStore
	db      *sql.DB
	dial    func(ctx context.Context, address string) (net.Conn, error)

	mutex sync.Mutex
	pipes map[io.Closer]bool
	done  bool
}

// openMember starts the database. Corrupt files are errors: nothing is deleted.
func openMember(o memberOptions) (member, error) {
	m := &dqliteMember{address: o.address, dial: o.dial, store: client.NewInmemNodeStore(), pipes: map[io.Closer]bool{}}
	id := o.id
	if id == 0 {
		id = dqlite.BootstrapID
	}
	node, err := dqlite.New(id, o.address, o.dir,
		// An abstract socket, on which libdqlite takes connections of this process alone.
		dqlite.WithBindAddress("@"), dqlite.WithDialFunc(m.dialNode), dqlite.WithNetworkLatency(o.latency),
		dqlite.WithSnapshotParams(snapshots), dqlite.WithAutoRecovery(false), dqlite.WithDiskMode(false))
	if err != nil {
		if text := err.Error(); strings.HasPrefix(text, "failed to set") || strings.HasPrefix(text, "version mismatch") {
			return nil, fmt.Errorf("cannot open the database in %s: %w", o.dir, err)
		}
		return nil, fmt.Errorf("%w in %s: %w", errFiles, o.dir, err)
	}
	if err := node.Start(); err != nil {
		return nil, fmt.Errorf("%w in %s: %w", errFiles, o.dir, err)
	}
	m.node, m.bind = node, node.BindAddress()
	m.Remember(o.peers)
	d, err := dqlitesql.New(m.store, dqlitesql.WithDialFunc(m.dialClient), dqlitesql.WithLogFunc(quiet),
		dqlitesql.WithAttemptTimeout(5*time.Second), dqlitesql.WithConnectionBackoffCap(500*time.Millisecond))
	if err != nil {
		return nil, errors.Join(err, node.Close())
	}
	connector, err := d.OpenConnector("fleet")
	if err != nil {
		return nil, errors.Join(err, node.Close())
	}
	m.db = sql.OpenDB(connector)
	m.db.SetMaxOpenConns(4)
	m.db.SetMaxIdleConns(2)
	return m, nil
}

func quiet(client.LogLevel, string, ...any) {}

func (m *dqliteMember) DB() *sql.DB { return m.db }

func (m *dqliteMember) Remember(addresses []string) {
	nodes := []client.NodeInfo{{Address: m.address}}
	for _, address := range addresses {
		if address != m.address {
			nodes = append(nodes, client.NodeInfo{Address: address})
		}
	}
	_ = m.store.Set(context.Background(), nodes) // in memory: it cannot fail
}

func (m *dqliteMember) leader(ctx context.Context) (*client.Client, error) {
	leader, err := client.FindLeader(ctx, m.store, client.WithDialFunc(m.dialClient), client.WithLogFunc(quiet))
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoQuorum, err)
	}
	return leader, nil
}

func (m *dqliteMember) Members(ctx context.Context) ([]Member, error) {
	leader, err := m.leader(ctx)
	if err != nil {
		return nil, err
	}
	defer leader.Close()
	infos, err := leader.Cluster(ctx)
	if err != nil {
		return nil, err
	}
	who, err := leader.Leader(ctx)
	if err != nil {
		return nil, err
	}
	var members []Member
	for _, info := range infos {
		members = append(members, Member{ID: info.ID, Address: info.Address, Voter: info.Role == client.Voter, Leader: info.ID == who.ID})
	}
	return members, nil
}

func (m *dqliteMember) Admit(ctx context.Context, id uint64, address string) error {
	leader, err := m.leader(ctx)
	if err != nil {
		return err
	}
	defer leader.Close()
	infos, err := leader.Cluster(ctx)
	if err != nil {
		return err
	}
	if slices.ContainsFunc(infos, func(i client.NodeInfo) bool { return i.ID == id && i.Address == address }) {
		return nil
	}
	for _, info := range infos {
		if info.Address == address || info.ID == id {
			if err := leader.Remove(ctx, info.ID); err != nil {
				return err
			}
		}
	}
	return leader.Add(ctx, client.NodeInfo{ID: id, Address: address, Role: client.Spare})
}

func (m *dqliteMember) Assign(ctx context.Context, id uint64, to role) error {
	leader, err := m.leader(ctx)
	if err != nil {
		return err
	}
	defer leader.Close()
	return leader.Assign(ctx, id, map[role]client.NodeRole{voter: client.Voter, spare: client.Spare}[to])
}

func (m *dqliteMember) Awake(ctx context.Context) error {
	local, err := client.New(ctx, m.bind)
	if err != nil {
		return err
	}
	defer local.Close()
	leader, err := local.Leader(ctx)
	if err == nil && leader.ID == 0 {
		err = errors.New("this control node's database takes no part: its disk may have been full")
	}
	return err
}

// dialClient connects a client of the database with a member.
func (m *dqliteMember) dialClient(ctx context.Context, address string) (net.Conn, error) {
	if address == m.address {
		return (&net.Dialer{}).DialContext(ctx, "unix", m.bind)
	}
	return m.dial(ctx, address)
}

// dialNode connects the database with another member. It takes only sockets of the
// kernel's, so TLS is spoken between that one and ours.
func (m *dqliteMember) dialNode(ctx context.Context, address string) (net.Conn, error) {
	remote, err := m.dial(ctx, address)
	if err != nil {
		return nil, err
	}
	ours, theirs, err := socketPair()
	if err != nil {
		remote.Close()
		return nil, err
	}
	go m.pipe(remote, ours)
	return theirs, nil
}

func (m *dqliteMember) Serve(conn net.Conn) {
	local, err := net.Dial("unix", m.bind)
	if err != nil {
		conn.Close()
		return
	}
	m.pipe(conn, local)
}

// pipe copies both ways until either side ends.
func (m *dqliteMember) pipe(a, b net.Conn) {
	both := closers{a, b}
	m.mutex.Lock()
	if m.done {
		m.mutex.Unlock()
		both.Close()
		return
	}
	m.pipes[&both] = true
	m.mutex.Unlock()
	var copies sync.WaitGroup
	for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
		copies.Go(func() {
			// Whatever ended it, the two ends notice by the close.
			_, _ = io.CopyBuffer(struct{ io.Writer }{way[0]}, struct{ io.Reader }{way[1]}, make([]byte, 16<<10))
			both.Close()
		})
	}
	copies.Wait()
	m.mutex.Lock()
	delete(m.pipes, &both)
	m.mutex.Unlock()
}

type closers [2]net.Conn

func (c *closers) Close() error { return errors.Join(c[0].Close(), c[1].Close()) }

func socketPair() (a, b net.Conn, err error) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, nil, os.NewSyscallError("socketpair", err)
	}
	var conns [2]net.Conn
	for i, fd := range fds {
		file := os.NewFile(uintptr(fd), "socketpair")
		conn, connErr := net.FileConn(file)
		file.Close()
		conns[i], err = conn, errors.Join(err, connErr)
	}
	return conns[0], conns[1], err
}

func (m *dqliteMember) Close() error {
	m.mutex.Lock()
	m.done = true
	for pipe := range m.pipes {
		pipe.Close()
	}
	m.mutex.Unlock()
	return errors.Join(m.db.Close(), m.node.Close())
}

// temporary says of an error of the database's that trying again may help: others write,
// or the leader moves.
func temporary(err error) bool {
	var failed dqlitesql.Error
	if errors.As(err, &failed) {
		switch failed.Code & 0xff {
		case 5, 6, 9, 10, 26: // busy, locked, interrupted, input or output, not a database (yet)
			return true
		}
		return false
	}
	return errors.Is(err, driver.ErrBadConn) || errors.Is(err, dqlitesql.ErrNoAvailableLeader) || errors.Is(err, sql.ErrConnDone) ||
		errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || isNet(err)
}

func isNet(err error) bool {
	var failed net.Error
	return errors.As(err, &failed)
}
