// SPDX-License-Identifier: Apache-2.0

package fleet

import (
	"crypto/tls"
	"encoding/hex"
	"errors"
	"io"
	"net"
	"testing"

	"nodeagent/internal/secret"
)

const (
	token          = "abcdef.0123456789abcdef"
	certificateKey = "00112233445566778899aabbccddeeff00112233445566778899aabbccddeeff"
)

func mustKeys(t testing.TB, token, certificateKey string) *Keys {
	t.Helper()
	keys, err := NewKeys(secret.New(token), secret.New(certificateKey))
	if err != nil {
		t.Fatal(err)
	}
	return keys
}

// Nodes of different versions of nodeagent have to derive the same keys.
func TestDerivationIsFixed(t *testing.T) {
	t.Parallel()
	keys := mustKeys(t, token, certificateKey)
	for name, test := range map[string]struct{ got, want string }{
		"cluster": {keys.Cluster(), "1f8551eb8ef3a2e7"},
		"report":  {hex.EncodeToString(keys.report.public), "ce2032b467a9f7bbffed40081aa9a10c21124f8692c8741c8e44c3c6c487ef27"},
		"peer":    {hex.EncodeToString(keys.peer.public), "00f48ef86c70dbb6650d748258c28d429759a08b500dcde5cda87fc64725c5d2"},
	} {
		if test.got != test.want {
			t.Errorf("%s: %s, want %s", name, test.got, test.want)
		}
	}
	if keys := mustKeys(t, token, ""); keys.CanPeer() {
		t.Error("a cluster without certificate key has peers")
	}
	if _, err := NewKeys(secret.Text{}, secret.New(certificateKey)); err == nil {
		t.Error("keys without a token")
	}
}

// shake does a handshake and one byte each way: with TLS
// 1.3 a client learns only then that it was refused.
func shake(t *testing.T, server, client *tls.Config) (serverErr, clientErr error) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	exchange := func(conn *tls.Conn) error {
		defer conn.Close()
		if err := conn.Handshake(); err != nil {
			return err
		}
		if _, err := conn.Write([]byte{1}); err != nil {
			return err
		}
		_, err := io.ReadFull(conn, make([]byte, 1))
		return err
	}
	done := make(chan error)
	go func() {
		conn, err := listener.Accept()
		if err == nil {
			err = exchange(tls.Server(conn, server))
		}
		done <- err
	}()
	conn, err := net.Dial("tcp", listener.Addr().String())
	if err != nil {
		t.Fatal(err)
	}
	clientErr = exchange(tls.Client(conn, client))
	return <-done, clientErr
}

// C33: who does not have the secret gets nothing.
func TestHandshakes(t *testing.T) {
	t.Parallel()
	ours, worker := mustKeys(t, token, certificateKey), mustKeys(t, token, "")
	other, mixed := mustKeys(t, "abcdef.0123456789abcdee", certificateKey), mustKeys(t, token, "11"+certificateKey[2:])
	server := ours.serverConfig(func() string { return "db1" })
	for _, test := range []struct {
		name     string
		client   *tls.Config
		accepted bool
	}{
		{"a worker reports", worker.report.config(protocolReport), true},
		{"a control node reports", ours.report.config(protocolReport), true},
		{"another cluster's token", other.report.config(protocolReport), false},
		{"a control node joins", ours.peer.config(protocolJoin), true},
		{"a worker joins", worker.report.config(protocolJoin), false},
		{"another certificate key", mixed.peer.config(protocolJoin), false},
		{"a peer", ours.peer.config(protocolPeer + "db1"), true},
		{"a peer of another database", ours.peer.config(protocolPeer + "db2"), false},
		{"a peer of no database", ours.peer.config(protocolPeer), false},
		{"a worker as a peer", worker.report.config(protocolPeer + "db1"), false},
		{"no protocol", &tls.Config{InsecureSkipVerify: true}, false},
		{"no certificate", &tls.Config{InsecureSkipVerify: true, NextProtos: []string{protocolReport}}, false},
		{"TLS 1.2", func() *tls.Config {
			config := worker.report.config(protocolReport)
			config.MinVersion, config.MaxVersion = tls.VersionTLS12, tls.VersionTLS12
			return config
		}(), false},
	} {
		serverErr, clientErr := shake(t, server, test.client)
		if err := errors.Join(serverErr, clientErr); (serverErr == nil) != test.accepted {
			t.Errorf("%s: %v", test.name, err)
		}
	}
	// The other way round: a server without the secret gets no report.
	if _, err := shake(t, other.serverConfig(func() string { return "" }), worker.report.config(protocolReport)); err == nil {
		t.Error("a node reports to a server of another cluster")
	}
}
