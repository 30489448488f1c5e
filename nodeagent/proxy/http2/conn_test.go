// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"errors"
	"io"
	"slices"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
)

// peer reads and writes frames at a far end.
type peer struct {
	*script
	t   *testing.T
	end *end
	fr  *http2.Framer
	dec *hpack.Decoder
	out []hpack.HeaderField
}

func newPeer(t *testing.T, e *end) *peer {
	p := &peer{script: newScript(), t: t, end: e, fr: http2.NewFramer(nil, e)}
	p.dec = hpack.NewDecoder(4096, func(f hpack.HeaderField) { p.out = append(p.out, f) })
	time.AfterFunc(15*time.Second, func() { e.in.end(errors.New("the test takes too long")) })
	return p
}

// send sends what the script has.
func (p *peer) send() {
	_, err := p.end.Write(p.take())
	require.NoError(p.t, err)
}

// next returns the next frame of one of the types.
func (p *peer) next(kinds ...http2.FrameType) http2.Frame {
	p.t.Helper()
	for {
		f, err := p.fr.ReadFrame()
		require.NoError(p.t, err)
		if h, ok := f.(*http2.HeadersFrame); ok {
			p.out = nil
			_, err := p.dec.Write(h.HeaderBlockFragment())
			require.NoError(p.t, err)
			require.NoError(p.t, p.dec.Close())
		}
		if len(kinds) == 0 || slices.Contains(kinds, f.Header().Type) {
			return f
		}
	}
}

func (p *peer) headersOf(id uint32) []hpack.HeaderField {
	p.t.Helper()
	require.Equal(p.t, id, p.next(http2.FrameHeaders).Header().StreamID)
	return p.out
}

// begin has the client and the app say what they say first.
func begin(t *testing.T, app ...http2.Setting) (sc *scene, client, server *peer) {
	sc = newScene(t)
	client, server = newPeer(t, sc.client), newPeer(t, sc.app)
	client.WriteString(http2.ClientPreface)
	client.WriteSettings()
	client.send()
	server.WriteSettings(app...)
	server.WriteSettingsAck()
	server.send()
	client.next(http2.FrameSettings)
	client.next(http2.FrameSettings)
	client.WriteSettingsAck()
	client.send()
	preface := make([]byte, len(http2.ClientPreface))
	_, err := io.ReadFull(sc.app, preface)
	require.NoError(t, err)
	server.next(http2.FrameSettings)
	server.next(http2.FrameSettings)
	t.Cleanup(func() {
		sc.client.reset()
		sc.wait(t)
	})
	return sc, client, server
}

// laptop waits for a tunnel, and greets.
func (sc *scene) laptop(t *testing.T, settings ...http2.Setting) *peer {
	l := newPeer(t, <-sc.laptops)
	preface := make([]byte, len(http2.ClientPreface))
	_, err := io.ReadFull(l.end, preface)
	require.NoError(t, err)
	require.Equal(t, http2.ClientPreface, string(preface))
	l.WriteSettings(settings...)
	l.send()
	return l
}

var me = []string{"x-dev", "me"}

func TestBytesPassAsTheyAreWhileNothingIsDiverted(t *testing.T) {
	for _, s := range seeds()[:5] {
		for _, more := range []string{"", "\x00\x00\x05\x01\x04\x00\x00\x00\x0d\xff\xff\xff\xff\xff",
			"\x00\x00\x01\x09\x04\x00\x00\x00\x01a", "\xff\xff\xff\x06\x00\x00\x00\x00\x00",
			"\x00\x00\x02\x00\x08\x00\x00\x00\x01\x09\x00", "\x00\x00\x03\x08\x00\x00\x00\x00\x01abc",
			"\x00\x00"} {
			for _, piece := range []int{1, 10, 100_000} {
				p := append(bytes.Clone(s[0]), more...)
				a := append(bytes.Clone(s[1]), more...)
				toApp, toClient, sc := play(t, p, a, nil, piece)
				require.Zero(t, sc.matches)
				assert.Equal(t, p, toApp)
				assert.Equal(t, a, toClient)
			}
		}
	}
}

