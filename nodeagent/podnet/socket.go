// SPDX-License-Identifier: Apache-2.0

// Package podnet finds the network namespaces of pods and opens sockets in them. A socket stays in
// the namespace in which it was created, so only its creation has to enter the namespace.
package podnet

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"math"
	"net"
	"net/netip"
	"os"
	"slices"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// Namespace is the open network namespace of a pod. While it, or any socket in it, is open, the
// namespace outlives the pod.
type Namespace struct {
	*netns.Namespace

	ports ports
}

// Open opens the namespace behind a path such as /proc/42/ns/net.
func Open(path string) (*Namespace, error) {
	ns, err := netns.Open(path)
	if err != nil {
		return nil, err
	}
	return &Namespace{Namespace: ns}, nil
}

// Gateways returns the gateways in the namespace's routes.
func (n *Namespace) Gateways() ([]netip.Addr, error) {
	var gateways []netip.Addr
	err := n.Do(func() error {
		routes, err := netlink.RouteList(nil, netlink.FAMILY_ALL)
		if err != nil {
			return err
		}
		for _, r := range routes {
			if gw, ok := netip.AddrFromSlice(r.Gw); ok && !slices.Contains(gateways, gw.Unmap()) {
				gateways = append(gateways, gw.Unmap())
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("list the routes of the pod: %w", err)
	}
	return gateways, nil
}

// Listen opens a listener on a free port of ip in the namespace. It is plain TCP, since a sockmap
// refuses MPTCP, and of ip's family only. Its accept queue is the longest that the namespace
// allows. Package sockdiag recognizes the connections that it accepts as the node agent's.
func (n *Namespace) Listen(ip netip.Addr) (*net.TCPListener, error) {
	network := "tcp6"
	if ip.Is4() {
		network = "tcp4"
	}
	// Accepted connections inherit keepalive from the listener, so Go need not set it on each.
	// Steered connections have the app's own port as their local port. They inherit SO_REUSEADDR,
	// which Go sets on all listeners: without it an app that restarts could not bind its port while
	// any of them lives.
	config := net.ListenConfig{KeepAlive: -1, Control: func(_, _ string, raw syscall.RawConn) error {
		return control(raw, func(fd int) error { return errors.Join(keepAlive(fd), sockdiag.Mark(fd)) })
	}}
	config.SetMultipathTCP(false)
	var l net.Listener
	err := n.Do(func() (err error) {
		l, err = config.Listen(context.Background(), network, netip.AddrPortFrom(ip, 0).String())
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("listen on %s in the pod: %w", ip, err)
	}
	tcp := l.(*net.TCPListener)
	raw, err := tcp.SyscallConn()
	if err == nil {
		// The kernel caps this at the namespace's net.core.somaxconn.
		err = control(raw, func(fd int) error { return unix.Listen(fd, math.MaxInt32) })
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("lengthen the queue of the listener on %s: %w", ip, err),
			tcp.Close())
	}
	return tcp, nil
}

func control(raw syscall.RawConn, fn func(fd int) error) error {
	var result error
	err := raw.Control(func(fd uintptr) { result = fn(int(fd)) })
	return cmp.Or(err, result)
}

// keepAlive sets TCP keepalive with Go's defaults, so that the kernel notices dead clients.
func keepAlive(fd int) error {
	for _, o := range []struct{ level, name, value int }{
		{unix.IPPROTO_TCP, unix.TCP_KEEPIDLE, 15},  // seconds
		{unix.IPPROTO_TCP, unix.TCP_KEEPINTVL, 15}, // seconds
		{unix.IPPROTO_TCP, unix.TCP_KEEPCNT, 9},
		{unix.SOL_SOCKET, unix.SO_KEEPALIVE, 1},
	} {
		if err := unix.SetsockoptInt(fd, o.level, o.name, o.value); err != nil {
			return fmt.Errorf("set TCP keepalive on listener: %w", err)
		}
	}
	return nil
}

// Dial connects from an address of the namespace to an address of the same namespace. If bound is
// not nil, it is called with the local address before the peer can see it.
func (n *Namespace) Dial(ctx context.Context, from netip.Addr, to netip.AddrPort,
	bound func(netip.AddrPort)) (*net.TCPConn, error) {
	var file *os.File
	var err error
	if bound != nil {
		var c *Begun
		if c, err = n.begin(netip.AddrPortFrom(from, 0), to, nil, bound); err == nil {
			file, err = c.finish(ctx)
		}
	} else {
		file, err = n.DialAs(ctx, from, to, nil)
	}
	if err != nil {
		return nil, err
	}
	defer file.Close()
	c, err := net.FileConn(file)
	if err != nil {
		return nil, fmt.Errorf("adopt the connection to %s: %w", to, err)
	}
	return c.(*net.TCPConn), nil
}

// DialAs connects as Dial does. If introduce is not nil, it is called with each socket that is
// tried, before it connects; if it fails, nothing connects. DialAs returns the non-blocking socket
// itself, which waits with the runtime's poller like any connection: a net.Conn would cost a dozen
// more system calls.
func (n *Namespace) DialAs(ctx context.Context, from netip.Addr, to netip.AddrPort,
	introduce func(fd int) error) (*os.File, error) {
	c, err := n.BeginAs(from, to, false, introduce)
	if err != nil {
		return nil, err
	}
	return c.finish(ctx)
}

// BeginAs is DialAs without waiting. If soon is true, there are already bytes to send: the last
// segment of the handshake then goes with them, or alone after at most 200 ms (TCP_DELACK_MAX).
func (n *Namespace) BeginAs(from netip.Addr, to netip.AddrPort, soon bool,
	introduce func(fd int) error) (*Begun, error) {
	if soon {
		introduce = withoutAck(introduce)
	}
	low, count, err := n.ports.bounds(n)
	if err != nil {
		return nil, err
	}
	if n.ports.scarce(count) {
		c, err := n.beginCrowded(from, to, introduce, low, count)
		if !taken(err) {
			return c, err
		}
		// One of the ports that were not tried may be free.
	}
	c, err := n.begin(netip.AddrPortFrom(from, 0), to, introduce, nil)
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		return c, err
	}
	return n.beginCrowded(from, to, introduce, low, count)
}

// withoutAck makes the last segment of the handshake wait for data. It affects the handshake alone
// (tcp_rcv_synsent_state_process).
func withoutAck(introduce func(fd int) error) func(fd int) error {
	return func(fd int) error {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) // else it costs a segment more
		if introduce == nil {
			return nil
		}
		return introduce(fd)
	}
}

// Begun is a connection that is being established. Within one machine it often is already.
type Begun struct {
	*os.File
	from, to netip.AddrPort
	pending  bool
}

// Pending reports whether the connection needs Wait before it is established.
func (b *Begun) Pending() bool { return b.pending }

// Wait waits until the connection is established.
func (b *Begun) Wait(ctx context.Context) error {
	if !b.pending {
		return nil
	}
	if err := await(ctx, b.File); err != nil {
		return fmt.Errorf("connect from %s to %s in the pod: %w", b.from.Addr(), b.to, err)
	}
	b.pending = false
	return nil
}

// finish waits, and closes the socket if the connection fails.
func (b *Begun) finish(ctx context.Context) (*os.File, error) {
	if err := b.Wait(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b.File, nil
}

// beginCrowded chooses the local port itself. The kernel never picks a port that has a connection
// in TIME_WAIT, so a busy pod would soon run out of ports, after ever longer searches for the last
// free ones. The kernel does let a port be reused by a caller that asks for it, if timestamps tell
// old segments from new ones (tcp_twsk_unique).
func (n *Namespace) beginCrowded(from netip.Addr, to netip.AddrPort, introduce func(fd int) error, low uint16,
	count uint32) (*Begun, error) {
	for try := 0; ; try++ {
		port := low + uint16(n.ports.next.Add(1)%count)
		c, err := n.begin(netip.AddrPortFrom(from, port), to, introduce, nil)
		if !taken(err) || try == crowdedTries {
			return c, err
		}
	}
}

func taken(err error) bool {
	return errors.Is(err, unix.EADDRNOTAVAIL) || errors.Is(err, unix.EADDRINUSE)
}

// crowdedTries is how many ports in use are skipped before the search fails.
const crowdedTries = 1000

func (n *Namespace) begin(from, to netip.AddrPort, introduce func(fd int) error,
	bound func(netip.AddrPort)) (*Begun, error) {
	fd, err := n.socket(to.Addr())
	if err != nil {
		return nil, err
	}
	pending := false
	if err = prepare(fd, from, introduce, bound); err == nil {
		pending, err = start(fd, to)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("connect from %s to %s in the pod: %w", from.Addr(), to,
			err), unix.Close(fd))
	}
	// The socket is non-blocking, so os.NewFile adds it to the runtime's poller.
	return &Begun{File: os.NewFile(uintptr(fd), "connection"), from: from, to: to, pending: pending}, nil
}

func (n *Namespace) socket(ip netip.Addr) (fd int, err error) {
	family := unix.AF_INET6
	if ip.Is4() {
		family = unix.AF_INET
	}
	err = n.Do(func() (err error) {
		fd, err = unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, unix.IPPROTO_TCP)
		return err
	})
	if err != nil {
		return -1, fmt.Errorf("open a socket in the pod: %w", err)
	}
	// This allows a port with connections in TIME_WAIT to be bound. connect checks that no two
	// connections have the same pair of addresses.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, errors.Join(fmt.Errorf("set SO_REUSEADDR: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// prepare sets up a socket before it connects.
func prepare(fd int, from netip.AddrPort, introduce func(fd int) error, bound func(netip.AddrPort)) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	if introduce != nil {
		if err := introduce(fd); err != nil {
			return err
		}
	}
	if bound == nil && from.Port() == 0 {
		// The kernel chooses the port in connect, where only the pair of addresses has to be free.
		if err := unix.SetsockoptInt(fd, unix.IPPROTO_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1); err != nil {
			return fmt.Errorf("set IP_BIND_ADDRESS_NO_PORT: %w", err)
		}
	}
	if err := unix.Bind(fd, sockaddr(from)); err != nil {
		return fmt.Errorf("bind to %s: %w", from, err)
	}
	if bound == nil {
		return nil
	}
	local, err := unix.Getsockname(fd)
	if err != nil {
		return fmt.Errorf("getsockname: %w", err)
	}
	bound(addrPort(local))
	return nil
}

