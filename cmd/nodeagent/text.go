// SPDX-License-Identifier: Apache-2.0

package main

import (
	"fmt"
	"strings"
	"time"
	"unicode"

	"golang.org/x/text/width"

	"nodeagent/internal/agent"
)

// columns is how many columns of a terminal a text takes.
func columns(text string) int {
	sum := 0
	for _, c := range text {
		sum += runeColumns(c)
	}
	return sum
}

func runeColumns(c rune) int {
	if c < 0x300 {
		return 1
	}
	if unicode.In(c, unicode.Mn, unicode.Me, unicode.Cf) {
		return 0
	}
	if kind := width.LookupRune(c).Kind(); kind == width.EastAsianWide || kind == width.EastAsianFullwidth {
		return 2
	}
	return 1
}

// split parts text after at most limit columns.
func split(text string, limit int) (head, rest string) {
	sum := 0
	for at, c := range text {
		if sum += runeColumns(c); sum > limit && at > 0 {
			return text[:at], text[at:]
		}
	}
	return text, ""
}

// pad fills a text with spaces up to limit columns.
func pad(text string, limit int) string {
	return text + strings.Repeat(" ", max(limit-columns(text), 0))
}

// cut shortens a text to one line of at most limit columns, without control characters.
// Where the end of a word is near it is cut there.
func cut(text string, limit int) string {
	const near, dots = 12, "..."
	text = strings.TrimRight(agent.Printable(text), " ")
	if columns(text) <= limit {
		return text
	}
	head, rest := split(text, max(limit-len(dots), 1))
	if space := strings.LastIndexByte(head, ' '); !strings.HasPrefix(rest, " ") && space > 0 && columns(head[space:]) <= near {
		head = head[:space]
	}
	return strings.TrimRight(head, " ,;:") + dots
}

// wrap parts a text in lines of at most limit columns, without control characters. A
// word that is longer is cut.
func wrap(text string, limit int) []string {
	var lines []string
	line := ""
	for _, word := range strings.Fields(agent.Printable(text)) {
		if line != "" && columns(line)+1+columns(word) <= limit {
			line += " " + word
			continue
		}
		if line != "" {
			lines = append(lines, line)
		}
		for line = word; columns(line) > limit; {
			head, rest := split(line, limit)
			lines, line = append(lines, head), rest
		}
	}
	return append(lines, line)
}

// duration prints 0.4s, 12s, 3m07s, 1h02m, 2d03h, 100d: seven characters at most.
func duration(d time.Duration) string {
	d = max(d, 0)
	switch {
	case d < 10*time.Second:
		return fmt.Sprintf("%.1fs", d.Truncate(100*time.Millisecond).Seconds())
	case d < time.Minute:
		return fmt.Sprintf("%ds", int(d.Seconds()))
	case d < time.Hour:
		return fmt.Sprintf("%dm%02ds", int(d.Minutes()), int(d.Seconds())%60)
	case d < 48*time.Hour:
		return fmt.Sprintf("%dh%02dm", int(d.Hours()), int(d.Minutes())%60)
	case d < 100*24*time.Hour:
		return fmt.Sprintf("%dd%02dh", int(d.Hours())/24, int(d.Hours())%24)
	}
	return fmt.Sprintf("%dd", int(d.Hours())/24)
}

// ago says in words how long ago a moment was; nothing for one that the clock has yet
// to reach, because it was set back.
func ago(d time.Duration) string {
	switch {
	case d < 0:
		return ""
	case d < 2*time.Second:
		return "just now"
	case d < time.Minute:
		return plural(int(d.Seconds()), "second") + " ago"
	case d < time.Hour:
		return plural(int(d.Minutes()), "minute") + " ago"
	case d < 48*time.Hour:
		return plural(int(d.Hours()), "hour") + " ago"
	}
	return plural(int(d.Hours())/24, "day") + " ago"
}

// clock is a moment as it is written at another: without its day where that is the same.
func clock(at, now time.Time) string {
	at, now = at.UTC(), now.UTC()
	if at.Format(time.DateOnly) == now.Format(time.DateOnly) {
		return at.Format("15:04:05 MST")
	}
	return at.Format("2006-01-02 15:04 MST")
}