func TestFieldsKeepTheirOrderAndAreNeverIndexedWhenTheyWereNot(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, true, me...)
	client.request(3, true, "b", "1", "authorization!", "secret", "a", "2", "b", "3", "cookie", "x=1",
		"cookie", "y=2")
	client.request(5, true, "b", "1", "authorization!", "secret", "a", "2")
	client.send()
	plain := func(list ...string) (fields []hpack.HeaderField) {
		s := newScript()
		dec := hpack.NewDecoder(4096, func(f hpack.HeaderField) { fields = append(fields, f) })
		list = append([]string{":method", "POST", ":scheme", "http", ":path", "/p?q", ":authority",
			"orders"}, list...)
		dec.Write(s.fields(list...))
		return fields
	}
	assert.Equal(t, plain("b", "1", "authorization!", "secret", "a", "2", "b", "3", "cookie", "x=1",
		"cookie", "y=2"), app.headersOf(3))
	assert.Equal(t, plain("b", "1", "authorization!", "secret", "a", "2"), app.headersOf(5))
	l := sc.laptop(t)
	assert.Equal(t, plain(me...), l.headersOf(1))

	app.headers(3, false, ":status", "200", "set-cookie!", "s", "x", "app")
	app.send()
	assert.Equal(t, "app", client.headersOf(3)[2].Value)
	l.headers(1, true, ":status", "200", "x", "laptop")
	l.send()
	assert.Equal(t, "laptop", client.headersOf(1)[1].Value)
	app.headers(3, true, "x", "app", "set-cookie!", "s")
	app.send()
	assert.Equal(t, []hpack.HeaderField{{Name: "x", Value: "app"},
		{Name: "set-cookie", Value: "s", Sensitive: true}}, client.headersOf(3))
}

func TestAppAndLaptopShareTheClientsWindow(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, true, me...)
	client.request(3, true)
	client.send()
	l := sc.laptop(t)
	l.headersOf(1)
	app.headersOf(3)
	l.headers(1, false, ":status", "200")
	for range 4 {
		l.WriteData(1, false, make([]byte, 15_000))
	}
	l.send()
	client.headersOf(1)
	got, want := 0, 60_000
	for got < want {
		got += len(client.next(http2.FrameData).(*http2.DataFrame).Data())
	}
	app.headers(3, false, ":status", "200")
	for range 4 { // the app believes that it has 65535
		app.WriteData(3, false, make([]byte, 16_000))
	}
	app.WriteData(3, true, make([]byte, 1535))
	app.headers(3, true, "tail", "x")
	app.WritePing(false, [8]byte{1})
	app.send()
	for done := false; !done; {
		switch f := client.next().(type) {
		case *http2.DataFrame:
			got += len(f.Data())
		case *http2.PingFrame:
			done = true
		}
	}
	assert.Equal(t, defaultWindow, got, "no more than the client can take")
	client.WriteWindowUpdate(0, 60_000)
	client.send()
	for got < 60_000+65_535 {
		got += len(client.next(http2.FrameData).(*http2.DataFrame).Data())
	}
	assert.Equal(t, "x", client.headersOf(3)[0].Value, "behind the data")
	client.WriteWindowUpdate(0, 65_000)
	client.send()
	assert.Equal(t, uint32(65_000),
		app.next(http2.FrameWindowUpdate).(*http2.WindowUpdateFrame).Increment,
		"what the laptop had used is not the app's")
}

