// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/match"
)

const request = "GET / HTTP/1.1\r\nHost: h\r\nx-user: ann\r\n\r\n"

// ann is the rule that request matches.
func ann(t testing.TB) match.Rule {
	value := "ann"
	m, err := match.FromSpec(
		&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-user", Value: &value}}})
	require.NoError(t, err)
	return m
}

// frame6 is an Ethernet frame with an IPv6 packet with extension headers, given by their types and
// contents, and a TCP segment.
func frame6(from, to netip.AddrPort, extensions []extension, segment []byte) []byte {
	f := make([]byte, 14+40)
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IPV6)
	f[14], f[14+7] = 0x60, 64
	copy(f[14+8:], from.Addr().AsSlice())
	copy(f[14+24:], to.Addr().AsSlice())
	next := 14 + 6 // where the type of what comes next is written
	for _, e := range extensions {
		f[next] = e.kind
		next = len(f)
		f = append(f, append([]byte{0, byte(len(e.rest)+2)/8 - 1}, e.rest...)...)
	}
	f[next] = unix.IPPROTO_TCP
	f = append(f, segment...)
	binary.BigEndian.PutUint16(f[14+4:], uint16(len(f)-14-40))
	return f
}

const routing = 43 // header of RFC 8200 §4.4

func mapped(a netip.AddrPort) netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom16(a.Addr().As16()), a.Port())
}

type extension struct {
	kind byte
	rest []byte
}

func TestPacketsThatAreQueuedAndThatAreNot(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.look(ann(t)))
	client6, app6 := netip.MustParseAddrPort("[2001:db8::1]:40000"), netip.MustParseAddrPort("[2001:db8::2]:80")
	segment := frame(b.client, b.app, 1000, 1, []byte(request))[34:]
	pad := []byte{1, 4, 0, 0, 0, 0}
	many := func(n int) (all []extension) {
		for range n {
			all = append(all, extension{unix.IPPROTO_DSTOPTS, pad})
		}
		return all
	}
	with4 := func(change func(ip []byte)) []byte {
		f := frame(b.client, b.app, 1000, 1, []byte(request))
		change(f[14:])
		return f
	}
	for _, c := range []struct {
		name   string
		packet []byte
		queued bool
	}{
		{"a request", with4(func([]byte) {}), true},
		{"with padding of the link behind it", append(with4(func([]byte) {}), 0, 0, 0), true},
		{"that may not be fragmented", with4(func(ip []byte) { ip[6] = 0x40 }), true},
		{"the first fragment of one", with4(func(ip []byte) { ip[6] = 0x20 }), false},
		{"a later fragment", with4(func(ip []byte) { ip[7] = 1 }), false},
		{"for another port", with4(func(ip []byte) { ip[23] = 81 }), false},
		{"from somebody else", with4(func(ip []byte) { ip[15] = 9 }), false},
		{"of UDP", with4(func(ip []byte) { ip[9] = unix.IPPROTO_UDP }), false},
		{"whose TCP header ends behind the packet",
			with4(func(ip []byte) { ip[3] = 41; ip[32] = 0xf0 }), false},
		{"cut off in the TCP header", with4(func([]byte) {})[:14+20+10], false},
		{"IPv6", frame6(client6, app6, nil, segment), true},
		{"IPv6 with options for the nodes on the way",
			frame6(client6, app6, []extension{{unix.IPPROTO_HOPOPTS, pad}}, segment), true},
		{"IPv6 with options for the destination", frame6(client6, app6, many(1), segment), true},
		{"IPv6 with as many extension headers as are read", frame6(client6, app6, many(8), segment), true},
		{"IPv6 with more than that", frame6(client6, app6, many(9), segment), false},
		{"IPv6 by way of another node", frame6(client6, app6,
			[]extension{{routing, []byte{0, 1, 0, 0, 0, 0}}}, segment), false},
		{"IPv6 that has come by way of another node", frame6(client6, app6,
			[]extension{{routing, []byte{0, 0, 0, 0, 0, 0}}}, segment), true},
		{"IPv6 with IPv4-mapped addresses", frame6(mapped(b.client), mapped(b.app), nil, segment), false},
		{"IPv6 in a fragment", frame6(client6, app6,
			[]extension{{unix.IPPROTO_FRAGMENT, []byte{0, 1, 0, 0, 0, 7}}}, segment), false},
		{"IPv6 with options and in a fragment",
			frame6(client6, app6, []extension{{unix.IPPROTO_HOPOPTS, pad},
				{unix.IPPROTO_FRAGMENT, []byte{0, 1, 0, 0, 0, 7}}}, segment), false},
		{"IPv6 that is encrypted", frame6(client6, app6, []extension{{unix.IPPROTO_ESP, pad}}, segment), false},
	} {
		t.Run(c.name, func(t *testing.T) {
			b.begin(t)
			require.NoError(t, b.objs().Flows.Put(bpf.NewFlowKey(client6, app6), bpf.Flow{}))
			assert.Equal(t, c.queued, b.run(t, c.packet))
		})
	}
}

