// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"golang.org/x/net/http2"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// passThrough looks at what b has, and passes it as it is, up to the first diverted request. more says that
// it needs more. acquire was called.
func (c *Conn) passThrough(f *flow, b *stream.Buffer) (more bool, err error) {
	p, n := b.Bytes(), 0
	var intercept divert.Intercept
	var fr frame
	for n < len(p) && intercept == nil {
		if f.data.left > 0 {
			k := min(f.data.left, len(p)-n)
			if f == c.up {
				c.copied.frameGoesOn(p[n : n+k])
			}
			f.data.left -= k
			n += k
			continue
		}
		if fr, err = f.parse(p[n:]); err != nil || fr.all == nil {
			break
		}
		if fr.kind == http2.FrameData {
			f.begin(&fr)
			f.data.asIs = true
			f.window -= int64(fr.length)
			if f == c.up {
				c.copied.frameBegins(&fr)
			}
		} else if intercept, err = c.observe(f, &fr); err != nil || intercept != nil {
			break
		}
		n += len(fr.all)
	}
	if intercept != nil {
		c.divert(intercept, &fr)
		c.mixed, c.appSpoke = true, true
	}
	sent := max(f.ahead, n)
	if f == c.down && err == nil {
		sent = len(p) // nothing has to be decided about what the app sends
	}
	c.greeted = c.greeted || f == c.down && n > 0
	if ahead := f.ahead; sent > ahead {
		f.ahead = sent - n
		f.to.forward(p[ahead:sent], f.data.left > 0 || f.ahead > 0)
	} else {
		f.ahead = sent - n
	}
	if intercept != nil {
		n += len(fr.all)
	}
	b.Drop(n)
	return err == nil && intercept == nil, err
}

// finishFrame passes a frame of the app's as it is: the first, before all that waits for it, or one
// of which the client has the beginning.
func (c *Conn) finishFrame(b *stream.Buffer) (more bool, err error) {
	f, p := c.down, b.Bytes()
	fr, err := f.parse(p)
	if err != nil {
		return true, err
	}
	f.to.acquire()
	if fr.all == nil {
		if ahead := f.ahead; len(p) > ahead {
			f.ahead = len(p)
			f.to.forward(p[ahead:], true)
		}
		return true, nil
	}
	if fr.kind == http2.FrameData {
		f.begin(&fr)
		f.data.asIs, c.appSpoke = true, true
		f.window -= int64(fr.length)
	} else if _, err := c.observe(f, &fr); err != nil {
		return false, err
	}
	c.greeted = true
	ahead := f.ahead
	f.ahead = 0
	f.to.forward(fr.all[min(ahead, len(fr.all)):], f.data.left > 0)
	b.Drop(len(fr.all))
	return false, nil
}

// observe takes note of a frame that passes as it is, unless it is a request that is diverted.
func (c *Conn) observe(f *flow, fr *frame) (intercept divert.Intercept, err error) {
	other := c.down
	if f == c.down {
		other = c.up
	}
	switch fr.kind {
	case http2.FrameHeaders:
		if err = f.decode(fr.block); err == nil && f == c.up {
			intercept = c.request(fr)
		}
	case http2.FramePushPromise:
		if f == c.up {
			return nil, doubtPush
		}
		err = f.decode(fr.block)
	case http2.FrameSettings:
		switch {
		case fr.ack():
			f.acknowledged()
		case f == c.up:
			err = c.clientSettings(fr.payload)
		default:
			err = c.up.announce(fr.payload)
		}
	case http2.FrameWindowUpdate:
		if fr.id == 0 {
			other.grow(fr.increment())
		}
	case http2.FrameRSTStream:
		c.copied.cut(c.clientID(f, fr.id))
	case http2.FrameGoAway:
		c.goneAt = c.goneAt || f == c.down && fr.last() < maxID
	}
	return intercept, err
}

// request decides about a HEADERS frame of the client's, and takes note of it as a request if it is
// one.
func (c *Conn) request(fr *frame) divert.Intercept {
	if fr.id <= c.ids.client || fr.id%2 == 0 {
		c.copied.trailers(fr.id, c.up.fields)
		return nil // trailers, or an error for the app to find
	}
	c.ids.began(fr.id)
	if !c.goneAt && c.up.keepable() && c.head.parse(c.up.fields) {
		intercept := c.Target.Match(&c.head)
		if intercept != nil && c.account.Room(c.up.size+streamCost) {
			return intercept
		}
		if intercept != nil {
			c.account.Budget.Met(budget.Memory)
			intercept.FellBack(errBusy)
		}
		c.copyRequest(fr)
	}
	if !c.mixed {
		c.ids.assign(fr.id)
	}
	c.passed++
	return nil
}

// clientID is the client's number of a stream.
func (c *Conn) clientID(f *flow, id uint32) uint32 {
	if f == c.down {
		return c.ids.clientID(id)
	}
	return id
}
