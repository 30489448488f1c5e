// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// strict is the policy that ends each connection it is asked about.
type strict struct {
	asked, ended int
	err          error // of End
}

func (s *strict) Verdict(match.Head) Verdict { s.asked++; return End }

func (s *strict) End(*sockdiag.Socket) error { s.ended++; return s.err }

// nowhere is a namespace that cannot be entered.
type nowhere struct{}

func (nowhere) Do(func() error) error { return errors.New("it is gone") }

// queue sends a request that is queued, and returns what the decider is told.
func (b *bench) queue(t *testing.T) []byte {
	t.Helper()
	require.NoError(t, b.look(ann(t)))
	b.begin(t)
	b.sockets.Store(&map[bpf.FlowKey]sockdiag.Socket{b.key(): {}})
	require.True(t, b.run(t, frame(b.client, b.app, 1000, 1, []byte(request))))
	record, err := b.reader.Read()
	require.NoError(t, err)
	return record.RawSample
}

func (b *bench) flow(t *testing.T) (f bpf.Flow) {
	t.Helper()
	require.NoError(t, b.objs().Flows.Lookup(b.key(), &f))
	return f
}

func TestVerdictInTimeEndsTheConnection(t *testing.T) {
	policy := &strict{}
	b := newBenchFor(t, policy)
	b.decider.packet(b.queue(t))
	assert.Equal(t, strict{asked: 1, ended: 1}, *policy)
	assert.Zero(t, b.pod.cfg.Counters.Released.Load())
	assert.ErrorIs(t, b.objs().Flows.Lookup(b.key(), &bpf.Flow{}), ebpf.ErrKeyNotExist, "it is forgotten")
}

func TestConnectionThatCannotBeEndedGoesOn(t *testing.T) {
	policy := &strict{err: errors.New("not today")}
	b := newBenchFor(t, policy)
	b.decider.packet(b.queue(t))
	assert.Equal(t, 1, policy.ended)
	assert.EqualValues(t, 1, b.pod.cfg.Counters.Released.Load())
	assert.Equal(t, bpf.PhaseRest, b.flow(t).Phase)
}

// A verdict is late if the kernel may have passed the packet before it was prolonged: the app has the request
// then, and ending its connection would lose the answer. The machine may stop this process at any point, so the
// clock is read once more after the kernel was told.
func TestVerdictThatComesTooLateEndsNothing(t *testing.T) {
	for name, late := range map[string]struct {
		before, after time.Duration // how long after the packet was queued the kernel is told, and was told
	}{
		"before the kernel is told": {Timeout, Timeout},
		"while the kernel is told":  {Timeout - 1, Timeout},
		"long after":                {Timeout / 2, time.Hour},
	} {
		t.Run(name, func(t *testing.T) {
			policy := &strict{}
			b := newBenchFor(t, policy)
			sample := b.queue(t)
			queued := time.Duration(b.flow(t).QueuedAt)
			readings := []time.Duration{queued + late.before, queued + late.after}
			b.decider.clock = func() (now time.Duration, err error) {
				now, readings = readings[0], readings[1:]
				return now, nil
			}
			b.decider.packet(sample)
			assert.Empty(t, readings, "the clock was read twice")
			assert.Equal(t, strict{asked: 1}, *policy)
			assert.EqualValues(t, 1, b.pod.cfg.Counters.Released.Load())
			assert.Equal(t, bpf.PhaseRest, b.flow(t).Phase, "the connection goes on")
		})
	}
	t.Run("but just in time does", func(t *testing.T) {
		policy := &strict{}
		b := newBenchFor(t, policy)
		sample := b.queue(t)
		queued := time.Duration(b.flow(t).QueuedAt)
		b.decider.clock = func() (time.Duration, error) { return queued + Timeout - 1, nil }
		b.decider.packet(sample)
		assert.Equal(t, strict{asked: 1, ended: 1}, *policy)
	})
}

