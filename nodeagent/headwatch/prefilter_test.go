// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"encoding/binary"
	"fmt"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/ringbuf"
	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/rawip"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

const shot = 2 // TC_ACT_SHOT

// bench runs the program on packets that never were on a wire.
type bench struct {
	*Port
	decider *decider
	reader  *ringbuf.Reader
	client  netip.AddrPort
	app     netip.AddrPort
}

func newBench(t testing.TB) *bench { return newBenchFor(t, nil) }

// newBenchFor returns a bench whose port has a policy. Nobody serves.
func newBenchFor(t testing.TB, policy Policy) *bench {
	testnet.RequireRoot(t)
	require.NoError(t, rlimit.RemoveMemlock())
	objs, err := bpf.LoadHeadwatch(Timeout)
	require.NoError(t, err)
	t.Cleanup(func() { _ = objs.Close() })
	pod := NewPod(Config{Log: slog.New(slog.DiscardHandler), Namespace: nowhere{}})
	pod.program = &program{pod: pod, objs: objs, injector: rawip.NewInjector(nowhere{})}
	b := &bench{
		Port:   &Port{pod: pod, number: 80, policy: policy},
		client: netip.MustParseAddrPort("198.18.0.1:40000"), app: netip.MustParseAddrPort("198.18.0.2:80"),
	}
	pod.ports.Store(b.number, b.Port)
	b.sockets.Store(&map[bpf.FlowKey]sockdiag.Socket{})
	b.decider = newDecider(pod.program)
	b.reader, err = ringbuf.NewReader(objs.Events)
	require.NoError(t, err)
	t.Cleanup(func() { _ = b.reader.Close() })
	b.reader.SetDeadline(time.Unix(1, 0)) // never waits
	return b
}

func (b *bench) key() bpf.FlowKey { return bpf.NewFlowKey(b.client, b.app) }

func (b *bench) objs() *bpf.Headwatch { return b.pod.program.objs }

// look looks for what a rule needs.
func (b *bench) look(rule match.Rule) error { return b.lookFor([]match.Needle{rule.Needle()}, false) }

// begin forgets everything about the flow.
func (b *bench) begin(t testing.TB) {
	require.NoError(t, b.pod.program.heartbeat())
	require.NoError(t, b.objs().Flows.Put(b.key(), bpf.Flow{}))
	b.decider.forget(b.key())
}

// run gives a packet to the program, and reports whether it did not pass.
func (b *bench) run(t testing.TB, packet []byte) (queued bool) {
	ret, err := b.objs().Headwatch.Run(&ebpf.RunOptions{Data: packet})
	require.NoError(t, err)
	return ret == shot
}

// send gives a segment to the program. If it is queued, it decides; taken reports whether the rule has the
// request. What was queued and released counts as delivered, like what has passed.
func (b *bench) send(t testing.TB, claims func(match.Head) bool, seq, ack uint32, payload []byte) (queued,
	taken bool) {
	queued = b.run(t, frame(b.client, b.app, seq, ack, payload))
	var record ringbuf.Record
	for {
		if err := b.reader.ReadInto(&record); err != nil {
			require.ErrorIs(t, err, os.ErrDeadlineExceeded)
			return queued, taken
		}
		e, packet, complete := decode(record.RawSample)
		require.True(t, complete)
		if e.Kind == bpf.EventCopied {
			b.decider.keep(e, packet[e.Payload:])
			continue
		}
		require.True(t, queued)
		head, end := b.decider.assemble(e, packet[e.Payload:])
		b.decider.request.Reset()
		n, err := b.decider.request.Parse(head)
		if taken = err == nil && n > 0 && claims(&b.decider.request); !taken {
			_ = b.decider.release(e, end, err == nil && n == 0, packet) // there is nobody to inject into
		}
	}
}

