// SPDX-License-Identifier: Apache-2.0

package router

import "time"

// windUpFor bounds how long a connection takes to end in order. What has not by then is reset.
const windUpFor = 2 * time.Second

// lastLook is how long it takes to see a request that has arrived already.
const lastLook = 5 * time.Millisecond

// windUp ends the connection where that costs the client nothing: between two requests. One that is
// unread, because it speaks something else, or because the app has said that it will close, is
// reset after a while like those whose response takes too long.
func (r *Router) windUp() {
	time.AfterFunc(windUpFor, r.abort)
	r.mu.Lock()
	defer r.mu.Unlock()
	for !r.aborted && !r.closing && !r.raw.Load() {
		switch {
		case r.http2 != nil:
			h := r.http2
			r.mu.Unlock()
			h.WindUp()
			r.mu.Lock()
			return
		case r.idle() && r.ex.over() && !r.leaving:
			r.leaving = true
			r.Client.SetReadDeadline(time.Now().Add(lastLook)) // wakes whoever reads it
		}
		r.changed.Wait()
	}
}

// over reports whether nothing more is to be sent of a request. mu is held.
func (ex *exchange) over() bool { return ex == nil || !ex.peer.open }

// leave ends the connection in order if that is wanted and the client has begun no request. It is
// called by the goroutine that reads requests, once it was woken.
func (r *Router) leave() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if !r.leaving || r.aborted || r.closing {
		return false
	}
	r.leaving = false
	if r.in.Len() > 0 || !r.idle() || r.app != nil && r.app.open {
		return false
	}
	if c, ok := r.Client.(waiter); ok && c.Waiting() {
		return false
	}
	r.conclude()
	return true
}

// waiter is a stream that can tell whether there is something to read.
type waiter interface{ Waiting() bool }
