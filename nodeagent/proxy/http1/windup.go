// SPDX-License-Identifier: Apache-2.0

package http1

import "time"

// windUpFor bounds how long a connection takes to end in order. What has not by then is reset.
const windUpFor = 2 * time.Second

// lastLook is how long it takes to see a request that has arrived already.
const lastLook = 5 * time.Millisecond

// windUp ends the connection where that costs the client nothing: between two requests. One that is
// unread, because it speaks something else, or because the app has said that it will close, is
// reset after a while like those whose response takes too long.
func (c *Conn) windUp() {
	time.AfterFunc(windUpFor, c.abort)
	c.mu.Lock()
	defer c.mu.Unlock()
	for !c.aborted && !c.closing && !c.raw.Load() {
		switch {
		case c.http2 != nil:
			h := c.http2
			c.mu.Unlock()
			h.WindUp()
			c.mu.Lock()
			return
		case c.idle() && c.ex.over() && !c.leaving:
			c.leaving = true
			c.Client.SetReadDeadline(time.Now().Add(lastLook)) // wakes whoever reads it
		}
		c.changed.Wait()
	}
}

// over reports whether nothing more is to be sent of a request. mu is held.
func (ex *exchange) over() bool { return ex == nil || !ex.peer.open }

// leave ends the connection in order if that is wanted and the client has begun no request. It is
// called by the goroutine that reads requests, once it was woken.
func (c *Conn) leave() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if !c.leaving || c.aborted || c.closing {
		return false
	}
	c.leaving = false
	if c.in.Len() > 0 || !c.idle() || c.app != nil && c.app.open {
		return false
	}
	if c, ok := c.Client.(waiter); ok && c.Waiting() {
		return false
	}
	c.conclude()
	return true
}

// waiter is a stream that can tell whether there is something to read.
type waiter interface{ Waiting() bool }
