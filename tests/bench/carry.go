// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
)

const (
	// largest is the most that one Read of a tun device returns: the header that says how to
	// segment the data into packets, and 64 KiB.
	largest = 10 + 1<<16
	// underWay is how many bytes a link carries in one direction at most. Packets beyond are lost,
	// as in a router.
	underWay = 64 << 20
	// early is how much before its time a packet may be sent: less than the precision of a sleep.
	early = 100 * time.Microsecond
)

// openTun creates a tun device, which exists until the file is closed. Like a network card with
// offloads it takes TCP data in pieces of up to 64 KiB (TSO). The kernel at the other end receives
// them as the packets for which they stand (GRO).
func openTun(ns *netns.Namespace, name string) (*os.File, error) {
	device := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN,
		Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR, NonPersist: true, Queues: 1,
	}
	err := ns.Do(func() error {
		if err := netlink.LinkAdd(device); err != nil {
			return fmt.Errorf("make a tun device: %w", err)
		}
		return errors.Join(netlink.LinkSetTxQLen(device, 10_000), netlink.LinkSetUp(device))
	})
	if len(device.Fds) == 0 {
		return nil, err
	}
	defer device.Fds[0].Close()
	if err != nil {
		return nil, err
	}
	// One that the runtime's poller knows, so that closing it ends a Read.
	fd, err := unix.FcntlInt(device.Fds[0].Fd(), unix.F_DUPFD_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	err = unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD,
		unix.TUN_F_CSUM|unix.TUN_F_TSO4|unix.TUN_F_TSO6|unix.TUN_F_TSO_ECN)
	if err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("set up a tun device: %w", err), unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), name), nil
}

// direction is one direction of a delayed link: a ring of bytes in which packets wait for their
// time in the order in which they came.
type direction struct {
	from, to *os.File
	oneWay   time.Duration
	ring     []byte
	// bytes of all packets so far that need no room any more, including what was left unused at the
	// ring's end
	gone    atomic.Int64
	waiting chan packet
}

// packet is in ring[at:][:n], and there is room for others when gone has become end.
type packet struct {
	due   time.Time
	at, n int
	end   int64
}

// carry passes packets from one device to another until either is closed.
func carry(from, to *os.File, oneWay time.Duration) {
	d := &direction{from: from, to: to, oneWay: oneWay, ring: make([]byte, underWay),
		waiting: make(chan packet, 1<<16)}
	go d.deliver()
	d.take()
}

func (d *direction) take() {
	defer close(d.waiting)
	nowhere := make([]byte, largest)
	var taken int64
	for {
		at := int(taken % underWay)
		skip := int64(0)
		if underWay-at < largest {
			skip, at = int64(underWay-at), 0
		}
		buffer, room := d.ring[at:min(at+largest, underWay)], taken+skip+largest-d.gone.Load() <= underWay
		if !room {
			buffer = nowhere
		}
		n, err := d.from.Read(buffer)
		if err != nil {
			return
		}
		if !room {
			continue
		}
		p := packet{due: time.Now().Add(d.oneWay), at: at, n: n, end: taken + skip + int64(n)}
		select {
		case d.waiting <- p:
			taken = p.end
		default:
		}
	}
}

func (d *direction) deliver() {
	for p := range d.waiting {
		if wait := time.Until(p.due); wait > early {
			time.Sleep(wait)
		}
		_, err := d.to.Write(d.ring[p.at:][:p.n])
		if errors.Is(err, os.ErrClosed) {
			return
		}
		d.gone.Store(p.end)
	}
}
