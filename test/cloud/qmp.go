// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"slices"
	"sync"
)

// cdDrive is the id of the CD drive's device.
const cdDrive = "cd0"

// QMP is a connection to QEMU's machine protocol
// (https://www.qemu.org/docs/master/interop/qmp-spec.html). Its methods may be
// called at the same time.
type QMP struct {
	conn net.Conn

	mu      sync.Mutex
	next    int
	pending map[int]chan qmpAnswer
	events  []Event
	change  chan struct{} // closed at the next event
	err     error         // why the connection ended
}

// Event is something that QEMU told on its own.
type Event struct {
	Name string          `json:"event"`
	Data json.RawMessage `json:"data"`
}

type qmpAnswer struct {
	ID     *int            `json:"id"`
	Return json.RawMessage `json:"return"`
	Error  *struct {
		Class string `json:"class"`
		Desc  string `json:"desc"`
	} `json:"error"`
	Event
}

// DialQMP connects to the socket, reads the greeting and leaves negotiation mode.
func DialQMP(ctx context.Context, path string) (*QMP, error) {
	conn, err := new(net.Dialer).DialContext(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("cannot connect to QMP: %w", err)
	}
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	reader := bufio.NewReader(conn)
	var greeting struct {
		QMP json.RawMessage `json:"QMP"`
	}
	line, err := reader.ReadBytes('\n')
	if err == nil {
		err = json.Unmarshal(line, &greeting)
	}
	if err == nil && greeting.QMP == nil {
		err = fmt.Errorf("no greeting in %q", line)
	}
	if err != nil {
		conn.Close()
		return nil, fmt.Errorf("cannot greet QMP: %w", errors.Join(context.Cause(ctx), err))
	}
	q := &QMP{conn: conn, pending: make(map[int]chan qmpAnswer), change: make(chan struct{})}
	go q.read(reader)
	if err := q.Execute(ctx, "qmp_capabilities", nil, nil); err != nil {
		conn.Close()
		return nil, err
	}
	return q, nil
}

// read hands answers to who waits for them, until the connection ends.
func (q *QMP) read(reader *bufio.Reader) {
	for {
		line, err := reader.ReadBytes('\n')
		if err == nil {
			var answer qmpAnswer
			if err = json.Unmarshal(line, &answer); err == nil {
				q.dispatch(answer)
				continue
			}
		}
		if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) {
			err = errors.New("QEMU has closed the connection")
		}
		q.mu.Lock()
		q.err = err
		for id, waiting := range q.pending {
			close(waiting)
			delete(q.pending, id)
		}
		close(q.change)
		q.mu.Unlock()
		return
	}
}

func (q *QMP) dispatch(answer qmpAnswer) {
	q.mu.Lock()
	defer q.mu.Unlock()
	if answer.Name != "" {
		q.events = append(q.events, answer.Event)
		close(q.change)
		q.change = make(chan struct{})
		return
	}
	if answer.ID == nil {
		return
	}
	if waiting, ok := q.pending[*answer.ID]; ok {
		waiting <- answer
		delete(q.pending, *answer.ID)
	}
}

// Execute runs a command and decodes what it returns into result, unless that
// is nil.
func (q *QMP) Execute(ctx context.Context, command string, arguments, result any) error {
	waiting := make(chan qmpAnswer, 1)
	q.mu.Lock()
	if q.err != nil {
		defer q.mu.Unlock()
		return fmt.Errorf("cannot execute %s: %w", command, q.err)
	}
	q.next++
	id := q.next
	q.pending[id] = waiting
	line, err := json.Marshal(struct {
		Execute   string `json:"execute"`
		Arguments any    `json:"arguments,omitempty"`
		ID        int    `json:"id"`
	}{command, arguments, id})
	if err == nil {
		_, err = q.conn.Write(append(line, '\n'))
	}
	if err != nil {
		delete(q.pending, id)
	}
	q.mu.Unlock()
	if err != nil {
		return fmt.Errorf("cannot execute %s: %w", command, err)
	}

	select {
	case answer, ok := <-waiting:
		switch {
		case !ok:
			return fmt.Errorf("cannot execute %s: %w", command, q.closed())
		case answer.Error != nil:
			return fmt.Errorf("cannot execute %s: %s (%s)", command, answer.Error.Desc, answer.Error.Class)
		case result != nil:
			return json.Unmarshal(answer.Return, result)
		}
		return nil
	case <-ctx.Done():
		q.mu.Lock()
		delete(q.pending, id)
		q.mu.Unlock()
		return fmt.Errorf("cannot execute %s: %w", command, context.Cause(ctx))
	}
}

func (q *QMP) closed() error {
	q.mu.Lock()
	defer q.mu.Unlock()
	return q.err
}

// Events are all events so far, oldest first.
func (q *QMP) Events() []Event {
	q.mu.Lock()
	defer q.mu.Unlock()
	return slices.Clone(q.events)
}

// WaitEvent blocks until there is an event of that name beyond the first seen
// ones, seen being the length of an earlier Events.
func (q *QMP) WaitEvent(ctx context.Context, seen int, name string) (Event, error) {
	for {
		q.mu.Lock()
		events, change, err := q.events, q.change, q.err
		q.mu.Unlock()
		for ; seen < len(events); seen++ {
			if events[seen].Name == name {
				return events[seen], nil
			}
		}
		if err != nil {
			return Event{}, fmt.Errorf("cannot wait for event %s: %w", name, err)
		}
		select {
		case <-change:
		case <-ctx.Done():
			return Event{}, fmt.Errorf("cannot wait for event %s: %w", name, context.Cause(ctx))
		}
	}
}

// InsertISO puts the image into the CD drive, as attaching an ISO does: no new
// device comes, the medium of the present drive changes, whoever is reading the old
// one.
func (q *QMP) InsertISO(ctx context.Context, path string) error {
	return q.Execute(ctx, "blockdev-change-medium", map[string]any{
		"id": cdDrive, "filename": path, "format": "raw", "read-only-mode": "read-only", "force": true,
	}, nil)
}

// EjectISO takes the medium out, also one that the machine has mounted and
// locked: the management server does not ask the machine either.
func (q *QMP) EjectISO(ctx context.Context) error {
	return q.Execute(ctx, "eject", map[string]any{"id": cdDrive, "force": true}, nil)
}

// Medium is the path of the image in the CD drive; empty when there is none.
func (q *QMP) Medium(ctx context.Context) (string, error) {
	var drives []struct {
		Device   string `json:"qdev"`
		Inserted *struct {
			File string `json:"file"`
		} `json:"inserted"`
	}
	if err := q.Execute(ctx, "query-block", nil, &drives); err != nil {
		return "", err
	}
	for _, drive := range drives {
		if drive.Device != cdDrive {
			continue
		}
		if drive.Inserted == nil {
			return "", nil
		}
		return drive.Inserted.File, nil
	}
	return "", fmt.Errorf("cannot find CD drive %s", cdDrive)
}

// Reset is the reset button: the machine is not asked.
func (q *QMP) Reset(ctx context.Context) error { return q.Execute(ctx, "system_reset", nil, nil) }

// PowerDown presses the power button (ACPI) and does not wait.
func (q *QMP) PowerDown(ctx context.Context) error {
	return q.Execute(ctx, "system_powerdown", nil, nil)
}

// Quit ends QEMU.
func (q *QMP) Quit(ctx context.Context) error { return q.Execute(ctx, "quit", nil, nil) }

// Close ends the connection, not QEMU.
func (q *QMP) Close() error { return q.conn.Close() }
