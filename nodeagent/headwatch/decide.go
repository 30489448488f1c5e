// SPDX-License-Identifier: Apache-2.0

package headwatch

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"sidestep.dev/sidestep/bpf"
	"sidestep.dev/sidestep/nodeagent/http1"
)

// maxPieces bounds how many packets of one head are kept, and maxKept how many bytes of all.
const (
	maxPieces = 128
	maxKept   = 16 << 20
)

// decider decides on queued packets. It keeps the first parts of heads that came in several packets.
type decider struct {
	program *program
	heads   map[bpf.FlowKey]*partial
	kept    int
	request http1.Request
	clock   func() (time.Duration, error)
}

// partial is a head that has not come to its end.
type partial struct {
	begins uint32 // sequence number
	pieces []piece
}

type piece struct {
	seq   uint32
	bytes []byte
}

func newDecider(g *program) *decider {
	return &decider{program: g, heads: map[bpf.FlowKey]*partial{}, clock: clock}
}

// decode returns an event and its packet, of which the end may be missing.
func decode(sample []byte) (e *bpf.Event, packet []byte, complete bool) {
	e = &bpf.Event{}
	size, err := binary.Decode(sample, binary.NativeEndian, e)
	if err != nil {
		return nil, nil, false
	}
	packet = sample[size:]
	complete = int(e.Length) <= len(packet)
	packet = packet[:min(len(packet), int(e.Length))]
	if int(e.Payload) > len(packet) {
		return nil, nil, false
	}
	return e, packet, complete
}

// packet takes an event with its packet.
func (d *decider) packet(sample []byte) {
	e, packet, complete := decode(sample)
	if e == nil {
		return
	}
	payload := packet[e.Payload:]
	if e.Kind == bpf.EventCopied {
		d.keep(e, payload)
		return
	}
	cfg := &d.program.pod.cfg
	port := d.program.pod.port(e.Key.LocalPort)
	head, end := d.assemble(e, payload)
	d.request.Reset()
	n, err := d.request.Parse(head)
	if err == nil && n > 0 && port != nil && port.verdict(&d.request) == End {
		if err = d.end(port, e); err == nil {
			return
		}
		cfg.Log.Warn("request passes to the app although its connection was to end", "error", err)
	}
	cfg.Counters.Released.Add(1)
	err = d.release(e, end, err == nil && n == 0, packet)
	if err == nil && !complete {
		err = errors.New("it is too long to be injected")
	} else if err == nil {
		err = d.inject(port, e, packet)
	}
	if err != nil {
		cfg.Log.Debug("queued packet passes when it is repeated", "error", err)
	}
}

// end carries out the verdict of that name.
func (d *decider) end(port *Port, e *bpf.Event) error {
	if err := d.prolong(e); err != nil {
		return err
	}
	if err := port.end(e.Key); err != nil {
		return err
	}
	d.forget(e.Key)
	_ = d.program.objs.Flows.Delete(e.Key)
	return nil
}

// prolong makes the kernel queue the packet for the timeout from now on. After an error the app may have it
// already, or will have it soon, as happens when the machine has not let this process run. Then the connection
// must not be ended any more.
func (d *decider) prolong(e *bpf.Event) error {
	flows := d.program.objs.Flows
	var f bpf.Flow
	if err := flows.Lookup(e.Key, &f); err != nil {
		return fmt.Errorf("look up flow of queued packet: %w", err)
	}
	if !waits(&f, e) {
		return errLate
	}
	until := time.Duration(f.QueuedAt) + d.program.pod.cfg.Timeout
	now, err := d.clock()
	if err != nil {
		return err
	}
	f.QueuedAt = uint64(now)
	if err := flows.Update(e.Key, &f, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("prolong queueing of packet: %w", err)
	}
	// Before until, the kernel did not let the packet pass, and since the update it queues it for longer. If until
	// came before the update did, the packet may have passed in between.
	if now, err = d.clock(); err == nil && now >= until {
		err = errLate
	}
	return err
}

var errLate = errors.New("the verdict came too late")

