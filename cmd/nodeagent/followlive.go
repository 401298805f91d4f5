// SPDX-License-Identifier: Apache-2.0

package main

import (
	"os"
	"strings"
	"time"

	"golang.org/x/term"
)

// What a terminal is told (ECMA-48, and the private modes of DEC's VT220).
const (
	home       = "\x1b[H"
	clearLine  = "\x1b[K" // from the cursor on
	clearBelow = "\x1b[J"
	hideCursor = "\x1b[?25l"
	showCursor = "\x1b[?25h"
	noWrapping = "\x1b[?7l" // of lines that are longer than the terminal is wide
	wrapping   = "\x1b[?7h"
)

// liveFollower draws a terminal anew, in one write and without clearing it first: that
// would flicker.
type liveFollower struct {
	out   *os.File
	drawn bool
}

func (f *liveFollower) show(r *statusReport, now time.Time) {
	_, height, err := term.GetSize(int(f.out.Fd()))
	if err != nil || height < 2 {
		height = 24
	}
	var frame strings.Builder
	if !f.drawn {
		// What stands on the screen moves up, where it can be scrolled back to.
		frame.WriteString(strings.Repeat("\r\n", height) + hideCursor + noWrapping)
		f.drawn = true
	}
	frame.WriteString(home)
	for _, line := range newScreen(f.out).lines(r, now, height-1) {
		frame.WriteString(clearLine + line + "\r\n") // after a full line it would take its last character
	}
	frame.WriteString(clearBelow)
	f.write(frame.String())
}

func (f *liveFollower) end() {
	if f.drawn {
		f.write(home + clearBelow + wrapping + showCursor)
		f.drawn = false
	}
}

// write has no use for an error: a terminal that is gone is looked at by nobody.
func (f *liveFollower) write(text string) { _, _ = f.out.WriteString(text) }
