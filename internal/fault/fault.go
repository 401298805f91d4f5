// SPDX-License-Identifier: Apache-2.0

// Package fault is how a failure reaches the operator: an error with a stable
// code, a cause in one sentence, what to do about it, and the last lines of the
// tool that failed. codes.go is the catalogue of all codes.
package fault

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Error is a failure an operator can act on.
type Error struct {
	Code    Code     // stable, from the catalogue
	Message string   // what failed: the file or key, the value, what was expected
	Hint    string   // what to do; "" takes the catalogue's remedy
	Log     []string // last lines of the tool that failed
	LogPath string   // the file that has all of them
	Err     error    // the cause, when there is one
}

// New returns an Error without a cause.
func New(code Code, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...)}
}

// Wrap returns an Error with a cause. The cause's own code and log, where it has
// them, stay reachable through As.
func Wrap(code Code, err error, format string, args ...any) *Error {
	return &Error{Code: code, Message: fmt.Sprintf(format, args...), Err: err}
}

// Join returns one Error of several problems, nil ones left out. Code and log are those
// of the first that has a code, else code; the hint says what to do about each of them.
func Join(code Code, problems []error) *Error {
	joined := New(code, "")
	var texts, hints []string
	for _, problem := range problems {
		if problem == nil {
			continue
		}
		known := (*Error)(nil)
		if errors.As(problem, &known) {
			if hint := As(problem).Hint; !slices.Contains(hints, hint) {
				hints = append(hints, hint)
			}
			if len(texts) == 0 {
				joined.Code, joined.Log, joined.LogPath = known.Code, As(problem).Log, As(problem).LogPath
			}
		}
		texts = append(texts, problem.Error())
	}
	joined.Message, joined.Hint = strings.Join(texts, "; "), strings.Join(hints, " ")
	return joined
}

// WithHint says what to do in place of the catalogue's remedy.
func (e *Error) WithHint(format string, args ...any) *Error {
	e.Hint = fmt.Sprintf(format, args...)
	return e
}

// WithLog attaches the last lines of the tool that failed.
func (e *Error) WithLog(lines []string) *Error {
	e.Log = lines
	return e
}

// WithLogPath names the file that has all of the tool's output.
func (e *Error) WithLogPath(path string) *Error {
	e.LogPath = path
	return e
}

func (e *Error) Error() string {
	if e.Err == nil {
		return e.Message
	}
	return e.Message + ": " + e.Err.Error()
}

func (e *Error) Unwrap() error { return e.Err }

// As returns the outermost Error in err's chain with hint, log and log path filled in from
// inner ones and the catalogue; an error of any other kind becomes one with the
// code Internal.
func As(err error) *Error {
	var outer *Error
	if !errors.As(err, &outer) {
		outer = &Error{Code: Internal, Message: err.Error()}
	}
	whole := *outer
	whole.Message = err.Error()
	whole.Err = nil
	for inner := outer.Err; inner != nil; {
		var next *Error
		if !errors.As(inner, &next) {
			break
		}
		if whole.Hint == "" {
			whole.Hint = next.Hint
		}
		if len(whole.Log) == 0 {
			whole.Log = next.Log
		}
		if whole.LogPath == "" {
			whole.LogPath = next.LogPath
		}
		inner = next.Err
	}
	if whole.Hint == "" {
		whole.Hint = whole.Code.Remedy()
	}
	return &whole
}
