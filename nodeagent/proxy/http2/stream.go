// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"strconv"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/divert"
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

// divertedStream is a stream that goes to a laptop. Flow control is hop by hop: the client is granted
// more when the laptop has taken something, and the laptop when the client has.
type divertedStream struct {
	c          *Conn
	id         uint32
	intercept  divert.Intercept
	laptop     *laptop
	fields     keptFields // of the request, while it is kept
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
	upTail   keptFields
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
	fields keptFields
	data   []byte
	end    bool
}

// cost is what the piece holds.
func (p *piece) cost() int { return len(p.data) + len(p.fields) + heldCost }

// divert gives the request that was decoded last to a laptop.
func (c *Conn) divert(intercept divert.Intercept, fr *frame) {
	c.up.encodeAnew()
	st := &divertedStream{
		c: c, id: fr.id, intercept: intercept, fields: keepFields(c.up.fields),
		method: c.head.method, idempotent: c.head.idempotent(), grpc: c.head.isGRPC(),
		keep: true, upEnd: fr.end(), grant: c.up.window0, room: c.window0,
	}
	st.limit = int(max(0, min(maxRetained, st.grant/2)))
	if c.streams == nil {
		c.streams = make(map[uint32]*divertedStream)
	}
	c.streams[st.id] = st
	c.kept += len(st.fields) + streamCost
	st.place()
	if !st.upEnd && st.grant < minGrant {
		st.forget()
		st.feed()
	}
}

// place gives the stream to a laptop, over a tunnel that there is or a new one.
func (st *divertedStream) place() {
	for _, l := range st.c.laptops {
		if l.key == st.intercept.Key() && !l.leaving && st.id > l.last {
			l.take(st)
			return
		}
	}
	st.c.newLaptop(st.intercept).take(st)
}

// upload takes a piece of the body.
func (st *divertedStream) upload(p []byte, padding int, end bool) {
	c := st.c
	c.credit += int64(len(p) + padding)
	st.grant -= int64(len(p))
	if padding > 0 && !end {
		c.toCli.pending = appendWindowUpdate(c.toCli.pending, st.id, int64(padding))
	}
	if st.upEnd {
		return
	}
	st.up = append(st.up, p...)
	c.buffered += len(p)
	st.upEnd = end
	if st.keep && len(st.up) > st.limit {
		st.forget()
	}
	if c.buffered > maxBuffered || !c.account.Room(len(p)) {
		st.abandon(http2.ErrCodeEnhanceYourCalm)
		return
	}
	st.feed()
}

// trailers takes what ends the body.
func (st *divertedStream) trailers(fields []hpack.HeaderField) {
	if !st.upEnd {
		st.upTail, st.upEnd = keepFields(fields), true
		st.c.kept += len(st.upTail)
		st.feed()
	}
}

// forget gives up the means to send the request again.
func (st *divertedStream) forget() {
	st.keep, st.granted = false, 0
	if st.sent {
		st.unkeep()
	}
}

// unkeep lets go of the request's fields.
func (st *divertedStream) unkeep() {
	st.c.kept -= len(st.fields)
	st.fields = nil
}

// feed sends the laptop what it will take of the body.
func (st *divertedStream) feed() {
	if st.sent && !st.upDone {
		st.laptop.feed(st)
	}
	if st.keep {
		return
	}
	c := st.c
	if st.taken > 0 {
		c.buffered -= st.taken
		st.up = st.up[:copy(st.up, st.up[st.taken:])]
		st.taken = 0
		if len(st.up) == 0 {
			st.up = nil
		}
	}
	if most := max(defaultWindow, min(c.up.window0, maxGrant)); len(st.up) == 0 && !st.upEnd &&
		st.grant < most/2 {
		c.toCli.pending = appendWindowUpdate(c.toCli.pending, st.id, most-st.grant)
		st.grant = most
	}
}

// begins says that the laptop answers.
func (st *divertedStream) begins() {
	if !st.answered {
		st.answered = true
		st.intercept.Answered()
		st.c.resets.answered()
		st.forget()
		st.feed()
	}
}

// answerFields takes a header block of the laptop's answer.
func (st *divertedStream) answerFields(fields []hpack.HeaderField, end bool) {
	st.begins()
	switch {
	case st.downEnd:
		return
	case len(st.down) > 0:
		st.answer(piece{fields: keepFields(fields), end: end})
		return
	}
	st.c.lapSpoke, st.downEnd, st.downDone = true, end, end
	st.c.down.sendBlock(st.id, 0, nil, fields, end)
	st.over()
}

// answer takes a part of the laptop's answer, which waits for what came before it.
func (st *divertedStream) answer(p piece) {
	st.begins()
	if st.downEnd {
		return
	}
	cost := p.cost()
	if st.c.answers+cost > maxAnswers || !st.c.account.Room(cost) {
		st.abandon(http2.ErrCodeEnhanceYourCalm)
		st.laptop.repay(nil, int64(len(p.data)))
		return
	}
	st.downEnd = p.end
	if last := len(st.down) - 1; p.fields == nil && last >= 0 && st.down[last].fields == nil {
		st.down[last].data, st.down[last].end = append(st.down[last].data, p.data...), p.end
		st.c.answers += len(p.data)
	} else {
		st.down = append(st.down, p)
		st.c.answers += cost
	}
	st.pour()
}

