// SPDX-License-Identifier: Apache-2.0

// Package podnet finds the network namespaces of pods and opens sockets in them. A socket stays in
// the namespace that it was made in, so only its creation needs a visit.
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

// Namespace is the open network namespace of a pod. Holding it open, or any socket in it, keeps it
// alive after its pod is gone.
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

// Gateways gives the addresses that the namespace's routes go by.
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

// Listen opens a listener on a free port of ip in the namespace. It is plain TCP (a sockmap refuses
// MPTCP), of ip's family only, with the longest accept queue that the namespace allows. What it
// accepts is known to package sockdiag as the node agent's.
func (n *Namespace) Listen(ip netip.Addr) (*net.TCPListener, error) {
	network := "tcp6"
	if ip.Is4() {
		network = "tcp4"
	}
	// What the listener has been told once, Go need not tell each connection. Steered connections
	// have the app's own port as their local port, and inherit SO_REUSEADDR, which Go gives to all
	// listeners: without it an app that restarts could not bind its port while any of them lives.
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
		// The kernel lowers this to net.core.somaxconn of the namespace.
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

// keepAlive has the kernel ask clients that are silent whether they are still there, as Go does.
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
// given, it learns the local address before the peer can.
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

// DialAs connects as Dial does. If introduce is given, it is called with each socket that is tried,
// before that connects. It gives the non-blocking socket itself, which waits with the runtime's
// poller like any connection: to make a net.Conn of it would take a dozen system calls more.
func (n *Namespace) DialAs(ctx context.Context, from netip.Addr, to netip.AddrPort,
	introduce func(fd int)) (*os.File, error) {
	c, err := n.BeginAs(from, to, false, introduce)
	if err != nil {
		return nil, err
	}
	return c.finish(ctx)
}

// BeginAs is DialAs without any waiting. soon says that bytes to be sent are there already: the
// connection's last step then goes with them, in one segment, or alone after a fifth of a second at
// most (TCP_DELACK_MAX).
func (n *Namespace) BeginAs(from netip.Addr, to netip.AddrPort, soon bool,
	introduce func(fd int)) (*Begun, error) {
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
		// There may be a free one among those that were not tried.
	}
	c, err := n.begin(netip.AddrPortFrom(from, 0), to, introduce, nil)
	if !errors.Is(err, unix.EADDRNOTAVAIL) {
		return c, err
	}
	return n.beginCrowded(from, to, introduce, low, count)
}

// withoutAck has a connection's last step wait for data. This holds for the handshake alone
// (tcp_rcv_synsent_state_process).
func withoutAck(introduce func(fd int)) func(fd int) {
	return func(fd int) {
		_ = unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_QUICKACK, 0) // else it costs a segment more
		if introduce != nil {
			introduce(fd)
		}
	}
}

// Begun is a connection that is being made. Within one machine it often has been already.
type Begun struct {
	*os.File
	from, to netip.AddrPort
	pending  bool
}

// Pending says whether Wait is needed before there is a connection.
func (b *Begun) Pending() bool { return b.pending }

// Wait waits until there is a connection.
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

// finish waits, and closes what does not come to be a connection.
func (b *Begun) finish(ctx context.Context) (*os.File, error) {
	if err := b.Wait(ctx); err != nil {
		return nil, errors.Join(err, b.Close())
	}
	return b.File, nil
}

// beginCrowded chooses the port itself. The kernel does not give out ports of connections that have
// ended less than a minute ago, which a busy pod would soon run out of, after searching ever longer
// for the last free ones; but it lets them be used by those who ask for them, where timestamps keep
// old segments apart from new ones (tcp_twsk_unique).
func (n *Namespace) beginCrowded(from netip.Addr, to netip.AddrPort, introduce func(fd int), low uint16,
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

// crowdedTries is how many ports may be found taken by open connections.
const crowdedTries = 1000

func (n *Namespace) begin(from, to netip.AddrPort, introduce func(fd int),
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
	// It is non-blocking, and so joins the runtime's poller.
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
	// So that a port of which connections are left may be bound; connect sees to it that no two
	// have the same pair of addresses.
	if err := unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1); err != nil {
		return -1, errors.Join(fmt.Errorf("set SO_REUSEADDR: %w", err), unix.Close(fd))
	}
	return fd, nil
}

// prepare does all that has to be done before connecting.
func prepare(fd int, from netip.AddrPort, introduce func(fd int), bound func(netip.AddrPort)) error {
	if err := unix.SetsockoptInt(fd, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1); err != nil {
		return fmt.Errorf("set TCP_NODELAY: %w", err)
	}
	if introduce != nil {
		introduce(fd)
	}
	if bound == nil && from.Port() == 0 {
		// The port is chosen at connect, where only the pair of addresses has to be free.
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

// start begins to connect. Within one machine that is done when it returns, which a second call
// tells: waiting would cost much more.
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

// await waits for what start has begun.
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

// connected says whether a connect has ended, and how. It is asked when nothing may have happened
// yet, so an absent error proves a connection only together with a peer.
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
