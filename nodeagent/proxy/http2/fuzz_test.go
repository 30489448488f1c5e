// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"io"
	"slices"
	"testing"

	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// request is what somebody sees of a stream.
type request struct {
	fields []hpack.HeaderField
	data   []byte
	tail   []hpack.HeaderField
	end    bool
	reset  bool
}

func (r *request) mine() bool {
	for _, f := range r.fields {
		if f.Name == "x-dev" && f.Value == "me" {
			return true
		}
	}
	return false
}

// requests reads what a client sends as a server without mercy would, up to the first thing that is
// not in order.
func requests(p []byte) (list []*request, ok bool) {
	p, found := bytes.CutPrefix(p, []byte(http2.ClientPreface))
	if !found {
		return nil, false
	}
	fr := http2.NewFramer(io.Discard, bytes.NewReader(p))
	fr.SetMaxReadFrameSize(1<<24 - 1)
	var fields []hpack.HeaderField
	dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) { fields = append(fields, f) })
	dec.SetAllowedMaxDynamicTableSize(1 << 30)
	byID := map[uint32]*request{}
	var block []byte
	var at *request
	headers := func(id uint32, fragment []byte, ends, done bool) bool {
		if id%2 == 0 {
			return false
		}
		if at = byID[id]; at == nil {
			at = &request{}
			byID[id] = at
		}
		at.end = at.end || ends
		block = bytes.Clone(fragment)
		return !done
	}
	finish := func() bool {
		fields = nil
		if _, err := dec.Write(block); err != nil || dec.Close() != nil {
			return false
		}
		if at.fields == nil {
			at.fields = append([]hpack.HeaderField{}, fields...)
			list = append(list, at)
		} else {
			at.tail = fields
		}
		at = nil
		return true
	}
	for {
		f, err := fr.ReadFrame()
		if err != nil {
			return list, err == io.EOF
		}
		switch f := f.(type) {
		case *http2.HeadersFrame:
			if headers(f.StreamID, f.HeaderBlockFragment(), f.StreamEnded(),
				f.HeadersEnded()); at == nil || f.HeadersEnded() && !finish() {
				return list, false
			}
		case *http2.ContinuationFrame:
			if block = append(block, f.HeaderBlockFragment()...); at == nil || f.HeadersEnded() && !finish() {
				return list, false
			}
		case *http2.DataFrame:
			if r := byID[f.StreamID]; r != nil {
				r.data = append(r.data, f.Data()...)
				r.end = r.end || f.StreamEnded()
			}
		case *http2.RSTStreamFrame:
			if r := byID[f.StreamID]; r != nil {
				r.reset = true
			}
		}
	}
}

func feed(e *end, p []byte, piece int) {
	for len(p) > 0 {
		n := min(piece, len(p))
		e.Write(p[:n])
		p = p[n:]
	}
}

// play has client and app say what they are given, and laptops what laptop says, until the client
// has closed and then the app. It returns what each of them was sent.
func play(t *testing.T, client, app, laptop []byte, piece int) (toApp, toClient []byte, sc *scene) {
	sc = newScene(t)
	feed(sc.app, app[:len(app)/2], piece)
	feed(sc.client, client[:len(client)/2], piece)
	feed(sc.app, app[len(app)/2:], piece)
	feed(sc.client, client[len(client)/2:], piece)
	stop := make(chan struct{})
	go func() {
		for {
			select {
			case l := <-sc.laptops:
				feed(l, laptop, piece)
			case <-stop:
				return
			}
		}
	}()
	sc.client.CloseWrite()
	io.Copy(io.Discard, sc.app)
	sc.app.CloseWrite()
	sc.wait(t)
	close(stop)
	return sc.app.in.written(), sc.client.in.written(), sc
}