// What repeats something that the app has, or is made up, does not count, and does not keep the
// next request from being seen.
func TestWhatIsNoRequestDoesNotHideTheNext(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.look(ann(t)))
	nobody := func(match.Head) bool { return false }
	before := []byte("GET /before HTTP/1.1\r\nHost: h\r\n\r\n")
	const seq, ack = 0xfffffff0, 7 // wraps around
	begins := uint32(seq) + uint32(len(before))
	for _, c := range []struct {
		name string
		send func()
	}{
		{"nothing", func() {}},
		{"an acknowledgement", func() { b.send(t, nobody, begins, ack+100, nil) }},
		{"a keep-alive probe without data", func() { b.send(t, nobody, begins-1, ack+100, nil) }},
		{"a keep-alive probe with a byte", func() { b.send(t, nobody, begins-1, ack+100, []byte{0}) }},
		{"the request before once more", func() { b.send(t, nobody, seq, ack, before) }},
		{"its end once more", func() { b.send(t, nobody, begins-2, ack+100, []byte("\r\n")) }},
		{"a probe of the window", func() { b.send(t, nobody, begins-1, ack, nil) }},
	} {
		t.Run(c.name, func(t *testing.T) {
			for known, first := range map[string]func(){
				"of a connection that was seen":     func() { b.send(t, nobody, seq, ack, before) },
				"of a connection that was not seen": func() {},
			} {
				b.begin(t)
				first()
				c.send()
				queued, taken := b.send(t, func(match.Head) bool { return true }, begins, ack+100,
					[]byte(request))
				if c.name == "its end once more" && known == "of a connection that was not seen" {
					continue // nobody can tell that from the beginning of something
				}
				assert.True(t, queued && taken, known)
			}
		})
	}
	// It is queued once more when it is repeated, and goes to the app when it is not decided on.
	b.begin(t)
	run := func() bool { return b.run(t, frame(b.client, b.app, seq, ack, []byte(request))) }
	assert.True(t, run())
	assert.True(t, run(), "repeated")
	var f bpf.Flow
	require.NoError(t, b.objs().Flows.Lookup(b.key(), &f))
	f.QueuedAt -= uint64(Timeout)
	require.NoError(t, b.objs().Flows.Put(b.key(), &f))
	assert.False(t, run(), "not decided on")
	assert.False(t, run(), "the app has it")
}

// BenchmarkPacket is what the program costs a packet that arrives, by the kernel's own clock.
func BenchmarkPacket(b *testing.B) {
	long := []byte("GET /some/path?of=a&request=1 HTTP/1.1\r\nHost: shop.example.com\r\nUser-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:140.0) Gecko/20100101 Firefox/140.0\r\n" +
		"Accept: text/html,application/xhtml+xml,application/xml;q=0.9,*/*;q=0.8\r\nAccept-Language: en\r\nAccept-Encoding: gzip, deflate\r\n" +
		"Cookie: session=0123456789abcdef0123456789abcdef0123456789abcdef\r\nConnection: keep-alive\r\n\r\n")
	body := make([]byte, 1400)
	for _, c := range []struct {
		name    string
		watched bool
		flow    bpf.Flow
		payload []byte
		repeat  int // where the next one is like the first
	}{
		{"of another connection", false, bpf.Flow{}, long, 10_000},
		{"acknowledgement of a watched connection", true, bpf.Flow{}, nil, 10_000},
		{"body of a watched connection", true,
			bpf.Flow{Phase: bpf.PhaseRest, Next: 1000, Furthest: 1000, Ack: 1}, body, 10_000},
		{"head without a match", true, bpf.Flow{}, long, 1},
		{"head that is queued", true, bpf.Flow{}, []byte(request), 1},
	} {
		b.Run(c.name, func(b *testing.B) {
			w := newBench(b)
			require.NoError(b, w.look(ann(b)))
			packet := frame(w.client, w.app, 1000, 1, c.payload)
			var total float64
			n := 0
			for b.Loop() {
				b.StopTimer()
				w.begin(b)
				if !c.watched {
					require.NoError(b, w.objs().Flows.Delete(w.key()))
				} else {
					require.NoError(b, w.objs().Flows.Put(w.key(), c.flow))
				}
				b.StartTimer()
				_, took, err := w.objs().Headwatch.Benchmark(packet, c.repeat, nil)
				require.NoError(b, err)
				total += float64(took.Nanoseconds())
				n++
				for {
					if _, err := w.reader.Read(); err != nil {
						break
					}
				}
			}
			b.ReportMetric(total/float64(n), "kernel-ns/packet")
			b.ReportMetric(float64(len(c.payload)), "bytes")
		})
	}
}
