// SPDX-License-Identifier: Apache-2.0

package agent

import (
	"fmt"
	"os"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// NewLog returns the agent's log: the journal with structured fields (those of a line
// become NODEAGENT_STEP, NODEAGENT_CODE, NODEAGENT_PHASE, ...) when systemd started this
// process, else readable lines on standard error.
func NewLog() *zap.Logger {
	if os.Getenv("JOURNAL_STREAM") != "" && journal.Enabled() {
		return zap.New(&journalCore{LevelEnabler: zapcore.InfoLevel})
	}
	config := zap.NewDevelopmentEncoderConfig()
	config.EncodeCaller = nil
	return zap.New(zapcore.NewCore(zapcore.NewConsoleEncoder(config), zapcore.Lock(os.Stderr), zapcore.InfoLevel))
}

type journalCore struct {
	zapcore.LevelEnabler
	fields []zapcore.Field
}

func (c *journalCore) With(fields []zapcore.Field) zapcore.Core {
	return &journalCore{c.LevelEnabler, append(c.fields[:len(c.fields):len(c.fields)], fields...)}
}

func (c *journalCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *journalCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	values := zapcore.NewMapObjectEncoder()
	for _, field := range append(c.fields[:len(c.fields):len(c.fields)], fields...) {
		field.AddTo(values)
	}
	variables := map[string]string{"SYSLOG_IDENTIFIER": "nodeagent"}
	for key, value := range values.Fields {
		variables["NODEAGENT_"+strings.ToUpper(key)] = fmt.Sprint(value)
	}
	message := entry.Message
	if step := values.Fields["step"]; step != nil && step != "" {
		message = fmt.Sprintf("%s: %s", step, message)
	}
	if err := journal.Send(message, priority(entry.Level), variables); err != nil {
		// Standard error leads to the journal, too, or to nobody; sd-daemon(3) has the prefix.
		_, err = fmt.Fprintf(os.Stderr, "<%d>%s\n", priority(entry.Level), strings.ReplaceAll(message, "\n", " "))
		return err
	}
	return nil
}

func (c *journalCore) Sync() error { return nil }

func priority(level zapcore.Level) journal.Priority {
	switch {
	case level >= zapcore.ErrorLevel:
		return journal.PriErr
	case level == zapcore.WarnLevel:
		return journal.PriWarning
	}
	return journal.PriInfo
}
