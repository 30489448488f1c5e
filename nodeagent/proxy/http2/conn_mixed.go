// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"
	"time"

	"golang.org/x/net/http2"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// forwardFrames takes what b has of a mixed connection frame by frame. more says that it needs more.
func (c *Conn) forwardFrames(f *flow, b *stream.Buffer) (more bool, err error) {
	p, n := b.Bytes(), 0
	defer func() { b.Drop(n) }()
	for n < len(p) && !c.closing {
		if f.data.left > 0 {
			if f.data.asIs {
				return false, nil
			}
			chunk, k, padding, last, err := f.next(p[n:])
			if err != nil {
				return false, err
			}
			n += k
			before := len(f.back.pending)
			c.data(f, chunk, padding, last)
			f.back.echo += len(f.back.pending) - before
			continue
		}
		fr, err := f.parse(p[n:])
		if err != nil {
			return false, err
		}
		if fr.all == nil {
			return true, nil
		}
		before := len(f.back.pending)
		if fr.kind == http2.FrameData {
			f.begin(&fr)
			if fr.length == 0 {
				if f.data.pads {
					return false, doubtPadding
				}
				c.data(f, nil, 0, true)
			}
		} else if f == c.up {
			err = c.fromClient(&fr)
		} else {
			err = c.fromApp(&fr)
		}
		if fr.kind != http2.FrameWindowUpdate { // which may let go of data
			f.back.echo += len(f.back.pending) - before
		}
		if err != nil {
			return false, err
		}
		n += len(fr.all)
	}
	return true, nil
}

// data takes a piece of a DATA frame.
func (c *Conn) data(f *flow, chunk []byte, padding int, last bool) {
	d := &f.data
	end := d.end && last
	id := d.id
	if f == c.up {
		if st := c.streams[id]; st != nil {
			st.upload(chunk, padding, end)
			return
		}
		if c.past.has(id) {
			c.credit += int64(len(chunk) + padding)
			return
		}
		c.copied.data(id, chunk, end)
		id = c.ids.appID(id)
	} else {
		id = c.ids.clientID(id)
		c.appSpoke = true
	}
	if len(chunk) > 0 || end || last && !d.begun {
		f.pass(id, chunk, end)
		d.begun = true
	}
	if padding > 0 { // which is not passed on
		f.back.pending = appendWindowUpdate(f.back.pending, 0, int64(padding))
		if !end {
			f.back.pending = appendWindowUpdate(f.back.pending, d.id, int64(padding))
		}
	}
}

// asItIs adds a frame as it is but for the stream's number.
func asItIs(w *writer, fr *frame, id uint32) {
	start := len(w.pending)
	w.pending = append(w.pending, fr.all...)
	for p := w.pending[start:]; len(p) >= headerLength; p = p[headerLength+parseHeader(p).length:] {
		binary.BigEndian.PutUint32(p[5:], id)
	}
}

// fromClient takes any frame of the client's but DATA.
//
// Long: it is one case for each type of frame.
func (c *Conn) fromClient(fr *frame) error {
	switch fr.kind {
	case http2.FrameHeaders:
		return c.clientHeaders(fr)
	case http2.FramePushPromise:
		return doubtPush
	case http2.FrameSettings:
		if !fr.ack() {
			if err := c.clientSettings(fr.payload); err != nil {
				return err
			}
		} else if delta := c.up.acknowledged(); delta != 0 {
			for _, st := range c.streams {
				st.grant += delta
				st.feed()
			}
		}
		asItIs(c.toApp, fr, 0)
		clampTable(c.toApp.pending[len(c.toApp.pending)-fr.length:])
		return nil
	case http2.FrameWindowUpdate:
		if fr.id == 0 {
			c.share(c.down, fr)
			c.pour()
			return nil
		}
	case http2.FramePing:
		if !fr.ack() && c.answersPing() {
			c.toCli.pending = appendPong(c.toCli.pending, fr.payload)
			return nil
		}
	}
	if st := c.streams[fr.id]; st != nil && fr.id != 0 {
		switch fr.kind {
		case http2.FrameWindowUpdate:
			st.room += fr.increment()
			st.granted += fr.increment()
			st.pour()
		case http2.FrameRSTStream:
			if !st.answered && !c.resets.take(time.Now()) {
				return doubtResets
			}
			st.cancel(fr.code())
		}
		return nil
	}
	if c.past.has(fr.id) {
		return nil
	}
	id := c.ids.appID(fr.id)
	switch fr.kind {
	case http2.FrameRSTStream:
		c.copied.cut(fr.id)
		c.up.drop(id)
	case http2.FramePriority:
		c.priority(fr, id)
		return nil
	}
	asItIs(c.toApp, fr, id)
	return nil
}