func TestALaptopThatTakesNothingHoldsUpNobodyElse(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, false, me...)
	client.send()
	l := sc.laptop(t)
	l.headersOf(1)
	connection, stream := 0, 0
	upload := func() {
		for range 4 {
			client.WriteData(1, false, make([]byte, 15_000))
		}
		client.send()
	}
	upload()
	for connection < 60_000 || stream == 0 { // the laptop's windows have room for this
		if f := client.next(http2.FrameWindowUpdate).(*http2.WindowUpdateFrame); f.StreamID == 0 {
			connection += int(f.Increment)
		} else {
			stream += int(f.Increment)
		}
	}
	upload() // and not for this
	for connection < 120_000 {
		f := client.next(http2.FrameWindowUpdate).(*http2.WindowUpdateFrame)
		require.Zero(t, f.StreamID, "the stream itself gets nothing")
		connection += int(f.Increment)
	}
	client.request(3, true)
	client.send()
	app.headersOf(3)
	l.WriteWindowUpdate(1, 100_000)
	l.WriteWindowUpdate(0, 100_000)
	l.send()
	for n := 0; n < 120_000; {
		n += len(l.next(http2.FrameData).(*http2.DataFrame).Data())
	}
}

func TestAStreamThatComesLateToTheAppGetsAHigherNumber(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, false, append(me, "n", "1")...)
	client.WriteData(1, false, []byte("one"))
	client.WriteWindowUpdate(1, 77)
	client.request(3, true, "n", "3")
	client.send()
	app.headersOf(3)
	(<-sc.laptops).reset()
	assert.Equal(t, hpack.HeaderField{Name: "n", Value: "1"}, app.headersOf(5)[5])
	assert.Equal(t, "one", string(app.next(http2.FrameData).(*http2.DataFrame).Data()))
	f := app.next(http2.FrameWindowUpdate).(*http2.WindowUpdateFrame)
	assert.Equal(t, []uint32{5, 77}, []uint32{f.StreamID, f.Increment})
	client.WriteData(1, true, []byte("more"))
	client.request(5, false, "n", "5")
	client.WritePriority(5, http2.PriorityParam{StreamDep: 1})
	client.WriteRSTStream(5, http2.ErrCodeCancel)
	client.send()
	assert.Equal(t, uint32(5), app.next(http2.FrameData).Header().StreamID)
	assert.Equal(t, hpack.HeaderField{Name: "n", Value: "5"}, app.headersOf(7)[4])
	priority := app.next().(*http2.PriorityFrame)
	assert.Equal(t, []uint32{7, 5}, []uint32{priority.StreamID, priority.StreamDep})
	assert.Equal(t, uint32(7), app.next(http2.FrameRSTStream).Header().StreamID)
	app.headers(5, true, ":status", "200")
	app.headers(3, true, ":status", "200")
	app.headers(7, true, ":status", "200")
	app.send()
	client.headersOf(1)
	client.headersOf(3)
	client.headersOf(5)
	assert.Equal(t, 1, sc.fellBack)
}

func TestGoAwayOfTheAppLetsTheLaptopsStreamsLive(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, true)
	client.request(3, true)
	client.request(5, true, me...)
	client.send()
	l := sc.laptop(t)
	l.headersOf(5)
	app.headersOf(1)
	app.headersOf(3)
	app.WriteGoAway(1, http2.ErrCodeNo, []byte("bye"))
	app.send()
	f := client.next(http2.FrameGoAway).(*http2.GoAwayFrame)
	assert.Equal(t, uint32(5), f.LastStreamID)
	assert.Equal(t, "bye", string(f.DebugData()))
	r := client.next(http2.FrameRSTStream).(*http2.RSTStreamFrame)
	assert.Equal(t, []uint32{3, uint32(http2.ErrCodeRefusedStream)}, []uint32{r.StreamID, uint32(r.ErrCode)})
	app.headers(1, true, ":status", "200")
	app.send()
	client.headersOf(1)
	sc.app.CloseWrite()
	l.headers(5, false, ":status", "200")
	l.WriteData(5, true, []byte("late"))
	l.send()
	client.headersOf(5)
	assert.Equal(t, "late", string(client.next(http2.FrameData).(*http2.DataFrame).Data()))
	_, err := client.fr.ReadFrame()
	assert.Equal(t, io.EOF, err, "and then the client hears that the app has closed")
}