func TestVerdictOnAPacketThatHasPassedEndsNothing(t *testing.T) {
	policy := &strict{}
	b := newBenchFor(t, policy)
	sample := b.queue(t)
	f := b.flow(t)
	f.QueuedAt -= uint64(Timeout)
	require.NoError(t, b.objs().Flows.Put(b.key(), f))
	require.False(t, b.run(t, frame(b.client, b.app, 1000, 1, []byte(request))), "it passes when it is repeated")
	b.decider.packet(sample)
	assert.Equal(t, strict{asked: 1}, *policy)
}

func TestClosedPortAsksNobody(t *testing.T) {
	policy := &strict{}
	b := newBenchFor(t, policy)
	sample := b.queue(t)
	b.closed = true
	b.decider.packet(sample)
	assert.Zero(t, policy.asked)
	assert.Equal(t, bpf.PhaseRest, b.flow(t).Phase)
}

// Two ports of a pod have automatons of their own, and connections may come from the same client's port.
func TestPortsOfAPodHaveRulesOfTheirOwn(t *testing.T) {
	b := newBench(t)
	require.NoError(t, b.look(ann(t)))
	other := &bench{Port: &Port{pod: b.pod, number: 81}, reader: b.reader, decider: b.decider,
		client: b.client, app: netip.AddrPortFrom(b.app.Addr(), 81)}
	require.NoError(t, other.lookFor([]match.Needle{{Path: "/other"}}, false))
	b.begin(t)
	other.begin(t)
	paths := []byte("GET /other HTTP/1.1\r\nHost: h\r\n\r\n")
	assert.False(t, b.run(t, frame(b.client, b.app, 1, 1, paths)))
	assert.True(t, other.run(t, frame(other.client, other.app, 1, 1, paths)))
	other.begin(t)
	assert.False(t, other.run(t, frame(other.client, other.app, 1, 1, []byte(request))))
	b.begin(t)
	assert.True(t, b.run(t, frame(b.client, b.app, 1, 1, []byte(request))))
	// Nothing of one is left when its port is no longer watched.
	other.begin(t)
	require.NoError(t, b.objs().Ports.Delete(other.number))
	require.NoError(t, b.pod.program.forget(other.number))
	assert.False(t, other.run(t, frame(other.client, other.app, 1, 1, paths)))
	assert.ErrorIs(t, b.objs().Flows.Lookup(other.key(), &bpf.Flow{}), ebpf.ErrKeyNotExist)
	assert.NoError(t, b.objs().Flows.Lookup(b.key(), &bpf.Flow{}))
}

func TestAllConnectionsOfAPort(t *testing.T) {
	const ack, fin, rst = 0x10, 0x01, 0x04
	b := newBench(t)
	watched := func() bool { return b.objs().Flows.Lookup(b.key(), &bpf.Flow{}) == nil }
	send := func(seq uint32, flags byte, payload string) bool {
		f := frame(b.client, b.app, seq, 1, []byte(payload))
		f[34+13] = flags
		return b.run(t, f)
	}
	drain := func() {
		for {
			if _, err := b.reader.Read(); err != nil {
				return
			}
		}
	}
	require.NoError(t, b.pod.program.heartbeat())
	require.NoError(t, b.look(ann(t)))
	assert.False(t, send(1, ack, request), "it is not listed")
	assert.False(t, watched())
	require.NoError(t, b.lookFor([]match.Needle{ann(t).Needle()}, true))
	assert.False(t, send(1, ack, ""))
	assert.False(t, watched(), "nothing was sent")
	assert.True(t, send(1, ack, request))
	drain()
	assert.True(t, watched())
	assert.False(t, send(1, rst, ""))
	assert.False(t, watched(), "reset")
	plain := "GET / HTTP/1.1\r\nHost: h\r\n\r\n"
	assert.False(t, send(1, ack, plain))
	assert.True(t, watched())
	assert.False(t, send(1+uint32(len(plain))+7, ack|fin, ""))
	assert.True(t, watched(), "something is missing that may be repeated")
	assert.False(t, send(1+uint32(len(plain)), ack|fin, ""))
	assert.False(t, watched(), "its client has closed it")
	assert.False(t, send(1, ack, plain))
	require.NoError(t, b.look(ann(t)))
	assert.False(t, watched(), "it is not listed")
}
