// SPDX-License-Identifier: Apache-2.0

package agent

import "time"

// SetAbandonAfter makes a test of a hanging step short.
func (r *Runner) SetAbandonAfter(d time.Duration) { r.abandonAfter = d }
