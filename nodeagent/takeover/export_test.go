package takeover

// Clsact makes the port attach as before Linux 6.6.
func Clsact(c *Config, on bool) { c.clsact = on }