// frame is an Ethernet frame with an IPv4 packet with a TCP segment.
func frame(from, to netip.AddrPort, seq, ack uint32, payload []byte) []byte {
	f := make([]byte, 14+20+20, 14+20+20+len(payload))
	binary.BigEndian.PutUint16(f[12:], unix.ETH_P_IP)
	ip, tcp := f[14:], f[34:]
	ip[0], ip[8], ip[9] = 0x45, 64, unix.IPPROTO_TCP
	binary.BigEndian.PutUint16(ip[2:], uint16(40+len(payload)))
	copy(ip[12:], from.Addr().AsSlice())
	copy(ip[16:], to.Addr().AsSlice())
	binary.BigEndian.PutUint16(tcp, from.Port())
	binary.BigEndian.PutUint16(tcp[2:], to.Port())
	binary.BigEndian.PutUint32(tcp[4:], seq)
	binary.BigEndian.PutUint32(tcp[8:], ack)
	tcp[12], tcp[13] = 5<<4, 0x18
	return append(f, payload...)
}

// dice makes rules and requests that are often close to each other.
type dice struct{ *rand.Rand }

func (d dice) of(words ...string) string { return words[d.IntN(len(words))] }

func (d dice) rule(t testing.TB) match.Rule {
	spec := &v1alpha1.HTTPMatch{}
	for range d.IntN(3) {
		h := v1alpha1.HeaderMatch{Name: d.of("x-user", "X-User", "x-u", "host", "x-user-id",
			strings.Repeat("n", 70))}
		if d.IntN(2) == 0 {
			v := d.of("ann", "bob", "a", "", "anna\t", strings.Repeat("v", 90))
			h.Value = &v
		} else {
			v := d.of("ann", "ann.*", "(ann|bob)", ".*", "(?i)ANN", "^ann$", "a(n)+", "an+ ?", " x",
				"ann\ufffd", "a|b", "\\Qa.b\\E", "")
			h.Regex = &v
		}
		spec.Headers = append(spec.Headers, h)
	}
	if d.IntN(3) == 0 {
		p := d.of("/", "/a", "/api/v1", "/"+strings.Repeat("p", 80))
		switch d.IntN(3) {
		case 0:
			spec.Path = &v1alpha1.PathMatch{Equal: &p}
		case 1:
			spec.Path = &v1alpha1.PathMatch{Prefix: &p}
		case 2:
			e := d.of("/a.*", ".*", "/(api|x)/.*", "(?i)/API.*", "", "/")
			spec.Path = &v1alpha1.PathMatch{Regex: &e}
		}
	}
	rule, err := match.FromSpec(spec)
	require.NoError(t, err)
	return rule
}

func (d dice) request() []byte {
	var s strings.Builder
	s.WriteString(d.of("GET", "POST", "get", "X-Y", "CONNECT", "OPTIONS", "P", "G T") + " ")
	s.WriteString(d.of("/", "/a", "/a?b", "/api/v1", "/api/v1/x?y=/a", "http://h", "http://h/a",
		"http://h?x", "*", "h:80", "/"+strings.Repeat("p", 100)))
	s.WriteString(d.of(" HTTP/1.1\r\n", " HTTP/1.1\r\n", " HTTP/1.0\r\n", " HTTP/2.0\r\n", "\r\n",
		" HTTP/1.1\n"))
	for range d.IntN(6) {
		s.WriteString(d.of("x-user", "X-USER", "x-User", "x-u", "Host", "x-user-id", "Accept",
			strings.Repeat("N", 70), "x user"))
		s.WriteString(d.of(":", ": ", ":\t ", " :", ":  "))
		s.WriteString(d.of("ann", "bob", "anna", "ANN", "a", "ann, bob", "", "an", "annn ", "ann\xff",
			"a.b", "x-user: ann", "\u00e9", strings.Repeat("v", 90), strings.Repeat("v", 900)))
		s.WriteString(d.of("", "", " ", "\t\t") + d.of("\r\n", "\r\n", "\r\n", "\r\n", "\n", "\r\n ", "\r\r\n"))
	}
	s.WriteString("\r\n")
	s.WriteString(d.of("", "", "body", "GET / HTTP/1.1\r\n\r\n"))
	return []byte(s.String())
}

// span is some of a request.
type span struct{ from, to int }

// longest is nearly the longest packet that BPF_PROG_TEST_RUN takes of every kernel.
const longest = 3000