// answersPing reports whether a PING of the client's is not for the app. Clients of gRPC send one
// for data that they get, to measure how fast they get it; to an app that has sent nothing since
// the last one, or has no stream open, that would be an abuse, which gRPC's servers punish by
// GOAWAY. In all other cases the app answers, so that a client finds out that it hangs.
func (c *Conn) answersPing() bool {
	if !c.appSpoke && (c.lapSpoke || len(c.streams) > 0) {
		c.lapSpoke = false
		return true
	}
	c.appSpoke, c.lapSpoke = false, false
	return false
}

// priority forwards PRIORITY, which names a second stream.
func (c *Conn) priority(fr *frame, id uint32) {
	asItIs(c.toApp, fr, id)
	c.translate(c.toApp.pending[len(c.toApp.pending)-fr.length:])
}

// translate puts the app's number of a stream in place of the client's into what says what a stream
// depends on.
func (c *Conn) translate(p []byte) {
	on := binary.BigEndian.Uint32(p)
	binary.BigEndian.PutUint32(p, on&^maxID|c.ids.appID(on&maxID))
}

// share grants the sender of f what its receiver has granted, as far as it is for the sender.
func (c *Conn) share(f *flow, fr *frame) {
	n := fr.increment()
	if n == 0 {
		asItIs(f.back, fr, 0) // an error, for the sender to find
		return
	}
	if n = f.grow(n); n > 0 {
		f.back.pending = appendWindowUpdate(f.back.pending, 0, n)
	}
}

// clientSettings takes note of the client's SETTINGS.
func (c *Conn) clientSettings(payload []byte) error {
	settings(payload, func(id http2.SettingID, value uint32) {
		if id != http2.SettingInitialWindowSize || value > maxID {
			return
		}
		delta := int64(value) - c.window0
		c.window0 = int64(value)
		for _, st := range c.streams {
			st.room += delta
			st.pour()
		}
	})
	return c.down.announce(payload)
}

func (c *Conn) clientHeaders(fr *frame) error {
	if err := c.up.decode(fr.block); err != nil {
		return err
	}
	if st := c.streams[fr.id]; st != nil {
		st.trailers(c.up.fields)
		return nil
	}
	if c.past.has(fr.id) {
		return nil
	}
	begins := fr.id > c.ids.client && fr.id%2 == 1
	intercept := c.request(fr)
	switch {
	case intercept == nil:
	case len(c.streams) >= maxDiverted:
		c.account.Budget.Met(budget.Streams)
		c.refuse(fr.id, http2.ErrCodeRefusedStream)
		return nil
	default:
		c.divert(intercept, fr)
		return nil
	}
	id, ok := c.ids.appID(fr.id), true
	switch {
	case c.up.tooLarge():
		c.account.Budget.Met(budget.Fields)
		c.refuse(fr.id, http2.ErrCodeEnhanceYourCalm)
		if !begins {
			c.toApp.pending = appendReset(c.toApp.pending, id, http2.ErrCodeCancel)
		}
		return nil
	case !begins:
		c.up.after(id, c.up.fields, fr.end())
		return nil
	}
	if id, ok = c.ids.assign(fr.id); !ok {
		c.refuse(fr.id, http2.ErrCodeRefusedStream)
		return nil
	}
	if len(fr.priority) > 0 {
		c.translate(fr.priority)
	}
	c.up.sendBlock(id, 0, fr.priority, c.up.fields, fr.end())
	return nil
}