// seeds are conversations: what client, app and laptop say.
func seeds() (all [][3][]byte) {
	app, laptop := newScript(), newScript()
	app.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 100_000},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 100})
	app.WriteSettingsAck()
	app.WriteWindowUpdate(0, 1<<20)
	app.headers(1, false, ":status", "200", "content-type", "application/grpc")
	app.WriteDataPadded(1, false, []byte("hello"), make([]byte, 7))
	app.headers(1, true, "grpc-status", "0")
	app.headers(5, true, ":status", "404", "set-cookie!", "secret")
	app.WriteRSTStream(9, http2.ErrCodeCancel)
	laptop.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 10},
		http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1})
	laptop.WriteSettingsAck()
	laptop.WriteWindowUpdate(0, 1000)
	laptop.headers(3, false, ":status", "200")
	laptop.WriteDataPadded(3, false, []byte("laptop"), make([]byte, 3))
	laptop.headers(3, true, "x", "y")
	laptop.WritePing(false, [8]byte{1})
	laptop.WriteWindowUpdate(7, 1000)
	laptop.WriteRSTStream(7, http2.ErrCodeRefusedStream)
	a, l := app.take(), laptop.take()
	laptop.WriteGoAway(3, http2.ErrCodeNo, nil)
	goaway := append(bytes.Clone(l), laptop.take()...)
	for _, mine := range [][]string{{"x-dev", "you"}, {"x-dev", "me"}} {
		c := newScript()
		c.WriteString(http2.ClientPreface)
		c.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 20},
			http2.Setting{ID: http2.SettingHeaderTableSize, Val: 100})
		c.WriteWindowUpdate(0, 1000)
		c.WriteSettingsAck()
		c.request(1, false, "a", "b")
		c.request(3, false, append(mine, "te", "trailers")...)
		c.WriteData(1, false, []byte("one"))
		c.WriteDataPadded(3, false, bytes.Repeat([]byte("three"), 20), make([]byte, 9))
		c.WriteWindowUpdate(3, 100)
		c.request(5, true, "authorization!", "secret")
		block := c.fields(append(mine, ":method", "GET", ":path", "/", ":scheme", "http")...)
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 7, BlockFragment: block[:3], PadLength: 4,
			Priority: http2.PriorityParam{StreamDep: 1}})
		c.WriteContinuation(7, true, block[3:])
		c.headers(3, true, "tail", "x")
		c.WriteData(1, true, nil)
		c.WriteData(7, true, bytes.Repeat([]byte("7"), 300))
		c.request(9, false, "c", "d")
		c.WriteRSTStream(9, http2.ErrCodeCancel)
		c.WritePing(false, [8]byte{2})
		c.WritePriority(5, http2.PriorityParam{StreamDep: 3})
		c.request(11, true, append(mine, "e", "f")...)
		c.WriteGoAway(0, http2.ErrCodeNo, []byte("bye"))
		p := c.take()
		all = append(all, [3][]byte{p, a, l}, [3][]byte{p, a, goaway}, [3][]byte{p, a, nil},
			[3][]byte{p, a, []byte("HTTP/1.1 400 Bad Request\r\n\r\n")}, [3][]byte{p, nil, l})
	}
	return all
}

// FuzzConn lets client, app and laptops say anything. Nothing may panic or hang. Without a
// diverted stream every byte passes as it is; with one, the app sees all other streams, in their
// order, with their fields, their data and their ends.
func FuzzConn(f *testing.F) {
	for _, s := range seeds() {
		f.Add(s[0], s[1], s[2], uint16(5000))
		f.Add(s[0], s[1], s[2], uint16(6))
	}
	f.Fuzz(func(t *testing.T, client, app, laptop []byte, size uint16) {
		if !bytes.HasPrefix(client, []byte(http2.ClientPreface)) {
			client = append([]byte(http2.ClientPreface), client...)
		}
		toApp, toClient, sc := play(t, client, app, laptop, int(size)+1)
		if sc.matches == 0 {
			if !bytes.Equal(toApp, client) {
				t.Errorf("app was sent %q", toApp)
			}
			if !bytes.Equal(toClient, app) {
				t.Errorf("client was sent %q", toClient)
			}
		}
		want, whole := requests(client)
		got, _ := requests(toApp)
		check(t, want, got, whole)
	})
}

// check compares the app's view of undiverted streams with the client's.
func check(t *testing.T, want, got []*request, whole bool) {
	theirs := func(list []*request) []*request { return slices.DeleteFunc(slices.Clone(list), (*request).mine) }
	w, g := theirs(want), theirs(got)
	if len(g) > len(w) && whole {
		t.Errorf("app sees %d streams of others, client sent %d", len(g), len(w))
	}
	for i := range min(len(w), len(g)) {
		if !slices.Equal(w[i].fields, g[i].fields) {
			t.Errorf("stream %d of others: fields %v, sent %v", i, g[i].fields, w[i].fields)
		}
		if !bytes.HasPrefix(w[i].data, g[i].data) {
			t.Errorf("stream %d of others: data %q, sent %q", i, g[i].data, w[i].data)
		}
		if g[i].tail != nil && !slices.Equal(w[i].tail, g[i].tail) {
			t.Errorf("stream %d of others: trailers %v, sent %v", i, g[i].tail, w[i].tail)
		}
	}
}
