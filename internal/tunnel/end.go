// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"time"

	"google.golang.org/grpc/mem"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// How long the end of a connection may take before its stream is cancelled, which the peer sees as
// a reset without a reason.
const (
	// writePatience is how long a Write that the peer holds back may go on after Close or Reset.
	writePatience = 100 * time.Millisecond
	// resetPatience is how long the server has to end a stream after RESET.
	resetPatience = time.Second
	// closePatience is how long the peer's FIN may follow a Close, as in TCP's FIN-WAIT-2.
	closePatience = 2 * time.Minute
)

// Reset ends both directions at once, here and at the peer. What is on its way may be lost.
func (c *Conn) Reset(reason string) {
	c.fail(reason)
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.reset {
		return
	}
	c.reset = true
	c.shutReading()
	// By now the reader and later writers know. The rest may wait for gRPC.
	go c.sendReset(reason)
}

// shutReading needs the lock mu.
func (c *Conn) shutReading() {
	select {
	case <-c.shut:
	default:
		close(c.shut)
	}
}

func (c *Conn) sendReset(reason string) {
	defer c.dropInput()
	stop := time.AfterFunc(writePatience, c.cancel)
	c.writing.Lock()
	stop.Stop()
	if c.finSent.Load() && c.finReceived.Load() {
		// All has been said, and the peer may still be taking it in.
		c.writing.Unlock()
		return
	}
	// Cancelling at once could overtake the frame, and what was written before it.
	stop = time.AfterFunc(resetPatience, c.cancel)
	defer stop.Stop()
	_ = c.stream.SendMsg(&Frame{Kind: tunnelpb.Frame_RESET, Data: mem.BufferSlice{mem.SliceBuffer(reason)}})
	if s, ok := c.stream.(interface{ CloseSend() error }); ok {
		_ = s.CloseSend()
	}
	c.writing.Unlock()
	<-c.ended
}

// Close ends the tunnel as close(2) does a connection: FIN if none was sent, behind all that was
// written; nobody reads any more, and data that was not read or still comes resets it. It does not
// wait.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.closed {
		return nil
	}
	c.closed = true
	c.shutReading()
	if c.err == nil {
		go c.sendFin()
		go c.awaitEnd()
	}
	return nil
}

func (c *Conn) sendFin() {
	stop := time.AfterFunc(writePatience, func() { c.Reset("closed while a write was held back") })
	c.writing.Lock()
	defer c.writing.Unlock()
	stop.Stop()
	select {
	case <-c.broken: // and after a RESET nothing may be sent
		return
	default:
	}
	if !c.finSent.Load() {
		_ = c.finish() // however long the peer holds it back: it is alive, or the transport breaks
	}
}

// awaitEnd lets the stream of a closed connection end by itself.
func (c *Conn) awaitEnd() {
	if c.dropInput() {
		c.Reset("closed with unread data")
	}
	timer := time.NewTimer(c.closePatience)
	defer timer.Stop()
	select {
	case <-c.ended:
	case <-timer.C:
		if !c.finReceived.Load() {
			c.Reset("closed, and the other side did not close")
		}
	}
}

// dropInput gives back what nobody will read, and reports whether there was any.
func (c *Conn) dropInput() bool {
	c.reading.Lock()
	defer c.reading.Unlock()
	unread := len(c.current) > 0
	c.current.Free()
	c.current = nil
	return c.dropFrame() || unread
}
