// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"bytes"
	"context"
	"crypto/tls"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// silence is how long a connection may go without an answer of the other machine before
// the kernel ends it: after a partition nobody waits for old connections.
const silence = 10 * time.Second

func tuneSocket(_, _ string, raw syscall.RawConn) error {
	var err error
	if controlErr := raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_USER_TIMEOUT, int(silence.Milliseconds()))
	}); controlErr != nil {
		return controlErr
	}
	return err
}

// dial connects to a control node for one protocol; the handshake is done when it returns.
func (k *Keys) dial(ctx context.Context, address, protocol string) (net.Conn, error) {
	return k.dialFrom(ctx, nil, address, protocol)
}

func (k *Keys) dialFrom(ctx context.Context, from net.Addr, address, protocol string) (net.Conn, error) {
	authority := k.peer
	if protocol == protocolReport {
		authority = k.report
	}
	ctx, cancel := context.WithTimeout(ctx, 5*time.Second)
	defer cancel()
	dialer := net.Dialer{Control: tuneSocket, LocalAddr: from, KeepAliveConfig: net.KeepAliveConfig{Enable: true, Idle: silence, Interval: silence / 2, Count: 3}}
	raw, err := dialer.DialContext(ctx, "tcp", address)
	if err != nil {
		return nil, err
	}
	conn := tls.Client(raw, authority.config(protocol))
	if err := conn.HandshakeContext(ctx); err != nil {
		raw.Close()
		return nil, fmt.Errorf("cannot prove to %s that it is this cluster's: %w", address, err)
	}
	return conn, nil
}

// client speaks HTTP over one of the protocols. One connection is kept.
func (k *Keys) client(protocol string) *http.Client { return k.clientFrom(nil, protocol) }

func (k *Keys) clientFrom(from net.Addr, protocol string) *http.Client {
	return &http.Client{
		Timeout: 2 * patience,
		Transport: &http.Transport{
			DialTLSContext: func(ctx context.Context, _, address string) (net.Conn, error) {
				return k.dialFrom(ctx, from, address, protocol)
			},
			MaxIdleConns:           2,
			MaxIdleConnsPerHost:    1,
			IdleConnTimeout:        idleTimeout - 10*time.Second,
			MaxResponseHeaderBytes: 16 << 10,
			DisableCompression:     true,
		},
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// call posts a value and reads the answer. What a control node refuses is a *Refusal.
func call(ctx context.Context, client *http.Client, address, path string, request, answer any) error {
	body, err := json.Marshal(request)
	if err != nil {
		return err
	}
	post, err := http.NewRequestWithContext(ctx, http.MethodPost, "https://"+address+path, bytes.NewReader(body))
	if err != nil {
		return err
	}
	response, err := client.Do(post)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode == http.StatusOK {
		if err := decode(response.Body, answer); err != nil {
			return fmt.Errorf("cannot read the answer of %s: %w", address, err)
		}
		return nil
	}
	refusal := &Refusal{Status: response.StatusCode}
	if err := decode(response.Body, refusal); err != nil || refusal.Code == "" {
		return fmt.Errorf("%s answers %s", address, response.Status)
	}
	_, _ = io.Copy(io.Discard, io.LimitReader(response.Body, 1<<10))
	refusal.Message, refusal.Code = clip(refusal.Message, maxText), clip(refusal.Code, maxField)
	return refusal
}
