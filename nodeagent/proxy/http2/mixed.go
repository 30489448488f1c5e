// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"

	"golang.org/x/net/http2"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// sort takes what b has of a mixed connection frame by frame. more says that it needs more.
func (s *Session) sort(f *flow, b *stream.Buffer) (more bool, err error) {
	p, n := b.Bytes(), 0
	defer func() { b.Drop(n) }()
	for n < len(p) && !s.closing {
		if f.data.left > 0 {
			if f.data.asIs {
				return false, nil
			}
			chunk, k, padding, last, err := f.next(p[n:])
			if err != nil {
				return false, err
			}
			n += k
			s.data(f, chunk, padding, last)
			continue
		}
		u, err := parse(p[n:], &f.scratch)
		if err != nil {
			return false, err
		}
		if u.all == nil {
			return true, nil
		}
		if u.kind == http2.FrameData {
			f.begin(&u)
			if u.length == 0 {
				if f.data.pads {
					return false, doubtPadding
				}
				s.data(f, nil, 0, true)
			}
		} else if f == s.up {
			err = s.fromClient(&u)
		} else {
			err = s.fromApp(&u)
		}
		if err != nil {
			return false, err
		}
		n += len(u.all)
	}
	return true, nil
}

// data takes a piece of a DATA frame.
func (s *Session) data(f *flow, chunk []byte, padding int, last bool) {
	d := &f.data
	end := d.end && last
	id := d.id
	if f == s.up {
		if st := s.streams[id]; st != nil {
			st.upload(chunk, padding, end)
			return
		}
		if s.past.has(id) {
			s.credit += int64(len(chunk) + padding)
			return
		}
		s.copied.data(id, chunk, end)
		id = s.ids.appID(id)
	} else {
		id = s.ids.clientID(id)
		s.appSpoke = true
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
func asItIs(o *outlet, u *unit, id uint32) {
	start := len(o.pending)
	o.pending = append(o.pending, u.all...)
	for p := o.pending[start:]; len(p) >= headerLength; p = p[headerLength+parseHeader(p).length:] {
		binary.BigEndian.PutUint32(p[5:], id)
	}
}

// fromClient takes any frame of the client's but DATA.
func (s *Session) fromClient(u *unit) error {
	switch u.kind {
	case http2.FrameHeaders:
		return s.clientHeaders(u)
	case http2.FramePushPromise:
		return doubtPush
	case http2.FrameSettings:
		if !u.ack() {
			if err := s.clientSettings(u.payload); err != nil {
				return err
			}
		} else if delta := s.up.acknowledged(); delta != 0 {
			for _, st := range s.streams {
				st.grant += delta
				st.feed()
			}
		}
		asItIs(s.toApp, u, 0)
		return nil
	case http2.FrameWindowUpdate:
		if u.id == 0 {
			s.share(s.down, u)
			s.pour()
			return nil
		}
	case http2.FramePing:
		if !u.ack() && s.answersPing() {
			s.toCli.pending = appendPong(s.toCli.pending, u.payload)
			return nil
		}
	}
	if st := s.streams[u.id]; st != nil && u.id != 0 {
		switch u.kind {
		case http2.FrameWindowUpdate:
			st.room += u.increment()
			st.granted += u.increment()
			st.pour()
		case http2.FrameRSTStream:
			st.cancel(u.code())
		}
		return nil
	}
	if s.past.has(u.id) {
		return nil
	}
	id := s.ids.appID(u.id)
	switch u.kind {
	case http2.FrameRSTStream:
		s.copied.cut(u.id)
		s.up.drop(id)
	case http2.FramePriority:
		s.priority(u, id)
		return nil
	}
	asItIs(s.toApp, u, id)
	return nil
}

// answersPing reports whether a PING of the client's is not for the app. Clients of gRPC send one
// for data that they get, to measure how fast they get it; to an app that has sent nothing since
// the last one, or has no stream open, that would be an abuse, which gRPC's servers punish by
// GOAWAY. In all other cases the app answers, so that a client finds out that it hangs.
func (s *Session) answersPing() bool {
	if !s.appSpoke && (s.lapSpoke || len(s.streams) > 0) {
		s.lapSpoke = false
		return true
	}
	s.appSpoke, s.lapSpoke = false, false
	return false
}

// priority forwards PRIORITY, which names a second stream.
func (s *Session) priority(u *unit, id uint32) {
	asItIs(s.toApp, u, id)
	s.translate(s.toApp.pending[len(s.toApp.pending)-u.length:])
}

// translate puts the app's number of a stream in place of the client's into what says what a stream
// depends on.
func (s *Session) translate(p []byte) {
	on := binary.BigEndian.Uint32(p)
	binary.BigEndian.PutUint32(p, on&^maxID|s.ids.appID(on&maxID))
}

// share grants the sender of f what its receiver has granted, as far as it is for the sender.
func (s *Session) share(f *flow, u *unit) {
	n := u.increment()
	if n == 0 {
		asItIs(f.back, u, 0) // an error, for the sender to find
		return
	}
	if n = f.grow(n); n > 0 {
		f.back.pending = appendWindowUpdate(f.back.pending, 0, n)
	}
}

// clientSettings takes note of the client's SETTINGS.
func (s *Session) clientSettings(payload []byte) error {
	settings(payload, func(id http2.SettingID, value uint32) {
		if id != http2.SettingInitialWindowSize || value > maxID {
			return
		}
		delta := int64(value) - s.window0
		s.window0 = int64(value)
		for _, st := range s.streams {
			st.room += delta
			st.pour()
		}
	})
	return s.down.announce(payload)
}

func (s *Session) clientHeaders(u *unit) error {
	if err := s.up.decode(u.block); err != nil {
		return err
	}
	if st := s.streams[u.id]; st != nil {
		st.trailers(s.up.fields)
		return nil
	}
	if s.past.has(u.id) {
		return nil
	}
	begins := u.id > s.ids.client && u.id%2 == 1
	if claim := s.request(u); claim != nil {
		s.divert(claim, u)
		return nil
	}
	id, ok := s.ids.appID(u.id), true
	switch {
	case s.up.tooLarge():
		s.refuse(u.id, http2.ErrCodeEnhanceYourCalm)
		if !begins {
			s.toApp.pending = appendReset(s.toApp.pending, id, http2.ErrCodeCancel)
		}
		return nil
	case !begins:
		s.up.after(id, s.up.fields, u.end())
		return nil
	}
	if id, ok = s.ids.assign(u.id); !ok {
		s.refuse(u.id, http2.ErrCodeRefusedStream)
		return nil
	}
	if len(u.priority) > 0 {
		s.translate(u.priority)
	}
	s.up.sendBlock(id, 0, u.priority, s.up.fields, u.end())
	return nil
}

// refuse resets a stream that neither the app nor a laptop knows of.
func (s *Session) refuse(id uint32, code http2.ErrCode) {
	s.toCli.pending = appendReset(s.toCli.pending, id, code)
	s.past.add(id)
	s.copied.cut(id)
}

// fromApp takes any frame of the app's but DATA.
func (s *Session) fromApp(u *unit) error {
	id := s.ids.clientID(u.id)
	switch u.kind {
	case http2.FrameHeaders, http2.FramePushPromise:
		if err := s.down.decode(u.block); err != nil {
			return err
		}
		s.appSpoke = true
		switch {
		case s.down.encoder == nil:
			asItIs(s.toCli, u, id)
		case s.down.tooLarge():
			s.toCli.pending = appendReset(s.toCli.pending, id, http2.ErrCodeInternal)
			s.toApp.pending = appendReset(s.toApp.pending, u.id, http2.ErrCodeCancel)
		case u.promised != 0:
			s.down.sendBlock(id, u.promised, nil, s.down.fields, false)
		default:
			s.down.after(id, s.down.fields, u.end())
		}
		return nil
	case http2.FrameSettings:
		if u.ack() {
			s.down.acknowledged()
		} else if err := s.up.announce(u.payload); err != nil {
			return err
		}
	case http2.FrameWindowUpdate:
		if u.id == 0 {
			s.share(s.up, u)
			return nil
		}
	case http2.FrameRSTStream:
		s.copied.cut(id)
		s.down.drop(id)
	case http2.FrameGoAway:
		s.appGoesAway(u)
		return nil
	}
	asItIs(s.toCli, u, id)
	return nil
}

// appGoesAway forwards the app's GOAWAY, which must not make the client give up the streams that
// laptops have: the last stream becomes the last of these, and the streams up to it that the app
// will not serve are refused one by one.
func (s *Session) appGoesAway(u *unit) {
	last, start := u.last(), len(s.toCli.pending)
	asItIs(s.toCli, u, 0)
	if last == maxID {
		return // a notice; the true one follows
	}
	s.goneAt = true
	served := s.ids.clientID(last)
	if last%2 == 0 { // none of the client's, or a pushed one
		served = last
	}
	most := served
	for id := range s.streams {
		most = max(most, id)
	}
	for id, app := range s.ids.toApp {
		if app <= last {
			most = max(most, id)
		}
	}
	binary.BigEndian.PutUint32(s.toCli.pending[start+headerLength:], most)
	for id := served&^1 + 1; id <= most; id += 2 {
		if s.streams[id] == nil && !s.past.has(id) && s.ids.appID(id) > last {
			s.toCli.pending = appendReset(s.toCli.pending, id, http2.ErrCodeRefusedStream)
		}
	}
}

// past are streams that ended with a laptop, or were refused: what the client still sends on them
// is not for the app. A client does so for no longer than it takes to hear of the end.
type past struct {
	ids  map[uint32]struct{}
	ring [1024]uint32
	next int
}

func (p *past) has(id uint32) bool {
	_, ok := p.ids[id]
	return ok && id != 0
}

func (p *past) add(id uint32) {
	if p.ids == nil {
		p.ids = make(map[uint32]struct{})
	}
	delete(p.ids, p.ring[p.next])
	p.ring[p.next] = id
	p.next = (p.next + 1) % len(p.ring)
	p.ids[id] = struct{}{}
}
