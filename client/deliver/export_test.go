// SPDX-License-Identifier: Apache-2.0

package deliver

import "time"

// Gather has a Pool wait so long for further connections.
func (p *Pool) Gather(d time.Duration) *Pool {
	p.gather = d
	return p
}