// pour sends the client what it will take of the answer.
func (st *divertedStream) pour() {
	c, f := st.c, st.c.down
	c.lapSpoke = c.lapSpoke || len(st.down) > 0
	for len(st.down) > 0 {
		p := &st.down[0]
		if p.fields != nil {
			f.sendBlock(st.id, 0, nil, p.fields.fields(), p.end)
		} else {
			n := max(0, min(int64(len(p.data)), st.room, f.lend(), frameSize))
			if n == 0 && len(p.data) > 0 {
				return
			}
			whole := n == int64(len(p.data))
			c.toCli.pending = appendData(c.toCli.pending, st.id, p.data[:n], p.end && whole)
			f.lent(n)
			st.room -= n
			st.laptop.repay(st, n)
			c.answers -= int(n)
			if p.data = p.data[n:]; !whole {
				continue
			}
		}
		st.downDone = st.downDone || p.end
		c.answers -= p.cost()
		st.down[0] = piece{}
		if st.down = st.down[1:]; len(st.down) == 0 {
			st.down = nil
		}
	}
	st.over()
}

// pour goes on with all answers, since the client has granted more for its connection.
func (c *Conn) pour() {
	for _, st := range c.streams {
		st.pour()
	}
}

// over lets go of the stream when both sides have ended it.
func (st *divertedStream) over() {
	switch {
	case st.downDone && st.reset:
		st.c.toCli.pending = appendReset(st.c.toCli.pending, st.id, http2.ErrCodeNo)
	case !st.downDone || !st.upDone:
		return
	}
	st.remove()
	st.c.past.add(st.id)
}

// remove takes the stream off the connection and its laptop.
func (st *divertedStream) remove() {
	c := st.c
	if c.streams[st.id] != st {
		return
	}
	delete(c.streams, st.id)
	c.buffered -= len(st.up)
	c.kept -= len(st.fields) + len(st.upTail) + streamCost
	st.up, st.taken = nil, 0
	st.laptop.drop(st)
	c.changed.Broadcast()
}

// cancel is for a client that has reset the stream.
func (st *divertedStream) cancel(code http2.ErrCode) {
	st.laptop.reset(st, code)
	st.remove()
	st.c.past.add(st.id)
}

// abandon resets the stream on both sides.
func (st *divertedStream) abandon(code http2.ErrCode) {
	st.c.toCli.pending = appendReset(st.c.toCli.pending, st.id, code)
	st.cancel(http2.ErrCodeCancel)
}

// fallBack gives the stream to the app with all its bytes, since the laptop has done nothing with
// it, or nothing that may not be done twice.
func (st *divertedStream) fallBack(why error) {
	c := st.c
	if !st.keep || c.goneAt || int64(len(st.up)) > c.up.window0 {
		st.lose(why, true)
		return
	}
	id, ok := c.ids.assign(st.id)
	if !ok {
		st.lose(why, true)
		return
	}
	st.intercept.FellBack(why)
	st.copyAgain()
	up, fields, tail := st.up, st.fields.fields(), st.upTail
	st.remove()
	body := len(up) > 0
	c.up.sendBlock(id, 0, nil, fields, st.upEnd && !body && st.upTail == nil)
	if body {
		c.up.add(id, up, st.upEnd && st.upTail == nil)
	}
	if st.upTail != nil {
		c.up.after(id, tail.fields(), true)
	}
	if st.granted > 0 {
		c.toApp.pending = appendWindowUpdate(c.toApp.pending, id, min(st.granted, maxID))
	}
	c.Target.Passed(1)
}

// lose ends a stream that nobody can answer. untouched says that the laptop has done nothing with
// it, so that the client may try again.
func (st *divertedStream) lose(why error, untouched bool) {
	c := st.c
	text := "sidestep: intercept " + st.intercept.String() + ": " + why.Error()
	st.intercept.Lost(why)
	c.Log.Warn("intercepted stream was lost", "intercept", st.intercept.String(), "reason", why)
	status := []hpack.HeaderField{{Name: "grpc-status", Value: "14"},
		{Name: "grpc-message", Value: grpcMessage(text)}}
	early := !st.upEnd // the client is to send no more of a request that has its answer
	switch {
	case st.grpc && st.answered && len(st.down) == 0:
		c.down.sendBlock(st.id, 0, nil, status, true)
	case st.answered:
		c.toCli.pending = appendReset(c.toCli.pending, st.id, http2.ErrCodeInternal)
		early = false
	case st.grpc && !untouched:
		head := []hpack.HeaderField{{Name: ":status", Value: "200"},
			{Name: "content-type", Value: "application/grpc"}}
		c.down.sendBlock(st.id, 0, nil, append(head, status...), true)
	case untouched:
		c.toCli.pending = appendReset(c.toCli.pending, st.id, http2.ErrCodeRefusedStream)
		early = false
	default:
		st.badGateway(text + "\n")
	}
	if early {
		c.toCli.pending = appendReset(c.toCli.pending, st.id, http2.ErrCodeNo)
	}
	st.remove()
	c.past.add(st.id)
}

func (st *divertedStream) badGateway(text string) {
	f, n := st.c.down, int64(len(text))
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