func (d dice) cut(n int) []span {
	cuts := []int{0, n}
	for at := longest; at < n; at += longest {
		cuts = append(cuts, at)
	}
	for range d.IntN(5) {
		cuts = append(cuts, d.IntN(n+1))
	}
	slices.Sort(cuts)
	cuts = slices.Compact(cuts)
	var parts []span
	for i := range cuts[1:] {
		parts = append(parts, span{cuts[i], cuts[i+1]})
	}
	switch d.IntN(4) {
	case 0: // packets overtake one another
		d.Shuffle(len(parts), func(i, j int) { parts[i], parts[j] = parts[j], parts[i] })
	case 1: // and are repeated, perhaps with more in them
		at := d.IntN(len(parts))
		parts = slices.Insert(parts, at+1, span{parts[at].from, min(n, parts[at].to+d.IntN(20))})
	}
	return parts
}

// trial returns what is wrong, if the kernel passes a request that the parser and the rule have. It makes a few
// requests, a given one among them.
func (b *bench) trial(t testing.TB, d dice, given []byte) string {
	rule := d.rule(t)
	if err := b.look(rule); err != nil {
		return err.Error()
	}
	for range 20 {
		if wrong := b.ask(t, d, rule, d.request()); wrong != "" {
			return wrong
		}
		if len(given) > 0 {
			if wrong := b.ask(t, d, rule, given); wrong != "" {
				return wrong
			}
		}
	}
	return ""
}

func (b *bench) ask(t testing.TB, d dice, rule match.Rule, request []byte) string {
	b.decider.request.Reset()
	n, err := b.decider.request.Parse(request)
	matches := err == nil && n > 0 && rule.Match(&b.decider.request)
	b.begin(t)
	seq, ack := d.Uint32(), d.Uint32()
	// Not only the first request that is seen of a connection.
	known := d.IntN(2) == 0
	if known {
		before := []byte("GET /before HTTP/1.1\r\nHost: h\r\n\r\n")
		b.send(t, func(match.Head) bool { return false }, seq, ack, before)
		seq, ack = seq+uint32(len(before)), ack+1+d.Uint32N(1000)
	}
	parts := d.cut(len(request))
	if !known && (parts[0].from != 0 || parts[0].to == 1 && !('A' <= request[0] && request[0] <= 'Z')) {
		return "" // nobody can tell where it begins
	}
	delivered := make([]bool, len(request))
	for _, p := range parts {
		if _, taken := b.send(t, rule.Match, seq+uint32(p.from), ack, request[p.from:p.to]); taken {
			if !matches {
				return fmt.Sprintf("taken over, and should not be: %q %v", request, rule)
			}
			return ""
		}
		for i := p.from; i < p.to; i++ {
			delivered[i] = true
		}
		if matches && !slices.Contains(delivered[:n], false) {
			return fmt.Sprintf("the app has seen %q in the parts %v, known %v, which is of: %v",
				request[:n], parts, known, rule)
		}
	}
	return ""
}

// The kernel may queue what does not match, and never passes what does, however it is cut, repeated and mixed up.
func TestPrefilterMissesNothing(t *testing.T) {
	b, trials := newBench(t), uint64(500)
	if testing.Short() {
		trials = 100
	}
	for seed := range trials {
		if wrong := b.trial(t, dice{rand.New(rand.NewPCG(seed, 1))}, nil); wrong != "" {
			t.Fatalf("seed %d: %s", seed, wrong)
		}
	}
}

func FuzzPrefilter(f *testing.F) {
	f.Add(uint64(1), uint64(2), []byte(nil))
	for i, request := range []string{
		"GET / HTTP/1.1\r\nHost: h\r\nX-User: ann\r\n\r\n",
		"POST http://h/api/v1?x HTTP/1.0\r\nx-user:\t ann \r\nContent-Length: 4\r\n\r\nbody",
		"OPTIONS * HTTP/1.1\r\nx-user: bob\r\n folded\r\nx-user-id: a\r\n\r\nGET /a HTTP/1.1\r\n\r\n",
		"CONNECT h:80 HTTP/1.1\nx-u: ann\r\r\n\r\n",
	} {
		f.Add(uint64(i), uint64(3), []byte(request))
	}
	b := newBench(f)
	f.Fuzz(func(t *testing.T, x, y uint64, request []byte) {
		if len(request) > 1<<14 {
			return
		}
		if wrong := b.trial(t, dice{rand.New(rand.NewPCG(x, y))}, request); wrong != "" {
			t.Fatal(wrong)
		}
	})
}