// waits reports whether the packet of the event is the one that the flow waits for.
func waits(f *bpf.Flow, e *bpf.Event) bool { return f.Phase == bpf.PhaseQueued && f.Head == e.Head }

// keep puts the packet aside until it is known whether its head matters.
func (d *decider) keep(e *bpf.Event, payload []byte) {
	h := d.heads[e.Key]
	if h == nil || h.begins != e.Head {
		d.forget(e.Key)
		h = &partial{begins: e.Head}
		d.heads[e.Key] = h
	}
	if last := len(h.pieces) - 1; last >= 0 && h.pieces[last].seq+
		uint32(len(h.pieces[last].bytes)) == e.Seq && d.kept+len(payload) <= maxKept {
		h.pieces[last].bytes = append(h.pieces[last].bytes, payload...)
		d.kept += len(payload)
		return
	}
	if len(h.pieces) == maxPieces || d.kept+len(payload) > maxKept {
		d.forget(e.Key)
		d.sweep()
		return
	}
	h.pieces = append(h.pieces, piece{e.Seq, bytes.Clone(payload)})
	d.kept += len(payload)
}

func (d *decider) forget(key bpf.FlowKey) {
	if h := d.heads[key]; h != nil {
		for _, p := range h.pieces {
			d.kept -= len(p.bytes)
		}
		delete(d.heads, key)
	}
}

// sweep forgets heads of connections that are gone.
func (d *decider) sweep() {
	var f bpf.Flow
	for key := range d.heads {
		if d.program.objs.Flows.Lookup(key, &f) != nil {
			d.forget(key)
		}
	}
}

// assemble returns the bytes from the beginning of the head as far as there is no gap, and the sequence number
// of their end.
func (d *decider) assemble(e *bpf.Event, payload []byte) (head []byte, end uint32) {
	pieces := []piece{{e.Seq, payload}}
	if h := d.heads[e.Key]; h != nil && h.begins == e.Head {
		pieces = slices.Concat(h.pieces, pieces) // which is sorted, and not what is kept
	}
	offset := func(p piece) int { return int(int32(p.seq - e.Head)) }
	slices.SortStableFunc(pieces, func(a, b piece) int { return offset(a) - offset(b) })
	for _, p := range pieces {
		at := offset(p)
		if at > len(head) {
			break
		}
		if skip := len(head) - at; skip < len(p.bytes) {
			head = append(head, p.bytes[skip:]...)
		}
	}
	return head, e.Head + uint32(len(head))
}

// release tells the kernel not to queue the packet any longer. incomplete means that the head has not come to its
// end, so that more of it is to be looked at.
func (d *decider) release(e *bpf.Event, end uint32, incomplete bool, packet []byte) error {
	if incomplete {
		d.keep(e, packet[e.Payload:])
	} else {
		d.forget(e.Key)
	}
	flows := d.program.objs.Flows
	var f bpf.Flow
	if err := flows.Lookup(e.Key, &f); err != nil {
		return fmt.Errorf("look up flow of queued packet: %w", err)
	}
	if !waits(&f, e) {
		return errLate
	}
	f.Ack = e.Ack
	f.Phase, f.Next = bpf.PhaseRest, end
	if incomplete {
		f.Phase, f.State = bpf.PhaseHead, bpf.StateMiddle
		f.Flags |= bpf.FlagFound | bpf.FlagGap
	} else if int32(f.Furthest-end) > 0 {
		f.Next = f.Furthest
	}
	if err := flows.Update(e.Key, &f, ebpf.UpdateExist); err != nil {
		return fmt.Errorf("release flow of queued packet: %w", err)
	}
	return nil
}

// inject gives the packet to the app's kernel at once. Without that, it would pass when its sender repeats it, a
// fifth of a second later.
func (d *decider) inject(port *Port, e *bpf.Event, packet []byte) error {
	if port == nil {
		return errClosed
	}
	s, err := port.socket(e.Key)
	if err != nil {
		return err
	}
	if s.Device != 0 {
		return errors.New("the app's socket is bound to a device, which the packet would not come from")
	}
	return d.program.injector.Inject(packet, int(e.Payload))
}
