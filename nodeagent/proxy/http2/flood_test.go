// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"bytes"
	"io"
	"os"
	"regexp"
	"runtime"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
)

// flood is connections whose ends stall unless they are drained, and one budget for them.
type flood struct {
	t      *testing.T
	budget budget.Budget
	scenes []*scene
	before uint64
}

func newFlood(t *testing.T) *flood { return &flood{t: t, before: heap()} }

func heap() uint64 {
	runtime.GC()
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return m.HeapAlloc
}

// connect starts a connection whose app reads everything, and says SETTINGS first.
func (f *flood) connect(app ...http2.Setting) (*scene, *script) {
	sc := startScene(f.t, &scene{stalls: true, budget: &f.budget})
	f.scenes = append(f.scenes, sc)
	server, c := newScript(), newScript()
	server.WriteSettings(app...)
	server.WriteSettingsAck()
	sc.app.Write(server.take())
	go io.Copy(io.Discard, sc.app)
	c.WriteString(http2.ClientPreface)
	c.WriteSettings()
	c.WriteSettingsAck()
	return sc, c
}

// send writes until the connection takes no more for a while, or has ended.
func (f *flood) send(sc *scene, p []byte) (all bool) {
	done := make(chan error, 1)
	go func() {
		_, err := sc.client.Write(p)
		done <- err
	}()
	for {
		before := sc.client.out.unread()
		select {
		case err := <-done:
			return err == nil
		case <-time.After(300 * time.Millisecond):
			if sc.client.out.unread() == before && before > 0 {
				return false
			}
		}
	}
}

func (p *pipe) unread() int {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.bytes)
}

// read waits until the connection has read what was sent.
func (f *flood) read(sc *scene) {
	require.Eventually(f.t, func() bool { return sc.client.out.unread() == 0 }, 20*time.Second,
		time.Millisecond)
}

// grew returns by how many MiB the heap grew, and logs the process's peak. It then ends all.
func (f *flood) grew() int {
	grown := max(0, int(heap())-int(f.before)) >> 20
	status, _ := os.ReadFile("/proc/self/status")
	f.t.Logf("%d connections: heap grew by %d MiB, budget holds %d KiB, peak RSS %s", len(f.scenes), grown,
		f.budget.Held()>>10, regexp.MustCompile(`VmHWM:\s*(.*)`).FindSubmatch(status)[1])
	for _, sc := range f.scenes {
		sc.client.reset()
		sc.app.reset()
		sc.wait(f.t)
	}
	assert.Zero(f.t, f.budget.Held(), "what is held is given back")
	return grown
}

// bomb is a request with 30,000 fields of one byte each.
func (s *script) bomb(id uint32, end bool, list ...string) {
	list = append([]string{":method", "POST", ":scheme", "http", ":path", "/", ":authority", "o"}, list...)
	b := s.fields(append(list, "a", "")...)
	ref := s.fields("a", "")
	b = append(b, bytes.Repeat(ref[:1], 30_000)...)
	s.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: b[:16000], EndStream: end})
	s.WriteContinuation(id, false, b[16000:30000])
	s.WriteContinuation(id, true, b[30000:])
}

func TestManyFieldsInFewBytesAreNotKept(t *testing.T) {
	f := newFlood(t)
	for range 50 { // nothing is diverted
		sc, c := f.connect()
		c.bomb(1, true)
		f.send(sc, c.take())
		f.read(sc)
	}
	for range 10 { // something is
		sc, c := f.connect()
		c.request(1, false, me...)
		for id := range uint32(50) {
			c.bomb(2*id+3, false, me...)
		}
		f.send(sc, c.take())
	}
	assert.LessOrEqual(t, f.grew(), 16)
}

func TestRequestsForALaptopThatHangsAreBounded(t *testing.T) {
	f := newFlood(t)
	var wg sync.WaitGroup
	big := string(bytes.Repeat([]byte("~"), 15_000))
	for range 40 {
		sc, c := f.connect()
		go io.Copy(io.Discard, sc.client)
		for id := range uint32(300) {
			c.request(2*id+1, false, append(me, "x", big)...)
		}
		p := c.take()
		wg.Go(func() { f.send(sc, p) })
	}
	wg.Wait()
	assert.LessOrEqual(t, f.grew(), 130)
	assert.LessOrEqual(t, f.budget.Held(), int64(budget.Bytes))
	assert.NotZero(t, f.budget.Times(budget.Memory))
}

func TestMoreStreamsThanAllowedAreRefused(t *testing.T) {
	sc, client, app := begin(t)
	for id := range uint32(maxDiverted + 1) {
		client.request(2*id+1, false, me...)
	}
	client.request(2*maxDiverted+3, true)
	client.send()
	r := client.next(http2.FrameRSTStream).(*http2.RSTStreamFrame)
	assert.Equal(t, []uint32{2*maxDiverted + 1, uint32(http2.ErrCodeRefusedStream)},
		[]uint32{r.StreamID, uint32(r.ErrCode)})
	app.headersOf(2*maxDiverted + 3)
	assert.Equal(t, maxDiverted+1, sc.matches)
}

