package takeover

import "sidestep.dev/sidestep/nodeagent/sockdiag"

// Clsact makes the port attach as before Linux 6.6.
func Clsact(c *Config, on bool) { c.clsact = on }

// Destroy makes the kernel end no connection by itself.
func Destroy(c *Config, destroy func(*sockdiag.Socket) error) { c.destroy = destroy }
