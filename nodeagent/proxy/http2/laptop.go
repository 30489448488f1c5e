// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"context"
	"fmt"
	"maps"
	"math"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

const (
	// streamWindow and tunnelWindow are what a laptop may send before the client has taken it, on a
	// stream and in all.
	streamWindow = 1 << 20
	tunnelWindow = 4 << 20
	// maxControl bounds what may wait to be written to a laptop besides DATA.
	maxControl = 2 * backlog
)

var (
	errSilent   = divert.New(divert.Silent, "the local process did not speak HTTP/2 in time")
	errTLS      = divert.New(divert.LocalTLS, "the local process speaks only TLS")
	errNotHTTP2 = divert.New(divert.LocalNoHTTP2, "the local process does not speak HTTP/2")
	errGoAway   = divert.New(divert.LocalClosed, "the local process takes no more streams")
	errRefused  = divert.New(divert.LocalClosed, "the local process refused the stream")
	errReset    = divert.New(divert.LocalClosed, "the local process reset the stream")
	errEnded    = divert.New(divert.LocalClosed, "the local process closed its connection")
)

// laptop is a tunnel to a laptop, and the HTTP/2 connection in it, of which this side is the
// client. All is guarded by Conn.mu.
type laptop struct {
	c         *Conn
	intercept divert.Intercept
	key       string

	tunnel  stream.Duplex // nil while opening
	changed sync.Cond
	out     []byte
	busy    bool // out is being written
	closing bool // after what is in out
	failed  bool
	leaving bool // it gets no more streams
	gone    bool // it has said so

	encoder *hpack.Encoder
	encoded bytes.Buffer
	decoder *hpack.Decoder
	fields  []hpack.HeaderField
	size    int
	scratch []byte

	greeted    bool  // its SETTINGS have come
	window     int64 // of the connection
	window0    int64 // its SETTINGS_INITIAL_WINDOW_SIZE
	maxFrame   int   // its SETTINGS_MAX_FRAME_SIZE
	maxStreams int   // its SETTINGS_MAX_CONCURRENT_STREAMS
	streams    map[uint32]*divertedStream
	waiting    []*divertedStream // beyond most
	last       uint32            // the highest stream it was given
	room, owed int64             // what it may send in all, and what it is to be granted again
}

func (c *Conn) newLaptop(intercept divert.Intercept) *laptop {
	l := &laptop{
		c: c, intercept: intercept, key: intercept.Key(), changed: sync.Cond{L: &c.mu}, streams: make(map[uint32]*divertedStream),
		window: defaultWindow, window0: defaultWindow, maxFrame: frameSize, maxStreams: math.MaxInt, room: tunnelWindow,
	}
	l.encoder = hpack.NewEncoder(&l.encoded)
	l.decoder = hpack.NewDecoder(defaultTable, l.field)
	l.out = append(l.out, http2.ClientPreface...)
	l.out = appendSettings(l.out, http2.Setting{ID: http2.SettingEnablePush},
		http2.Setting{ID: http2.SettingInitialWindowSize, Val: streamWindow})
	l.out = appendWindowUpdate(l.out, 0, tunnelWindow-defaultWindow)
	c.laptops = append(c.laptops, l)
	c.spawn(l.run)
	return l
}

// run opens the tunnel and serves what comes through it.
func (l *laptop) run() {
	c := l.c
	ctx, cancel := context.WithTimeout(c.ctx, c.OpenTimeout)
	defer cancel()
	t, err := l.intercept.Open(ctx)
	if err != nil {
		l.fail(divert.Opening(fmt.Errorf("open tunnel: %w", err)))
		return
	}
	defer l.intercept.Track(l.retire)()
	d := stream.Of(t, func() { t.Reset("connection was reset") })
	c.mu.Lock()
	l.tunnel = d
	failed := l.failed
	c.mu.Unlock()
	if failed {
		d.Reset()
		return
	}
	defer time.AfterFunc(c.OpenTimeout, l.silent).Stop()
	c.spawn(l.write)
	opened, err := t.Opened(ctx)
	if err == nil {
		err = divert.NotOpened(opened)
	}
	if err = divert.NoAnswer(ctx, err); err != nil {
		l.fail(err)
		return
	}
	l.read()
}

// silent is for a laptop of which nothing has been heard in time.
func (l *laptop) silent() {
	l.c.mu.Lock()
	greeted := l.greeted
	l.c.mu.Unlock()
	if !greeted {
		l.fail(errSilent)
	}
}

// write writes what is added to out until the end.
func (l *laptop) write() {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for {
		for len(l.out) == 0 && !l.failed && !l.closing {
			l.changed.Wait()
		}
		if l.failed {
			return
		}
		if len(l.out) == 0 {
			l.failed = true
			l.tunnel.Close()
			return
		}
		p := l.out
		l.out, l.busy = nil, true
		err := l.writeUnlocked(p)
		l.busy = false
		if err != nil {
			return // the reader finds out why
		}
		for _, st := range l.streams {
			st.feed()
		}
		l.startWaiting()
		c.toCli.kick(c.spawn) // grants
	}
}

func (l *laptop) writeUnlocked(p []byte) error {
	l.c.mu.Unlock()
	defer l.c.mu.Lock()
	_, err := l.tunnel.Write(p)
	return err
}

func (l *laptop) signal() {
	if len(l.out) > 0 || l.closing || l.failed {
		l.changed.Signal()
	}
}

// take gives the laptop a stream.
func (l *laptop) take(st *divertedStream) {
	st.laptop, l.streams[st.id], l.last = l, st, st.id
	if len(l.streams) > l.maxStreams || len(l.waiting) > 0 || len(l.out) > backlog {
		l.waiting = append(l.waiting, st)
		return
	}
	l.start(st)
}