// slack is how many MiB a heap may grow by besides what a flood makes it keep: the test's own buffers,
// which the race detector makes larger.
const slack = 8

func TestAClientThatResetsManyStreamsIsToldToGo(t *testing.T) {
	f := newFlood(t)
	sc, c := f.connect()
	c.request(1, false, me...)
	for id := range uint32(50_000) {
		c.request(2*id+3, false, me...)
		c.WriteRSTStream(2*id+3, http2.ErrCodeCancel)
	}
	p := c.take()
	go sc.client.Write(p)
	client := newPeer(t, sc.client)
	assert.Equal(t, http2.ErrCodeEnhanceYourCalm, client.next(http2.FrameGoAway).(*http2.GoAwayFrame).ErrCode)
	assert.LessOrEqual(t, f.grew(), slack)
	assert.NotZero(t, f.budget.Times(budget.Resets))
}

func TestAClientThatDoesNotReadIsNotReadOn(t *testing.T) {
	for name, flood := range map[string]func(c *script, i int){
		"PING":     func(c *script, _ int) { c.WritePing(false, [8]byte{1}) },
		"refusals": func(c *script, i int) { c.request(uint32(2*i+3), true, me...) },
		"grants": func(c *script, _ int) {
			c.WriteDataPadded(1, false, nil, make([]byte, 1))
		},
	} {
		t.Run(name, func(t *testing.T) {
			f := newFlood(t)
			sc, c := f.connect()
			c.request(1, false, me...)
			f.send(sc, c.take())
			n, wrote := 200_000, 0
			for wrote < n {
				for range 2000 {
					flood(c, wrote)
					wrote++
				}
				if !f.send(sc, c.take()) {
					break
				}
			}
			assert.Less(t, wrote, n, "the client is held up")
			assert.LessOrEqual(t, f.grew(), slack)
		})
	}
}

func TestATableIsNotLargerThanIsDecoded(t *testing.T) {
	f := newFlood(t)
	sc, c := f.connect(http2.Setting{ID: http2.SettingHeaderTableSize, Val: 1 << 30})
	c.enc.SetMaxDynamicTableSizeLimit(1 << 30)
	c.enc.SetMaxDynamicTableSize(1 << 30)
	go io.Copy(io.Discard, sc.client)
	for i := range 1000 {
		v := bytes.Repeat([]byte("~"), 14_000)
		v[0], v[1] = byte('a'+i%26), byte('a'+i/26%26)
		c.request(uint32(2*i+1), true, "big", string(v))
		f.send(sc, c.take())
	}
	c.enc = nil
	assert.LessOrEqual(t, f.grew(), slack)
}

// TestABlockOfManyFramesIsNotWaitedFor sends a header block whose end does not come.
func TestABlockOfManyFramesIsNotWaitedFor(t *testing.T) {
	for name, mixed := range map[string]bool{"of the app alone": false, "of app and laptop": true} {
		t.Run(name, func(t *testing.T) {
			_, client, app := begin(t)
			if mixed {
				client.request(1, true, me...)
			}
			client.WriteHeaders(http2.HeadersFrameParam{StreamID: 3, BlockFragment: []byte{0x83}})
			for range maxContinuations + 1 {
				client.WriteContinuation(3, false, nil)
			}
			client.send()
			if mixed {
				f := client.next(http2.FrameGoAway).(*http2.GoAwayFrame)
				assert.Equal(t, http2.ErrCodeEnhanceYourCalm, f.ErrCode)
				return
			}
			raw := make([]byte, 10+9*(maxContinuations+1))
			_, err := io.ReadFull(app.end, raw)
			assert.NoError(t, err, "the app gets them at once")
		})
	}
}

func TestIncompleteHeadersBeyondTheBudgetPassUnread(t *testing.T) {
	f := newFlood(t)
	for range 1000 {
		sc, c := f.connect()
		go io.Copy(io.Discard, sc.client)
		c.WriteHeaders(http2.HeadersFrameParam{StreamID: 1, BlockFragment: make([]byte, 16_000)})
		c.WriteContinuation(1, false, make([]byte, 16_000))
		c.WriteContinuation(1, false, make([]byte, 16_000))
		f.send(sc, c.take())
		f.read(sc)
	}
	assert.LessOrEqual(t, f.budget.Held(), int64(budget.Bytes))
	assert.NotZero(t, f.budget.Times(budget.Memory))
	assert.LessOrEqual(t, f.grew(), 130)
}
