// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"golang.org/x/net/http2"

	"sidestep.dev/sidestep/nodeagent/proxy/router"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// scan looks at what b has, and passes it as it is, up to the first claimed request. more says that
// it needs more. acquire was called.
func (s *Session) scan(f *flow, b *stream.Buffer) (more bool, err error) {
	p, n := b.Bytes(), 0
	var claim router.Claim
	var u unit
	for n < len(p) && claim == nil {
		if f.data.left > 0 {
			k := min(f.data.left, len(p)-n)
			if f == s.up {
				s.copied.frameGoesOn(p[n : n+k])
			}
			f.data.left -= k
			n += k
			continue
		}
		if u, err = parse(p[n:], &f.scratch); err != nil || u.all == nil {
			break
		}
		if u.kind == http2.FrameData {
			f.begin(&u)
			f.data.asIs = true
			f.window -= int64(u.length)
			if f == s.up {
				s.copied.frameBegins(&u)
			}
		} else if claim, err = s.see(f, &u); err != nil || claim != nil {
			break
		}
		n += len(u.all)
	}
	if claim != nil {
		s.divert(claim, &u)
		s.mixed, s.appSpoke = true, true
	}
	if n > 0 {
		s.greeted = s.greeted || f == s.down
		f.to.forward(p[:n], f.data.left > 0)
	}
	if claim != nil {
		n += len(u.all)
	}
	b.Drop(n)
	return err == nil && claim == nil, err
}

// greet passes the app's first frame as it is, before all that waits for it.
func (s *Session) greet(b *stream.Buffer) (more bool, err error) {
	u, err := parse(b.Bytes(), &s.down.scratch)
	if err != nil || u.all == nil {
		return true, err
	}
	if u.kind != http2.FrameSettings {
		return false, doubtStream
	}
	if _, err := s.see(s.down, &u); err != nil {
		return false, err
	}
	s.greeted = true
	s.toCli.acquire()
	s.toCli.forward(u.all, false)
	b.Drop(len(u.all))
	return false, nil
}

// see takes note of a frame that passes as it is, unless it is a request that is claimed.
func (s *Session) see(f *flow, u *unit) (claim router.Claim, err error) {
	other := s.down
	if f == s.down {
		other = s.up
	}
	switch u.kind {
	case http2.FrameHeaders:
		if err = f.decode(u.block); err == nil && f == s.up {
			claim = s.request(u)
		}
	case http2.FramePushPromise:
		if f == s.up {
			return nil, doubtPush
		}
		err = f.decode(u.block)
	case http2.FrameSettings:
		switch {
		case u.ack():
			f.acknowledged()
		case f == s.up:
			err = s.clientSettings(u.payload)
		default:
			err = s.up.announce(u.payload)
		}
	case http2.FrameWindowUpdate:
		if u.id == 0 {
			other.grow(u.increment())
		}
	case http2.FrameRSTStream:
		s.copied.cut(s.clientID(f, u.id))
	case http2.FrameGoAway:
		s.goneAt = s.goneAt || f == s.down && u.last() < maxID
	}
	return claim, err
}

// request decides about a HEADERS frame of the client's, and takes note of it as a request if it is
// one.
func (s *Session) request(u *unit) router.Claim {
	if u.id <= s.ids.client || u.id%2 == 0 {
		s.copied.trailers(u.id, s.up.fields)
		return nil // trailers, or an error for the app to find
	}
	s.ids.began(u.id)
	if !s.goneAt && !s.up.tooLarge() && s.head.parse(s.up.fields) {
		if claim := s.Claim(&s.head); claim != nil {
			return claim
		}
		s.copyRequest(u)
	}
	if !s.mixed {
		s.ids.assign(u.id)
	}
	s.passed++
	return nil
}

// clientID is the client's number of a stream.
func (s *Session) clientID(f *flow, id uint32) uint32 {
	if f == s.down {
		return s.ids.clientID(id)
	}
	return id
}
