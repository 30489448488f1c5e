// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"slices"

	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// copied are the streams that go to the app and of which wiretaps get copies.
type wiretapped struct {
	streams map[uint32]tap.Copies // by the client's numbers
	frame   flow                  // of the DATA frame that passes as it is, nothing but where it is in it
	passing tap.Copies            // who gets a copy of that frame
}

// begin begins the copies of a request with these fields.
func (c *wiretapped) begin(id uint32, copies tap.Copies, end bool) {
	switch {
	case copies == nil:
	case end:
		copies.End()
	default:
		if c.streams == nil {
			c.streams = make(map[uint32]tap.Copies)
		}
		c.streams[id] = copies
	}
}

// data adds a piece of a stream's body.
func (c *wiretapped) data(id uint32, p []byte, end bool) {
	copies := c.streams[id]
	if copies == nil {
		return
	}
	copies.Write(p)
	if end {
		copies.End()
		delete(c.streams, id)
	}
}

// trailers ends a stream.
func (c *wiretapped) trailers(id uint32, fields []hpack.HeaderField) {
	if copies := c.streams[id]; copies != nil {
		copies.Trailers(fields)
		delete(c.streams, id)
	}
}

// cut is for a stream that was reset.
func (c *wiretapped) cut(id uint32) {
	if copies := c.streams[id]; copies != nil {
		copies.Cut()
		delete(c.streams, id)
	}
}

// cutAll is for the end of the connection, or of understanding it.
func (c *wiretapped) cutAll() {
	for id := range c.streams {
		c.cut(id)
	}
	c.passing = nil
}

// frameBegins is for a DATA frame that passes as it is.
func (c *wiretapped) frameBegins(fr *frame) {
	if len(c.streams) == 0 {
		return
	}
	c.frame.begin(fr)
	c.passing = c.streams[fr.id]
	if fr.length == 0 && c.passing != nil {
		c.data(fr.id, nil, c.frame.data.end)
		c.passing = nil
	}
}

// frameGoesOn is for bytes of that frame.
func (c *wiretapped) frameGoesOn(p []byte) {
	for c.passing != nil && len(p) > 0 {
		chunk, n, _, last, err := c.frame.next(p)
		if err != nil {
			c.cut(c.frame.data.id)
			c.passing = nil
			return
		}
		p = p[n:]
		c.data(c.frame.data.id, chunk, last && c.frame.data.end)
		if last {
			c.passing = nil
		}
	}
}

// copyRequest begins the copies of the request that was decoded last.
func (c *Conn) copyRequest(fr *frame) {
	c.copied.begin(fr.id, c.Target.Copy(&c.head,
		func() []hpack.HeaderField { return slices.Clone(c.up.fields) }), fr.end())
}

// copyAgain begins the copies of a request that goes to the app after all.
func (st *divertedStream) copyAgain() {
	c := st.c
	h := head{buf: c.head.buf}
	fields := st.fields.fields()
	if !h.parse(fields) {
		return
	}
	copies := c.Target.Copy(&h, func() []hpack.HeaderField { return fields })
	copies.Write(st.up)
	if st.upTail != nil {
		copies.Trailers(st.upTail.fields())
	}
	c.copied.begin(st.id, copies, st.upEnd)
}
