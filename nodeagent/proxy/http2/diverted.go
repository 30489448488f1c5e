// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"slices"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/router"
)

const (
	// maxRetained bytes of a request are kept so that the app can have it after all.
	maxRetained = 64 << 10
	// maxBuffered bytes of all requests of a connection may wait for laptops. A request that brings
	// more is reset: the client's connection window belongs to the others, too.
	maxBuffered = 8 << 20
	// minGrant is the smallest initial window with which an upload starts at all.
	minGrant = 16 << 10
	// maxGrant is the most that a client is granted for one upload.
	maxGrant = 1 << 20
)

// diverted is a stream that goes to a laptop. Flow control is hop by hop: the client is granted
// more when the laptop has taken something, and the laptop when the client has.
type diverted struct {
	s          *Session
	id         uint32
	claim      router.Claim
	laptop     *laptop
	fields     []hpack.HeaderField // of the request, while it is kept
	method     string
	idempotent bool
	grpc       bool
	retried    bool
	sent       bool // the laptop was sent the head
	answered   bool // the laptop has answered something

	up       []byte // of the body
	taken    int    // of these, how much the laptop was sent
	keep     bool   // up is all of the body so far
	limit    int    // up to which it is kept
	upEnd    bool   // the client has ended it
	upTail   []hpack.HeaderField
	upDone   bool  // the laptop knows
	grant    int64 // what the client may still send
	window   int64 // what the laptop will still take
	granted  int64 // what the client has granted on this stream
	room     int64 // what the client will still take
	down     []piece
	downEnd  bool  // the laptop has ended the answer
	downDone bool  // the client knows
	reset    bool  // the laptop will not have the rest of the request
	owed     int64 // what the laptop is to be granted again
}

// piece is a part of an answer that waits for the client's windows: fields, or data.
type piece struct {
	fields []hpack.HeaderField
	data   []byte
	end    bool
}

// divert gives the request that was decoded last to a laptop.
func (s *Session) divert(claim router.Claim, u *unit) {
	s.up.encodeAnew()
	st := &diverted{
		s: s, id: u.id, claim: claim, fields: slices.Clone(s.up.fields),
		method: s.head.method, idempotent: s.head.idempotent(), grpc: s.head.isGRPC(),
		keep: true, upEnd: u.end(), grant: s.up.window0, room: s.window0,
	}
	st.limit = int(max(0, min(maxRetained, st.grant/2)))
	if s.streams == nil {
		s.streams = make(map[uint32]*diverted)
	}
	s.streams[st.id] = st
	st.place()
	if !st.upEnd && st.grant < minGrant {
		st.forget()
		st.feed()
	}
}

// place gives the stream to a laptop, over a tunnel that there is or a new one.
func (st *diverted) place() {
	for _, l := range st.s.laptops {
		if l.key == st.claim.Key() && !l.leaving && st.id > l.last {
			l.take(st)
			return
		}
	}
	st.s.newLaptop(st.claim).take(st)
}

// upload takes a piece of the body.
func (st *diverted) upload(p []byte, padding int, end bool) {
	s := st.s
	s.credit += int64(len(p) + padding)
	st.grant -= int64(len(p))
	if padding > 0 && !end {
		s.toCli.pending = appendWindowUpdate(s.toCli.pending, st.id, int64(padding))
	}
	if st.upEnd {
		return
	}
	st.up = append(st.up, p...)
	s.buffered += len(p)
	st.upEnd = end
	if st.keep && len(st.up) > st.limit {
		st.forget()
	}
	if s.buffered > maxBuffered {
		st.abandon(http2.ErrCodeEnhanceYourCalm)
		return
	}
	st.feed()
}

// trailers takes what ends the body.
func (st *diverted) trailers(fields []hpack.HeaderField) {
	if !st.upEnd {
		st.upTail, st.upEnd = slices.Clone(fields), true
		st.feed()
	}
}

// forget gives up the means to send the request again.
func (st *diverted) forget() {
	st.keep, st.granted = false, 0
	if st.sent {
		st.fields = nil
	}
}

// feed sends the laptop what it will take of the body.
func (st *diverted) feed() {
	if st.sent && !st.upDone {
		st.laptop.feed(st)
	}
	if st.keep {
		return
	}
	s := st.s
	if st.taken > 0 {
		s.buffered -= st.taken
		st.up = st.up[:copy(st.up, st.up[st.taken:])]
		st.taken = 0
		if len(st.up) == 0 {
			st.up = nil
		}
	}
	if most := max(defaultWindow, min(s.up.window0, maxGrant)); len(st.up) == 0 && !st.upEnd &&
		st.grant < most/2 {
		s.toCli.pending = appendWindowUpdate(s.toCli.pending, st.id, most-st.grant)
		st.grant = most
	}
}

// answer takes a part of the laptop's answer.
func (st *diverted) answer(p piece) {
	if !st.answered {
		st.answered = true
		st.forget()
		st.feed()
	}
	if st.downEnd {
		return
	}
	st.downEnd = p.end
	if last := len(st.down) - 1; p.fields == nil && last >= 0 && st.down[last].fields == nil {
		st.down[last].data, st.down[last].end = append(st.down[last].data, p.data...), p.end
	} else {
		st.down = append(st.down, p)
	}
	st.pour()
}

