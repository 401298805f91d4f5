// SPDX-License-Identifier: Apache-2.0

// Package userdata reads what CloudStack tells a VM: the boot args that the
// hypervisor's host delivers and the userdata that the network serves. It turns
// both into plain values (BootArgs, Intent), says all that is wrong with them,
// and writes what of the userdata stays cloud-init's work as a NoCloud seed.
// Everything it reads is foreign input: bounded, and never shown with its secrets.
package userdata

import (
	"strconv"
	"strings"

	"nodeagent/internal/fault"
	"nodeagent/internal/secret"
)

// Severity says what a Problem means for the node.
type Severity string

// Severities.
const (
	SeverityError   Severity = "error"   // the node cannot be made with this
	SeverityWarning Severity = "warning" // worth knowing; the node is made
)

// Problem is one thing that is wrong with boot args or userdata. Message names
// the key or file, the value and what was expected; it holds no secret.
type Problem struct {
	Severity Severity
	Code     fault.Code
	Key      string // boot arg or file the problem is about; "" for the whole text
	Message  string
}

// Err returns the problems of severity error as one error, or nil. Several are
// one fault of the first's code whose log lines are the others.
func Err(problems []Problem) error {
	var failed *fault.Error
	for _, p := range problems {
		switch {
		case p.Severity != SeverityError:
		case failed == nil:
			failed = fault.New(p.Code, "%s", p.Message)
		default:
			failed.Log = append(failed.Log, p.Message)
		}
	}
	if failed == nil {
		return nil
	}
	return failed
}

// What a cluster token, a certificate key and a cluster's UUID look like. They
// are struck out of everything that quotes foreign text.
var secretShape = pattern(`(?i)[a-z0-9]{6}\.[a-z0-9]{16}|[0-9a-f]{32,}|[A-Za-z0-9+/=_-]{40,}`)

// quote shows foreign text in a message: short, escaped, without what looks like
// a secret.
func quote(text string) string {
	const most = 80
	text = withoutSecrets(text)
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") + "..."
	}
	return strconv.Quote(text)
}

// userInfo is what may be a user's name and password in a URL, also in one that is
// not written as it should be.
var userInfo = pattern(`:(//)?[^\n]*@`)

func withoutSecrets(text string) string {
	return secretShape().ReplaceAllString(userInfo().ReplaceAllString(text, ":${1}"+secret.Redacted+"@"), secret.Redacted)
}
