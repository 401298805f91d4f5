// SPDX-License-Identifier: Apache-2.0

package userdata

import (
	"regexp"
	"sync"
)

// pattern is a regular expression that is compiled when it is first used: on most
// machines a boot uses few of them, and every command of nodeagent would pay for all.
func pattern(text string) func() *regexp.Regexp {
	return sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(text) })
}
