// SPDX-License-Identifier: Apache-2.0

package pods

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"sync"
	"time"

	"sidestep.dev/sidestep/nodeagent/part"
)

const (
	// busyMax is how long an accept loop may be away from its listener before it counts as stuck.
	busyMax = time.Second
	// acceptPause lets file descriptors come free after accepting has failed.
	acceptPause = 50 * time.Millisecond
	// acceptQuiet is how long no other failure is logged.
	acceptQuiet = 10 * time.Second
)

// accept serves what arrives at a listener until it is closed. After a failed accept(2) the loop
// counts as busy until one succeeds or none is queued: a lack of file descriptors makes new
// connections go to the app.
func (o *opened) accept(l *listener) {
	failing := false
	var said time.Time
	for {
		c, err := l.AcceptTCP()
		l.busy.CompareAndSwap(0, time.Now().UnixNano())
		switch {
		case err == nil:
			o.take(c)
		case errors.Is(err, net.ErrClosed):
			return
		case !errors.Is(err, os.ErrDeadlineExceeded):
			if time.Since(said) > acceptQuiet {
				said = time.Now()
				o.pod.log.Error("accept", "listener", l.Addr(), "error", err)
			}
			failing = true
			time.Sleep(acceptPause)
			_ = l.SetDeadline(time.Now().Add(acceptPause))
			continue
		}
		if failing {
			failing = false
			_ = l.SetDeadline(time.Time{})
		}
		l.busy.Store(0)
	}
}

func (o *opened) take(c *net.TCPConn) {
	local, remote := addrPort(c.LocalAddr()), addrPort(c.RemoteAddr())
	if tell := o.expected.arrived(remote); tell != nil {
		o.probed(c) // while it is open
		close(tell)
		o.serving.Go(func() {
			_ = c.SetDeadline(time.Now().Add(time.Second))
			_, _ = c.Read(make([]byte, 1)) // until connects has reset it
			_ = c.SetLinger(0)
			_ = c.Close()
		})
		return
	}
	if !o.at.Serves(local.Addr(), remote.Addr()) {
		// Somebody in the pod has found the listener itself. There is no app at its address: to
		// pass this on would be to meet ourselves, again and again.
		_ = c.Close()
		return
	}
	t := o.target(local.Port())
	o.serving.Go(func() { o.pod.set.cfg.Serve(o.at.Context, c, t) })
}

func (o *opened) probed(c *net.TCPConn) {
	for _, one := range o.parts {
		if w, ok := one.(part.Witness); ok {
			w.Probed(c)
		}
	}
}

// responsive returns an error if an accept loop is stuck.
func (o *opened) responsive() error {
	for _, l := range o.listeners {
		since := l.busy.Load()
		if away := time.Duration(time.Now().UnixNano() - since); since != 0 && away > busyMax {
			return fmt.Errorf("listener %s has not accepted for %s", l.Addr(), away.Round(time.Millisecond))
		}
	}
	return nil
}

func addrPort(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

// expectations are the probes that are on their way, by their local address.
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

// arrived returns what is to be closed if this was expected.
func (e *expectations) arrived(from netip.AddrPort) chan<- struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	tell := e.from[from]
	delete(e.from, from)
	return tell
}
