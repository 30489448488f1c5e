// SPDX-License-Identifier: Apache-2.0

package tcpstats

import (
	"fmt"
	"time"

	"sidestep.dev/sidestep/bpf"
)

// Traffic is what is known of the connections that came to a port in one way. All but Opened is of
// connections that have ended.
type Traffic struct {
	Opened, Closed uint64
	Aborted        uint64 // ended by a reset or a timeout
	Received, Sent uint64 // bytes; of those sent, what was acknowledged
	Retransmits    uint64 // segments
	RTT            RTT
}

// Open is the number of connections that are open.
func (t Traffic) Open() uint64 { return t.Opened - min(t.Opened, t.Closed) }

// RTT is the smoothed round-trip times that connections had when they ended.
type RTT struct {
	Count uint64
	Sum   time.Duration
	// Buckets[i] counts those up to Bound(i), and more than Bound(i-1).
	Buckets [buckets]uint64
}

const buckets = len(bpf.Tally{}.Rtt)

// Bound is the upper bound of a bucket; the last one has none.
func Bound(bucket int) (bound time.Duration, ok bool) {
	return 50 * time.Microsecond << bucket, bucket < buckets-1
}

// Port is the traffic of a port, by the ways in which connections come to it.
type Port struct {
	Steered Traffic // accepted by the node agent
	Direct  Traffic // accepted by the app, from clients
	Local   Traffic // accepted by the app, from the pod itself, and so all that the node agent passes on
}

// Traffic sums up what was counted for a port on all addresses of the pod.
func (c *Pod) Traffic(number uint16) (Port, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	var sum Port
	for a, p := range c.ports {
		if a.Port() != number {
			continue
		}
		var perCPU []bpf.Tallies
		if err := c.objs.Counted.Lookup(p.id, &perCPU); err != nil {
			return Port{}, fmt.Errorf("read the counters of connections to %s: %w", a, err)
		}
		for _, t := range perCPU {
			sum.Steered.add(t.ByWay[bpf.WaySteered])
			sum.Direct.add(t.ByWay[bpf.WayDirect])
			sum.Local.add(t.ByWay[bpf.WayLocal])
		}
		sum.Steered.Opened -= min(sum.Steered.Opened, p.discounted)
	}
	return sum, nil
}

func (t *Traffic) add(n bpf.Tally) {
	t.Opened += n.Opened
	t.Closed += n.Closed
	t.Aborted += n.Aborted
	t.Received += n.Received
	t.Sent += n.Sent
	t.Retransmits += n.Retransmits
	t.RTT.Sum += time.Duration(n.RttUs) * time.Microsecond
	for i, count := range n.Rtt {
		t.RTT.Count += count
		t.RTT.Buckets[i] += count
	}
}
