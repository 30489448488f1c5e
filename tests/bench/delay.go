package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/tests/lab"
)

// delayMTU is the largest packet of the delayed link, in bytes: more to a packet leaves more of the machine to what is measured.
const delayMTU = 16000

// delay makes packets between the laptop and the control plane take so long, each way, until it is undone. This program carries them from one
// tun device to another, since not every kernel has netem.
func (b *bench) delay(ctx context.Context, oneWay time.Duration) (undo func(), err error) {
	if oneWay == 0 {
		return func() {}, nil
	}
	laptop, controlPlane := b.nodes["laptop"], b.nodes["control-plane"]
	var ends [2]*os.File
	undo, err = all(ctx,
		func(ctx context.Context) (undo func(), err error) {
			ends[0], undo, err = b.tun(ctx, "laptop", laptop, controlPlane)
			return undo, err
		},
		func(ctx context.Context) (undo func(), err error) {
			ends[1], undo, err = b.tun(ctx, "control-plane", controlPlane, laptop)
			return undo, err
		})
	if err != nil {
		return nil, err
	}
	go carry(ends[0], ends[1], oneWay)
	go carry(ends[1], ends[0], oneWay)
	return undo, nil
}

// tun makes a tun device on a machine, and a route by it from an address of the machine to another, in place of the one that there is.
func (b *bench) tun(ctx context.Context, machine, from, to string) (end *os.File, undo func(), err error) {
	before, err := lab.Output(b.OnNode(ctx, machine, "ip", "route", "show", to+"/32"))
	if err != nil {
		return nil, nil, err
	}
	if end, err = b.openTun(ctx, machine); err != nil {
		return nil, nil, err
	}
	undo = func() {
		_ = end.Close() // the device goes with it, and its route with the device
		if before != "" {
			_, _ = lab.Output(b.OnNode(context.WithoutCancel(ctx), machine, append([]string{"ip", "route", "replace"}, strings.Fields(before)...)...))
		}
	}
	if _, err = lab.Output(b.OnNode(ctx, machine, "ip", "route", "replace", to+"/32", "dev", "delayed", "src", from)); err != nil {
		undo()
		return nil, nil, err
	}
	return end, undo, nil
}

func (b *bench) openTun(ctx context.Context, machine string) (*os.File, error) {
	ns, err := b.network(ctx, machine)
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	device := &netlink.Tuntap{
		LinkAttrs: netlink.LinkAttrs{Name: "delayed", MTU: delayMTU}, Mode: netlink.TUNTAP_MODE_TUN,
		Flags: netlink.TUNTAP_NO_PI, NonPersist: true, Queues: 1,
	}
	err = ns.Do(func() error {
		if err := netlink.LinkAdd(device); err != nil {
			return fmt.Errorf("make a tun device on %s: %w", machine, err)
		}
		return errors.Join(netlink.LinkSetMTU(device, delayMTU), netlink.LinkSetTxQLen(device, 10_000), netlink.LinkSetUp(device))
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
	if err := unix.SetNonblock(fd, true); err != nil {
		return nil, errors.Join(err, unix.Close(fd))
	}
	return os.NewFile(uintptr(fd), "delayed"), nil
}

// network opens the network namespace of a machine.
func (b *bench) network(ctx context.Context, machine string) (*netns.Namespace, error) {
	out, err := lab.Output(b.OnNode(ctx, machine, "readlink", "/proc/self/ns/net"))
	if err != nil {
		return nil, err
	}
	inode, err := strconv.ParseUint(strings.Trim(strings.TrimSpace(out), "net:[]"), 10, 64)
	if err != nil {
		return nil, fmt.Errorf("network namespace of %s: %w", machine, err)
	}
	ns, err := netns.Find("/proc", inode)
	if err == nil && ns == nil {
		err = fmt.Errorf("network namespace %d of %s is not to be found", inode, machine)
	}
	return ns, err
}

// carry passes packets from one device to another until either is closed. Packets that find no room are lost, as in a router.
func carry(from, to *os.File, oneWay time.Duration) {
	type packet struct {
		due   time.Time
		bytes []byte
	}
	queue := make(chan packet, 20_000)
	go func() {
		for p := range queue {
			time.Sleep(time.Until(p.due))
			if _, err := to.Write(p.bytes); errors.Is(err, os.ErrClosed) {
				return
			}
		}
	}()
	defer close(queue)
	buffer := make([]byte, 1<<16)
	for {
		n, err := from.Read(buffer)
		if err != nil {
			return
		}
		select {
		case queue <- packet{due: time.Now().Add(oneWay), bytes: append([]byte(nil), buffer[:n]...)}:
		default:
		}
	}
}
