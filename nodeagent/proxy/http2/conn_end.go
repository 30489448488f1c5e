// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"slices"
	"time"

	"golang.org/x/net/http2"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// WindUp asks the client to begin no more streams, and ends the connection after a while. A GOAWAY
// that names no last stream leaves what the client has begun meanwhile to be served (RFC 9113
// §6.8); the true one follows at the end. Clients close by themselves once their streams have
// ended.
func (c *Conn) WindUp() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.raw || c.closing || c.aborted || c.over || c.winding {
		return
	}
	c.winding = true
	c.toCli.pending = appendGoAway(c.toCli.pending, maxID, http2.ErrCodeNo, nil)
	c.toCli.kick(c.spawn)
	time.AfterFunc(noticeFor, func() {
		c.mu.Lock()
		defer c.mu.Unlock()
		if !c.raw && !c.closing && !c.aborted && !c.over {
			c.end(http2.ErrCodeNo, "")
		}
	})
}

// undivert makes a mixed connection one that is not: the app has answered, and does not speak
// HTTP/2. The client, which has been sent nothing yet, gets what the app says.
func (c *Conn) undivert(why error) {
	c.mixed = false
	c.toCli.pending, c.toCli.mid = nil, false
	for _, st := range c.streams {
		st.intercept.FellBack(why)
	}
	c.streams, c.buffered, c.kept, c.answers = nil, 0, 0, 0
	c.raw = true // for failLocked
	for _, l := range slices.Clone(c.laptops) {
		l.failLocked(why)
	}
	c.raw = false
	c.toApp.kick(c.spawn)
}

// end ends a mixed connection by GOAWAY.
func (c *Conn) end(code http2.ErrCode, why string) {
	c.toCli.pending = appendGoAway(c.toCli.pending, c.ids.client, code, []byte(why))
	c.closing = true
	c.toCli.kick(c.spawn)
	c.toApp.pending = appendGoAway(c.toApp.pending, 0, http2.ErrCodeNo, nil)
	c.toApp.kick(c.spawn)
	c.wake()
	c.Client.SetReadDeadline(time.Unix(1, 0)) // for whoever reads it
	c.last = time.AfterFunc(2*drainFor, c.abort)
}

// farewell lets the client have what it was sent last.
func (c *Conn) farewell(b *stream.Buffer) {
	stop := time.AfterFunc(drainFor, c.abort)
	c.mu.Lock()
	c.toCli.drained(c.spawn)
	winding := c.winding
	c.mu.Unlock()
	stop.Stop()
	if winding {
		c.App.Close()
	} else {
		c.App.Reset()
	}
	c.Client.CloseWrite()
	c.Client.SetReadDeadline(time.Now().Add(drainFor))
	for {
		b.Free()
		if c.Client.Fill(b) != nil {
			return
		}
	}
}

// abort resets the client, the app and all laptops.
func (c *Conn) abort() {
	c.mu.Lock()
	c.aborted = true
	c.wake()
	c.mu.Unlock()
	c.cancel()
	c.Client.Reset()
	c.App.Reset()
	c.closeLaptops()
}