func TestPingIsTheAppsUnlessOnlyALaptopSpeaks(t *testing.T) {
	sc, client, app := begin(t)
	ping := func(n byte) {
		client.WritePing(false, [8]byte{n})
		client.send()
	}
	ping(1)
	assert.Equal(t, byte(1), app.next(http2.FramePing).(*http2.PingFrame).Data[0])
	client.request(1, true, me...)
	client.request(3, true)
	client.send()
	l := sc.laptop(t)
	l.headersOf(1)
	app.headersOf(3)
	ping(2)
	assert.Equal(t, byte(2), app.next(http2.FramePing).(*http2.PingFrame).Data[0])
	l.headers(1, false, ":status", "200")
	l.WriteData(1, false, []byte("x"))
	l.WritePing(false, [8]byte{9})
	l.send()
	client.headersOf(1)
	ping(3)
	assert.True(t, client.next(http2.FramePing).(*http2.PingFrame).IsAck())
	assert.Equal(t, byte(9), l.next(http2.FramePing).(*http2.PingFrame).Data[0], "a laptop's is answered here")
	app.headers(3, true, ":status", "200")
	app.send()
	client.headersOf(3)
	ping(4)
	assert.Equal(t, byte(4), app.next(http2.FramePing).(*http2.PingFrame).Data[0])
}

func TestAnErrorOnAMixedConnectionEndsItByGoAway(t *testing.T) {
	for name, c := range map[string]struct {
		spoil func(*peer)
		code  http2.ErrCode
	}{
		"a block that cannot be decoded": {func(c *peer) {
			c.WriteHeaders(http2.HeadersFrameParam{StreamID: 5, BlockFragment: []byte{0xff, 0xff, 0xff},
				EndHeaders: true})
		}, http2.ErrCodeCompression},
		"a stray CONTINUATION": {func(c *peer) { c.WriteContinuation(1, true, nil) }, http2.ErrCodeProtocol},
		"a short WINDOW_UPDATE": {func(c *peer) {
			c.WriteRawFrame(http2.FrameWindowUpdate, 0, 0,
				[]byte("abc"))
		}, http2.ErrCodeFrameSize},
	} {
		t.Run(name, func(t *testing.T) {
			sc, client, app := begin(t)
			client.request(1, true, me...)
			client.request(3, true)
			client.send()
			l := sc.laptop(t)
			l.headersOf(1)
			app.headersOf(3)
			c.spoil(client)
			client.send()
			f := client.next(http2.FrameGoAway).(*http2.GoAwayFrame)
			assert.Equal(t, c.code, f.ErrCode)
			_, err := client.fr.ReadFrame()
			assert.Equal(t, io.EOF, err)
		})
	}
}

func TestLaptopsLimitsAreKept(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, true, me...)
	client.send()
	l := sc.laptop(t, http2.Setting{ID: http2.SettingMaxConcurrentStreams, Val: 1},
		http2.Setting{ID: http2.SettingHeaderTableSize, Val: 0})
	l.headersOf(1)
	for !l.next(http2.FrameSettings).(*http2.SettingsFrame).IsAck() {
	}
	client.request(3, true, me...)
	client.request(5, true, me...)
	client.WriteRSTStream(3, http2.ErrCodeCancel)
	client.WritePing(false, [8]byte{1})
	client.send()
	app.next(http2.FramePing) // the laptop has nothing yet but the one
	l.headers(1, true, ":status", "200")
	l.send()
	l.headersOf(5)
	l.WriteGoAway(1, http2.ErrCodeNo, nil)
	l.send()
	l2 := sc.laptop(t)
	l2.headersOf(5)
	assert.Zero(t, sc.fellBack)
}

func TestWhatALaptopRefusesGoesToTheApp(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, false, me...)
	client.WriteData(1, false, []byte("body"))
	client.headers(1, true, "tail", "x")
	client.send()
	l := sc.laptop(t)
	l.headersOf(1)
	l.WriteRSTStream(1, http2.ErrCodeRefusedStream)
	l.send()
	app.headersOf(1)
	assert.Equal(t, "body", string(app.next(http2.FrameData).(*http2.DataFrame).Data()))
	assert.Equal(t, []hpack.HeaderField{{Name: "tail", Value: "x"}}, app.headersOf(1))
}