// pour sends the client what it will take of the answer.
func (st *diverted) pour() {
	s, f := st.s, st.s.down
	s.lapSpoke = s.lapSpoke || len(st.down) > 0
	for len(st.down) > 0 {
		p := &st.down[0]
		if p.fields != nil {
			f.sendBlock(st.id, 0, nil, p.fields, p.end)
		} else {
			n := max(0, min(int64(len(p.data)), st.room, f.lend(), frameSize))
			if n == 0 && len(p.data) > 0 {
				return
			}
			whole := n == int64(len(p.data))
			s.toCli.pending = appendData(s.toCli.pending, st.id, p.data[:n], p.end && whole)
			f.lent(n)
			st.room -= n
			st.laptop.repay(st, n)
			if p.data = p.data[n:]; !whole {
				continue
			}
		}
		st.downDone = st.downDone || p.end
		st.down[0] = piece{}
		if st.down = st.down[1:]; len(st.down) == 0 {
			st.down = nil
		}
	}
	st.over()
}

// pour goes on with all answers, since the client has granted more for its connection.
func (s *Session) pour() {
	for _, st := range s.streams {
		st.pour()
	}
}

// over lets go of the stream when both sides have ended it.
func (st *diverted) over() {
	switch {
	case st.downDone && st.reset:
		st.s.toCli.pending = appendReset(st.s.toCli.pending, st.id, http2.ErrCodeNo)
	case !st.downDone || !st.upDone:
		return
	}
	st.remove()
	st.s.past.add(st.id)
}

// remove takes the stream off the connection and its laptop.
func (st *diverted) remove() {
	s := st.s
	if s.streams[st.id] != st {
		return
	}
	delete(s.streams, st.id)
	s.buffered -= len(st.up)
	st.up, st.taken = nil, 0
	st.laptop.drop(st)
	s.changed.Broadcast()
}

// cancel is for a client that has reset the stream.
func (st *diverted) cancel(code http2.ErrCode) {
	st.laptop.reset(st, code)
	st.remove()
	st.s.past.add(st.id)
}

// abandon resets the stream on both sides.
func (st *diverted) abandon(code http2.ErrCode) {
	st.s.toCli.pending = appendReset(st.s.toCli.pending, st.id, code)
	st.cancel(http2.ErrCodeCancel)
}

// fallBack gives the stream to the app with all its bytes, since the laptop has done nothing with
// it, or nothing that may not be done twice.
func (st *diverted) fallBack(why error) {
	s := st.s
	if !st.keep || s.goneAt || int64(len(st.up)) > s.up.window0 {
		st.lose(why, true)
		return
	}
	id, ok := s.ids.assign(st.id)
	if !ok {
		st.lose(why, true)
		return
	}
	st.claim.FellBack(why)
	st.copyAgain()
	up := st.up
	st.remove()
	body := len(up) > 0
	s.up.sendBlock(id, 0, nil, st.fields, st.upEnd && !body && st.upTail == nil)
	if body {
		s.up.add(id, up, st.upEnd && st.upTail == nil)
	}
	if st.upTail != nil {
		s.up.after(id, st.upTail, true)
	}
	if st.granted > 0 {
		s.toApp.pending = appendWindowUpdate(s.toApp.pending, id, min(st.granted, maxID))
	}
	s.Passed(1)
}

// lose ends a stream that nobody can answer. untouched says that the laptop has done nothing with
// it, so that the client may try again.
func (st *diverted) lose(why error, untouched bool) {
	s := st.s
	text := "sidestep: the laptop that intercepts this request (" + st.claim.String() +
		") went away: " + why.Error()
	s.Log.Warn("intercepted stream was lost", "intercept", st.claim.String(), "reason", why)
	status := []hpack.HeaderField{{Name: "grpc-status", Value: "14"},
		{Name: "grpc-message", Value: grpcMessage(text)}}
	early := !st.upEnd // the client is to send no more of a request that has its answer
	switch {
	case st.grpc && st.answered && len(st.down) == 0:
		s.down.sendBlock(st.id, 0, nil, status, true)
	case st.answered:
		s.toCli.pending = appendReset(s.toCli.pending, st.id, http2.ErrCodeInternal)
		early = false
	case st.grpc && !untouched:
		head := []hpack.HeaderField{{Name: ":status", Value: "200"},
			{Name: "content-type", Value: "application/grpc"}}
		s.down.sendBlock(st.id, 0, nil, append(head, status...), true)
	case untouched:
		s.toCli.pending = appendReset(s.toCli.pending, st.id, http2.ErrCodeRefusedStream)
		early = false
	default:
		st.badGateway(text + "\n")
	}
	if early {
		s.toCli.pending = appendReset(s.toCli.pending, st.id, http2.ErrCodeNo)
	}
	st.remove()
	s.past.add(st.id)
}

func (st *diverted) badGateway(text string) {
	f, n := st.s.down, int64(len(text))
	bodiless := st.method == "HEAD" || min(st.room, f.lend()) < n
	fields := []hpack.HeaderField{{Name: ":status", Value: "502"},
		{Name: "content-type", Value: "text/plain; charset=utf-8"}}
	if !bodiless {
		fields = append(fields, hpack.HeaderField{Name: "content-length", Value: strconv.FormatInt(n, 10)})
	}
	f.sendBlock(st.id, 0, nil, fields, bodiless)
	if !bodiless {
		f.to.pending = appendData(f.to.pending, st.id, []byte(text), true)
		f.lent(n)
	}
}

// grpcMessage encodes a text as grpc-message asks for it: what is not printable ASCII by percent.
func grpcMessage(text string) string {
	var b bytes.Buffer
	for _, c := range []byte(text) {
		if c >= ' ' && c <= '~' && c != '%' {
			b.WriteByte(c)
			continue
		}
		b.WriteByte('%')
		b.WriteByte("0123456789ABCDEF"[c>>4])
		b.WriteByte("0123456789ABCDEF"[c&15])
	}
	return b.String()
}
