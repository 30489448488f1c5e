// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"net"
	"net/netip"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/nodeagent/tcpstats"
)

// Counting counts the connections to intercepted ports. See package tcpstats.
type Counting interface {
	Attach(uid string, ns Namespace) (Counter, error)
}

// Counter counts for one pod.
type Counter interface {
	// Missing says why not all is counted.
	Missing() error
	Mark(listener *net.TCPListener) error
	Add(netip.AddrPort) error
	Remove(netip.AddrPort) error
	Discount(probe *net.TCPConn) error
	Traffic(port uint16) (tcpstats.Port, error)
	Close() error
}

// startCounting must come before the first connection. What cannot be counted is served all the
// same.
func (s *site) startCounting() {
	if s.pod.set.cfg.Counting == nil {
		return
	}
	c, err := s.pod.set.cfg.Counting.Attach(s.pod.uid, s.ns)
	if err != nil {
		s.pod.log.Warn("connections are not counted", "error", err)
		return
	}
	s.counter = c
	if err := c.Missing(); err != nil {
		s.pod.log.Warn("connections that the app itself accepts are not counted", "error", err)
	}
	for _, d := range s.doors {
		s.uncounted(c.Mark(d.TCPListener))
	}
}

func (s *site) count(a netip.AddrPort) {
	if s.counter != nil {
		s.uncounted(s.counter.Add(a))
	}
}

func (s *site) uncount(a netip.AddrPort) {
	if s.counter != nil {
		s.uncounted(s.counter.Remove(a))
	}
}

func (s *site) discount(probe *net.TCPConn) {
	if s.counter != nil {
		s.uncounted(s.counter.Discount(probe))
	}
}

func (s *site) uncounted(err error) {
	if err != nil {
		s.pod.log.Warn("connections are not counted as they should be", "error", err)
	}
}

func (s *site) stopCounting() error {
	if s.counter == nil {
		return nil
	}
	return s.counter.Close()
}

// traffic is what was counted for a port; false if nothing is.
func (s *site) traffic(port uint16) (tcpstats.Port, bool) {
	if s.counter == nil {
		return tcpstats.Port{}, false
	}
	t, err := s.counter.Traffic(port)
	if err != nil {
		s.pod.log.Debug("read what was counted", "error", err)
		return tcpstats.Port{}, false
	}
	return t, true
}

// trafficReport is what laptops are told: about the connections of clients.
func (s *site) trafficReport(port uint16) *agentpb.Traffic {
	counted, ok := s.traffic(port)
	if !ok {
		return nil
	}
	t := counted.Steered
	return &agentpb.Traffic{
		Opened: t.Opened, Closed: min(t.Opened, t.Closed), Aborted: t.Aborted,
		ReceivedBytes: t.Received, SentBytes: t.Sent,
		RetransmittedSegments: t.Retransmits, RttSamples: t.RTT.Count,
		RttSumUs: uint64(t.RTT.Sum.Microseconds()),
	}
}
