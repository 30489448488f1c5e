// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"math"
	"slices"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// read takes what comes through the tunnel until it ends.
func (l *laptop) read() {
	var b stream.Buffer
	defer b.Free()
	for {
		err := l.tunnel.Fill(&b)
		if err == nil {
			err = l.receive(&b)
		}
		if err != nil {
			l.fail(divert.Ended(err))
			return
		}
	}
}

// receive takes the frames that are complete, and has what follows from them written.
func (l *laptop) receive(b *stream.Buffer) error {
	c := l.c
	c.mu.Lock()
	defer c.mu.Unlock()
	for b.Len() > 0 && !l.failed {
		n, err := l.next(b.Bytes())
		if err != nil {
			return err
		}
		if n == 0 {
			break
		}
		b.Drop(n)
	}
	l.signal()
	c.toApp.kick(c.spawn)
	c.toCli.flush()
	c.awaitRoom(c.toCli)
	if err := c.charge(); err != nil && !c.closing {
		return c.doubtfulLocked(c.up, err)
	}
	return nil
}

// next takes one frame from the front of p, of n bytes; 0 if it is not complete.
func (l *laptop) next(p []byte) (n int, err error) {
	if !l.greeted && !beginsSettings(p) {
		return 0, notHTTP2(p)
	}
	if len(p) < headerLength {
		return 0, nil
	}
	h := parseHeader(p)
	if !l.greeted && (h.kind != http2.FrameSettings || h.flags != 0) {
		return 0, errNotHTTP2
	}
	if h.length > frameSize {
		return 0, fmt.Errorf("%w: frame of %d bytes", errNotHTTP2, h.length)
	}
	if len(p) < headerLength+h.length {
		return 0, nil
	}
	fr, err := parse(p, frameSize, &l.scratch)
	if err != nil || fr.all == nil {
		return 0, err
	}
	if fr.kind == http2.FrameData {
		return headerLength + fr.length, l.data(&fr, p[headerLength:headerLength+fr.length])
	}
	return len(fr.all), l.control(&fr)
}

// notHTTP2 says what a local process speaks that does not begin with SETTINGS.
func notHTTP2(p []byte) error {
	if p[0] == 0x15 && (len(p) < 2 || p[1] == 3) { // an alert (RFC 8446 §6)
		return errTLS
	}
	return errNotHTTP2
}

// control takes any frame but DATA.
func (l *laptop) control(fr *frame) error {
	st := l.streams[fr.id]
	switch fr.kind {
	case http2.FrameSettings:
		if !fr.ack() {
			return l.settings(fr.payload)
		}
	case http2.FramePing:
		if fr.flags&http2.FlagPingAck == 0 {
			if len(l.out) > maxControl {
				return errors.New("it sends PING and takes no answers")
			}
			l.out = appendPong(l.out, fr.payload)
		}
	case http2.FrameHeaders:
		return l.headers(st, fr)
	case http2.FramePushPromise:
		return errors.New("it pushes, which it was told not to")
	case http2.FrameRSTStream:
		if st != nil {
			l.resets(st, fr.code())
		}
	case http2.FrameWindowUpdate:
		if fr.id == 0 {
			l.window += fr.increment()
			for _, st := range l.streams {
				st.feed()
			}
		} else if st != nil {
			st.window += fr.increment()
			st.feed()
		}
	case http2.FrameGoAway:
		l.goesAway(fr.last())
	}
	return nil
}

func (l *laptop) settings(payload []byte) error {
	settings(payload, func(id http2.SettingID, value uint32) {
		switch id {
		case http2.SettingHeaderTableSize:
			l.encoder.SetMaxDynamicTableSize(min(value, defaultTable))
		case http2.SettingInitialWindowSize:
			delta := int64(value) - l.window0
			l.window0 = int64(value)
			for _, st := range l.streams {
				if st.sent {
					st.window += delta
					st.feed()
				}
			}
		case http2.SettingMaxFrameSize:
			l.maxFrame = int(min(max(value, 1), math.MaxInt32))
		case http2.SettingMaxConcurrentStreams:
			l.maxStreams = int(value)
		}
	})
	if len(l.out) > maxControl {
		return errors.New("it sends SETTINGS and takes no answers")
	}
	l.out = appendHeader(l.out, 0, http2.FrameSettings, http2.FlagSettingsAck, 0)
	if !l.greeted {
		l.greeted = true
		for _, st := range l.streams {
			if st.sent {
				st.intercept.Sent()
			}
		}
	}
	l.startWaiting()
	return nil
}

func (l *laptop) field(f hpack.HeaderField) {
	if l.size += int(f.Size()); l.size <= maxList && len(l.fields) < maxFields {
		l.fields = append(l.fields, f)
	}
}

func (l *laptop) headers(st *divertedStream, fr *frame) error {
	l.fields, l.size = nil, 0
	if _, err := l.decoder.Write(fr.block); err != nil {
		return doubtHpack
	}
	if err := l.decoder.Close(); err != nil {
		return doubtHpack
	}
	switch {
	case st == nil:
	case l.size > maxList || len(l.fields) >= maxFields:
		l.c.account.Budget.Met(budget.Fields)
		st.abandon(http2.ErrCodeInternal)
	default:
		st.answerFields(l.fields, fr.end())
	}
	l.fields, l.scratch = nil, nil
	return nil
}

func (l *laptop) data(fr *frame, p []byte) error {
	if l.room -= int64(fr.length); l.room < 0 {
		return errors.New("it sends more than it may")
	}
	if fr.flags&http2.FlagDataPadded != 0 {
		if len(p) == 0 || int(p[0]) >= len(p) {
			return doubtPadding
		}
		p = p[1 : len(p)-int(p[0])]
	}
	st := l.streams[fr.id]
	if st == nil || st.downEnd {
		l.repay(nil, int64(fr.length))
		return nil
	}
	if padding := fr.length - len(p); padding > 0 {
		l.repay(st, int64(padding))
	}
	st.answer(piece{data: bytes.Clone(p), end: fr.flags&http2.FlagDataEndStream != 0})
	return nil
}

// resets is for a stream that the laptop has reset.
func (l *laptop) resets(st *divertedStream, code http2.ErrCode) {
	switch {
	case code == http2.ErrCodeRefusedStream && !st.answered:
		st.sent = false // and so it need not be told
		st.fallBack(errRefused)
	case st.downEnd:
		st.reset = !st.upEnd
		st.upDone = true
		st.over()
	default:
		if !st.answered {
			st.intercept.Lost(errReset)
		}
		st.c.toCli.pending = appendReset(st.c.toCli.pending, st.id, code)
		st.remove()
		st.c.past.add(st.id)
	}
}

// goesAway is for a laptop that will take no more streams, and none above last.
func (l *laptop) goesAway(last uint32) {
	l.leaving, l.gone = true, true
	for _, id := range slices.Sorted(maps.Keys(l.streams)) {
		if st := l.streams[id]; id > last && !st.answered || !st.sent {
			l.again(st, errGoAway)
		}
	}
	if len(l.streams) == 0 {
		l.leave()
	}
}
