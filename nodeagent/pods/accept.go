// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"
	"sync"
	"time"
)

const (
	// busyMax is how long an accept loop may be away from its listener before it counts as stuck.
	busyMax = time.Second
	// acceptPause lets file descriptors come free after accepting has failed.
	acceptPause = 50 * time.Millisecond
	// acceptQuiet is how long no other failure is logged.
	acceptQuiet = 10 * time.Second
)

// accept serves what arrives at a listener until it is closed. When accepting fails, the loop
// counts as busy until it has worked again or nothing waits any longer, so that a lack of file
// descriptors makes connections go to the app.
func (s *site) accept(d *door) {
	failing := false
	var said time.Time
	for {
		c, err := d.AcceptTCP()
		d.busy.CompareAndSwap(0, time.Now().UnixNano())
		switch {
		case err == nil:
			s.take(c)
		case errors.Is(err, net.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(said) > acceptQuiet {
				said = time.Now()
				s.pod.log.Error("accept", "listener", d.Addr(), "error", err)
			}
			failing = true
			time.Sleep(acceptPause)
			_ = d.SetDeadline(time.Now().Add(acceptPause))
			continue
		}
		if failing {
			failing = false
			_ = d.SetDeadline(time.Time{})
		}
		d.busy.Store(0)
	}
}

func (s *site) take(c *net.TCPConn) {
	local, remote := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	if tell := s.expected.arrived(remote); tell != nil {
		s.discount(c) // while it is open
		close(tell)
		s.serving.Go(func() {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = c.Read(make([]byte, 1)) // until connects has reset it
			_ = c.SetLinger(0)
			_ = c.Close()
		})
		return
	}
	if !slices.Contains(s.ips, local.Addr()) && !s.isMeshs(local, remote) {
		// Somebody in the pod has found the listener itself. There is no app at its address: to
		// pass this on would be to meet ourselves, again and again.
		_ = c.Close()
		return
	}
	t := s.target(local.Port())
	s.serving.Go(func() { s.pod.set.cfg.Serve(s.ctx, c, t) })
}

func (s *site) responsive() error {
	for _, d := range s.doors {
		since := d.busy.Load()
		if away := time.Duration(time.Now().UnixNano() - since); since != 0 && away > busyMax {
			return fmt.Errorf("listener %s has not accepted for %s", d.Addr(), away.Round(time.Millisecond))
		}
	}
	return nil
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// expectations are the probe connections that are on their way, by the address that they come from.
type expectations struct {
	mu   sync.Mutex
	from map[netip.AddrPort]chan<- struct{}
}

func (e *expectations) add(from netip.AddrPort, arrived chan<- struct{}) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.from == nil {
		e.from = map[netip.AddrPort]chan<- struct{}{}
	}
	e.from[from] = arrived
}

func (e *expectations) remove(from netip.AddrPort) {
	e.mu.Lock()
	defer e.mu.Unlock()
	delete(e.from, from)
}

// arrived gives what is to be closed if this was expected.
func (e *expectations) arrived(from netip.AddrPort) chan<- struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	tell := e.from[from]
	delete(e.from, from)
	return tell
}
