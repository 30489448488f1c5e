// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"net/netip"
	"sync/atomic"
)

// clientele tells the app of a pod who its clients are, as far as that can be done.
type clientele struct {
	introducer Introducer // nil if the app sees the pod's address instead
	why        error      // there is none
	failures   atomic.Uint64
}

func (s *site) meetClients() {
	s.clientele.introducer, s.clientele.why = s.pod.set.cfg.Clients.Attach(s.pod.uid, s.ns.ID())
	if err := s.clientele.why; err != nil {
		s.pod.log.Warn("the app sees the pod's own address where it would see its clients'", "error", err)
	}
}

// introduce gives what tells the app, before a socket connects to it, whom the connection is for.
func (s *site) introduce(client netip.AddrPort) func(fd int) {
	if s.clientele.introducer == nil || s.isDisguised(client) {
		return nil
	}
	return func(fd int) {
		if err := s.clientele.introducer.Introduce(fd, client); err != nil && s.clientele.failures.Add(1) == 1 {
			s.pod.log.Warn("the app sees the pod's own address where it would see a client's (further such connections are only counted)", "error", err)
		}
	}
}

func (s *site) dismissClients() error {
	if s.clientele.introducer == nil {
		return nil
	}
	return s.clientele.introducer.Close()
}