// start begins to connect. Within one machine the connection is established when it returns. A
// second call to connect tells, since waiting would cost much more.
func start(fd int, to netip.AddrPort) (pending bool, err error) {
	for range 2 {
		switch err = connect(fd, to); err {
		case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		default:
			return false, err
		}
	}
	return true, nil
}

// await waits until the connection that start has begun is established.
func await(ctx context.Context, file *os.File) error {
	raw, err := file.SyscallConn()
	if err != nil {
		return err
	}
	defer context.AfterFunc(ctx, func() { _ = file.SetDeadline(time.Unix(1, 0)) })()
	var result error
	err = raw.Write(func(fd uintptr) (done bool) {
		done, result = connected(int(fd))
		return done
	})
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return errors.Join(err, result)
}

// connected reports whether a connect has finished, and with which error. It may be called before
// anything has happened, so SO_ERROR 0 proves a connection only together with a peer address.
func connected(fd int) (bool, error) {
	code, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_ERROR)
	if err != nil {
		return true, fmt.Errorf("get SO_ERROR: %w", err)
	}
	switch errno := unix.Errno(code); errno {
	case 0:
		_, err := unix.Getpeername(fd)
		return err == nil, nil
	case unix.EINPROGRESS, unix.EALREADY, unix.EINTR:
		return false, nil
	default:
		return true, errno
	}
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: a.Addr().As4(), Port: int(a.Port())}
	}
	return &unix.SockaddrInet6{Addr: a.Addr().As16(), Port: int(a.Port())}
}

func addrPort(sa unix.Sockaddr) netip.AddrPort {
	switch sa := sa.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrPortFrom(netip.AddrFrom4(sa.Addr), uint16(sa.Port))
	case *unix.SockaddrInet6:
		return netip.AddrPortFrom(netip.AddrFrom16(sa.Addr), uint16(sa.Port))
	}
	return netip.AddrPort{}
}