// clampTable keeps a receiver from announcing a larger table than is decoded here.
func clampTable(payload []byte) {
	for ; len(payload) >= 6; payload = payload[6:] {
		if http2.SettingID(binary.BigEndian.Uint16(payload)) == http2.SettingHeaderTableSize {
			binary.BigEndian.PutUint32(payload[2:], min(binary.BigEndian.Uint32(payload[2:]), maxTable))
		}
	}
}

// refuse resets a stream that neither the app nor a laptop knows of.
func (c *Conn) refuse(id uint32, code http2.ErrCode) {
	c.toCli.pending = appendReset(c.toCli.pending, id, code)
	c.past.add(id)
	c.copied.cut(id)
}

// fromApp takes any frame of the app's but DATA.
func (c *Conn) fromApp(fr *frame) error {
	id := c.ids.clientID(fr.id)
	switch fr.kind {
	case http2.FrameHeaders, http2.FramePushPromise:
		if err := c.down.decode(fr.block); err != nil {
			return err
		}
		c.appSpoke = true
		switch {
		case c.down.encoder == nil:
			asItIs(c.toCli, fr, id)
		case c.down.tooLarge():
			c.toCli.pending = appendReset(c.toCli.pending, id, http2.ErrCodeInternal)
			c.toApp.pending = appendReset(c.toApp.pending, fr.id, http2.ErrCodeCancel)
		case fr.promised != 0:
			c.down.sendBlock(id, fr.promised, nil, c.down.fields, false)
		default:
			c.down.after(id, c.down.fields, fr.end())
		}
		return nil
	case http2.FrameSettings:
		if fr.ack() {
			c.down.acknowledged()
		} else if err := c.up.announce(fr.payload); err != nil {
			return err
		}
		asItIs(c.toCli, fr, 0)
		clampTable(c.toCli.pending[len(c.toCli.pending)-fr.length:])
		return nil
	case http2.FrameWindowUpdate:
		if fr.id == 0 {
			c.share(c.up, fr)
			return nil
		}
	case http2.FrameRSTStream:
		c.copied.cut(id)
		c.down.drop(id)
	case http2.FrameGoAway:
		c.appGoesAway(fr)
		return nil
	}
	asItIs(c.toCli, fr, id)
	return nil
}

// appGoesAway forwards the app's GOAWAY, which must not make the client give up the streams that
// laptops have: the last stream becomes the last of these, and the streams up to it that the app
// will not serve are refused one by one.
func (c *Conn) appGoesAway(fr *frame) {
	last, start := fr.last(), len(c.toCli.pending)
	asItIs(c.toCli, fr, 0)
	if last == maxID {
		return // a notice; the true one follows
	}
	c.goneAt = true
	served := c.ids.clientID(last)
	if last%2 == 0 { // none of the client's, or a pushed one
		served = last
	}
	most := served
	for id := range c.streams {
		most = max(most, id)
	}
	for id, app := range c.ids.toApp {
		if app <= last {
			most = max(most, id)
		}
	}
	binary.BigEndian.PutUint32(c.toCli.pending[start+headerLength:], most)
	for id := served&^1 + 1; id <= most; id += 2 {
		if c.streams[id] == nil && !c.past.has(id) && c.ids.appID(id) > last {
			c.toCli.pending = appendReset(c.toCli.pending, id, http2.ErrCodeRefusedStream)
		}
	}
}

// past are streams that ended with a laptop, or were refused: what the client still sends on them
// is not for the app. A client does so for no longer than it takes to hear of the end.
type closedStreams struct {
	ids  map[uint32]struct{}
	ring [1024]uint32
	next int
}

func (p *closedStreams) has(id uint32) bool {
	_, ok := p.ids[id]
	return ok && id != 0
}

func (p *closedStreams) add(id uint32) {
	if p.ids == nil {
		p.ids = make(map[uint32]struct{})
	}
	delete(p.ids, p.ring[p.next])
	p.ring[p.next] = id
	p.next = (p.next + 1) % len(p.ring)
	p.ids[id] = struct{}{}
}