func (l *laptop) start(st *divertedStream) {
	st.sent, st.window = true, l.window0
	if l.greeted {
		st.intercept.Sent()
	}
	st.upDone = st.upEnd && len(st.up) == 0 && st.upTail == nil
	l.block(st.id, st.fields.fields(), st.upDone)
	if !st.keep {
		st.unkeep()
	}
	l.feed(st)
	l.signal()
}

func (l *laptop) block(id uint32, fields []hpack.HeaderField, end bool) {
	l.encoded.Reset()
	for _, field := range fields {
		l.encoder.WriteField(field)
	}
	l.out = appendBlock(l.out, id, 0, nil, l.encoded.Bytes(), end)
}

// feed sends what the laptop will take of a body.
func (l *laptop) feed(st *divertedStream) {
	if l.failed {
		return
	}
	for !st.upDone {
		rest := st.up[st.taken:]
		n := int(max(0, min(int64(len(rest)), st.window, l.window, int64(l.maxFrame), frameSize)))
		whole := n == len(rest)
		if n == 0 && !whole || len(rest) > 0 && len(l.out) >= backlog || whole && n == 0 && !st.upEnd {
			break
		}
		if n == 0 && st.upTail != nil {
			l.block(st.id, st.upTail.fields(), true)
			st.upDone = true
			break
		}
		st.upDone = whole && st.upEnd && st.upTail == nil
		l.out = appendData(l.out, st.id, rest[:n], st.upDone)
		st.taken += n
		st.window -= int64(n)
		l.window -= int64(n)
	}
	l.signal()
	if st.upDone {
		st.over()
	}
}

// repay grants the laptop again what the client has taken.
func (l *laptop) repay(st *divertedStream, n int64) {
	if l.failed {
		return
	}
	if l.owed += n; l.owed >= tunnelWindow/4 {
		l.out = appendWindowUpdate(l.out, 0, l.owed)
		l.room += l.owed
		l.owed = 0
	}
	if st == nil || st.downEnd {
		l.signal()
		return
	}
	if st.owed += n; st.owed >= streamWindow/4 {
		l.out = appendWindowUpdate(l.out, st.id, st.owed)
		st.owed = 0
	}
	l.signal()
}

// reset has the laptop forget a stream.
func (l *laptop) reset(st *divertedStream, code http2.ErrCode) {
	if st.sent && !l.failed {
		l.out = appendReset(l.out, st.id, code)
		l.signal()
	}
}

// drop takes a stream off, and starts one that has waited.
func (l *laptop) drop(st *divertedStream) {
	delete(l.streams, st.id)
	l.waiting = slices.DeleteFunc(l.waiting, func(w *divertedStream) bool { return w == st })
	for _, p := range st.down {
		l.repay(nil, int64(len(p.data)))
		l.c.answers -= p.cost()
	}
	l.startWaiting()
	if l.leaving && len(l.streams) == 0 {
		l.leave()
	}
}

func (l *laptop) startWaiting() {
	for len(l.waiting) > 0 && len(l.streams)-len(l.waiting) < l.maxStreams && !l.failed && !l.gone &&
		len(l.out) <= backlog {
		st := l.waiting[0]
		l.waiting = l.waiting[1:]
		l.start(st)
	}
}

// retire is called when the intercept has ended: streams may finish, and no others begin.
func (l *laptop) retire() {
	l.c.mu.Lock()
	defer l.c.mu.Unlock()
	l.leaving = true
	if len(l.streams) == 0 {
		l.leave()
	}
}

// leave ends a connection without streams in order.
func (l *laptop) leave() {
	if l.closing || l.failed {
		return
	}
	l.leaving, l.closing = true, true
	l.forgotten()
	l.out = appendGoAway(l.out, 0, http2.ErrCodeNo, nil)
	l.signal()
}

func (l *laptop) forgotten() {
	l.c.laptops = slices.DeleteFunc(l.c.laptops, func(w *laptop) bool { return w == l })
}

// fail is the end of the tunnel, and sees to the streams it had.
func (l *laptop) fail(why error) {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	if !l.failed {
		l.failLocked(why)
		c.toApp.kick(c.spawn)
		c.toCli.kick(c.spawn)
	}
}

func (l *laptop) failLocked(why error) {
	if l.failed {
		return
	}
	l.failed, l.leaving = true, true
	l.out, l.waiting = nil, nil
	l.forgotten()
	l.changed.Broadcast()
	if l.tunnel != nil {
		l.tunnel.Reset()
	}
	if l.c.aborted || l.c.closing || l.c.raw {
		return
	}
	for _, id := range slices.Sorted(maps.Keys(l.streams)) {
		st := l.streams[id]
		switch {
		case st.downEnd:
			st.upDone = true // the client may take its time
			st.over()
		case st.answered:
			st.lose(why, false)
		case !l.greeted || !st.sent || st.idempotent && st.keep:
			st.fallBack(why)
		default:
			st.lose(why, false)
		}
	}
}

// again is for a stream that the laptop has done nothing with, because its connection is ending:
// another one is tried once.
func (l *laptop) again(st *divertedStream, why error) {
	if st.retried || !st.keep {
		st.fallBack(why)
		return
	}
	delete(l.streams, st.id)
	l.waiting = slices.DeleteFunc(l.waiting, func(w *divertedStream) bool { return w == st })
	st.retried, st.sent, st.upDone, st.taken = true, false, false, 0
	st.place()
}

// closeLaptops ends all tunnels with the connection.
func (c *Conn) closeLaptops() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.aborted = true
	for _, l := range slices.Clone(c.laptops) {
		if len(l.streams) == 0 && l.greeted {
			l.leave()
			continue
		}
		l.failLocked(errEnded)
	}
}
