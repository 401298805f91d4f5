// SPDX-License-Identifier: Apache-2.0

package cloud

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"crypto/rsa"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/crypto/ssh"
)

const sshConnect = 10 * time.Second // also for the key exchange, as in CloudStack

// KeyPair is the management server's ssh key.
type KeyPair struct {
	// Public is a line of authorized_keys, for the userdata.
	Public string
	signer ssh.Signer
}

// NewKeyPair makes an RSA key that signs with SHA-1 only ("ssh-rsa"), which is
// what the ssh client of the management server offers: a node must accept it.
func NewKeyPair() (*KeyPair, error) {
	key, err := rsa.GenerateKey(rand.Reader, 2048)
	if err != nil {
		return nil, err
	}
	signer, err := ssh.NewSignerFromKey(key)
	if err != nil {
		return nil, err
	}
	old, err := ssh.NewSignerWithAlgorithms(signer.(ssh.AlgorithmSigner), []string{ssh.KeyAlgoRSA})
	if err != nil {
		return nil, err
	}
	line := strings.TrimSpace(string(ssh.MarshalAuthorizedKey(signer.PublicKey())))
	return &KeyPair{Public: line + " cloud@management", signer: old}, nil
}

// SSH logs in with the key, runs one command in the user's shell and returns
// its standard output. A non-zero exit is an error that shows standard error.
// The management server, too, connects anew for every command.
func (c *Cloud) SSH(ctx context.Context, address netip.AddrPort, user string, key *KeyPair, command string) (string, error) {
	output, err := c.runSSH(ctx, address, user, key, command)
	if err != nil {
		return output, fmt.Errorf("cannot run %q on %s: %w", command, address, err)
	}
	return output, nil
}

// LoginScreen logs in at a terminal, as a person does, and returns what the machine shows
// until the shell has ended.
func (c *Cloud) LoginScreen(ctx context.Context, address netip.AddrPort, user string, key *KeyPair) (string, error) {
	screen, err := c.inSSH(ctx, address, user, key, func(session *ssh.Session) error {
		session.Stdin = strings.NewReader("exit\n")
		if err := session.RequestPty("dumb", 24, 80, ssh.TerminalModes{}); err != nil {
			return err
		}
		if err := session.Shell(); err != nil {
			return err
		}
		return session.Wait()
	})
	if err != nil {
		return screen, fmt.Errorf("cannot log in on %s: %w", address, err)
	}
	return screen, nil
}

func (c *Cloud) runSSH(ctx context.Context, address netip.AddrPort, user string, key *KeyPair, command string) (string, error) {
	return c.inSSH(ctx, address, user, key, func(session *ssh.Session) error { return session.Run(command) })
}

// inSSH logs in, has run use the session, and returns its standard output.
func (c *Cloud) inSSH(ctx context.Context, address netip.AddrPort, user string, key *KeyPair, run func(*ssh.Session) error) (string, error) {
	connect, cancel := context.WithTimeout(ctx, sshConnect)
	defer cancel()
	conn, err := c.DialContext(connect, "tcp", address.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	config := &ssh.ClientConfig{
		User:            user,
		Auth:            []ssh.AuthMethod{ssh.PublicKeys(key.signer)},
		HostKeyCallback: ssh.InsecureIgnoreHostKey(), // the management server checks none either
	}
	if err := conn.SetDeadline(time.Now().Add(sshConnect)); err != nil {
		return "", err
	}
	clientConn, channels, requests, err := ssh.NewClientConn(conn, address.String(), config)
	if err != nil {
		return "", because(ctx, err)
	}
	if err := conn.SetDeadline(time.Time{}); err != nil {
		return "", err
	}
	client := ssh.NewClient(clientConn, channels, requests)
	defer client.Close()
	session, err := client.NewSession()
	if err != nil {
		return "", because(ctx, err)
	}
	defer session.Close()
	var stdout, stderr bytes.Buffer
	session.Stdout, session.Stderr = &stdout, &stderr
	err = run(session)
	if exit := (*ssh.ExitError)(nil); errors.As(err, &exit) {
		err = fmt.Errorf("%w: %s", err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), because(ctx, err)
}

// DialSSHBanner returns the first line of an ssh server, such as
// "SSH-2.0-OpenSSH_9.2p1": proof that it is up, without a login.
func (c *Cloud) DialSSHBanner(ctx context.Context, address netip.AddrPort) (string, error) {
	ctx, cancel := context.WithTimeout(ctx, sshConnect)
	defer cancel()
	conn, err := c.DialContext(ctx, "tcp", address.String())
	if err != nil {
		return "", err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { conn.Close() })
	defer stop()
	line, err := bufio.NewReader(conn).ReadString('\n')
	if err != nil {
		return "", fmt.Errorf("cannot read ssh banner of %s: %w", address, because(ctx, err))
	}
	line = strings.TrimRight(line, "\r\n")
	if !strings.HasPrefix(line, "SSH-2.0-") {
		return "", fmt.Errorf("cannot read ssh banner of %s: got %q", address, line)
	}
	return line, nil
}
