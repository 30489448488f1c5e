// SPDX-License-Identifier: Apache-2.0

package takeover

import (
	"time"

	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// Patient sets the timeout of queued packets, and when connections count as idle.
func Patient(c *Config, hold, idle time.Duration) { c.hold, c.idle = hold, idle }

// Clsact makes the port attach as before Linux 6.6.
func Clsact(c *Config, on bool) { c.clsact = on }

// Destroy makes the kernel end no connection by itself.
func Destroy(c *Config, destroy func(*sockdiag.Socket) error) { c.destroy = destroy }
