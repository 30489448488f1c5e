// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bufio"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/netip"
	"os"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// envSidecar turns the test's program into the proxy of a mesh that it describes (JSON).
const envSidecar = "SIDESTEP_TEST_SIDECAR"

// sidecar is a mesh's proxy in a pod: it ends TLS of connections that iptables redirect to it, and
// connects to the app.
type sidecar struct {
	Port uint16 // where it listens
	// From is the address that it binds before it connects to the app. Client: that of the client,
	// with Mark, as ztunnel does.
	From, From6 string
	Client      bool
	Mark        int
	// To is where the app is. Empty: where the client wanted to go.
	To, To6 string
}

// run is its life.
func (s *sidecar) run() error {
	cert, err := selfSigned()
	if err != nil {
		return err
	}
	ends := &tls.Config{Certificates: []tls.Certificate{cert}}
	l, err := (&net.ListenConfig{Control: s.transparent}).Listen(context.Background(), "tcp",
		fmt.Sprintf(":%d", s.Port))
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		go s.serve(c.(*net.TCPConn), ends)
	}
}

func (s *sidecar) transparent(_, _ string, c syscall.RawConn) error {
	var err error
	if !s.Client {
		return nil
	}
	return join(c.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.SOL_IP,
			unix.IP_TRANSPARENT, 1)
	}), &err)
}

func (s *sidecar) serve(c *net.TCPConn, ends *tls.Config) {
	defer c.Close()
	to, err := originalDestination(c)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sidecar:", err)
		return
	}
	r := bufio.NewReader(c)
	first, err := r.Peek(1)
	if err != nil {
		return
	}
	var client net.Conn = buffered{c, r}
	if first[0] == 0x16 { // else it is the kubelet's, which has no certificate
		client = tls.Server(client, ends)
	}
	app, err := s.dial(addrPortOf(c.RemoteAddr()).Addr(), to)
	if err != nil {
		fmt.Fprintln(os.Stderr, "sidecar:", err)
		return
	}
	defer app.Close()
	go func() {
		_, _ = io.Copy(app, client)
		_ = app.(*net.TCPConn).CloseWrite()
	}()
	_, _ = io.Copy(client, app)
}

func (s *sidecar) dial(client netip.Addr, to netip.AddrPort) (net.Conn, error) {
	from, instead := s.From, s.To
	if to.Addr().Is6() {
		from, instead = s.From6, s.To6
	}
	if s.Client {
		from = client.String()
	}
	if instead != "" {
		to = netip.AddrPortFrom(netip.MustParseAddr(instead), to.Port())
	}
	d := net.Dialer{Timeout: 5 * time.Second}
	d.SetMultipathTCP(false)
	if from != "" {
		d.LocalAddr = &net.TCPAddr{IP: net.ParseIP(from)}
	}
	d.Control = func(_, _ string, c syscall.RawConn) error {
		var err error
		return join(c.Control(func(fd uintptr) {
			if from != "" && !s.Client {
				// as Envoy does
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1)
			}
			if s.Client {
				err = unix.SetsockoptInt(int(fd), unix.SOL_IP, unix.IP_TRANSPARENT, 1)
				if to.Addr().Is6() {
					err = unix.SetsockoptInt(int(fd), unix.SOL_IPV6, unix.IPV6_TRANSPARENT, 1)
				}
			}
			if s.Mark != 0 && err == nil {
				err = unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_MARK, s.Mark)
			}
		}), &err)
	}
	return d.Dial("tcp", to.String())
}

func join(control error, inner *error) error {
	if control != nil {
		return control
	}
	return *inner
}

// originalDestination is where the client wanted to go. What TPROXY brings has it for its local
// address.
func originalDestination(c *net.TCPConn) (netip.AddrPort, error) {
	local := addrPortOf(c.LocalAddr())
	raw, err := c.SyscallConn()
	if err != nil {
		return local, err
	}
	const soOriginalDst = 80
	to := local
	err = raw.Control(func(fd uintptr) {
		if local.Addr().Is4() {
			// 16 bytes: a struct sockaddr_in
			if a, err := unix.GetsockoptIPv6Mreq(int(fd), unix.SOL_IP, soOriginalDst); err == nil {
				m := a.Multiaddr
				to = netip.AddrPortFrom(netip.AddrFrom4([4]byte(m[4:8])), uint16(m[2])<<8|uint16(m[3]))
			}
		} else if a, err := unix.GetsockoptIPv6MTUInfo(int(fd), unix.SOL_IPV6, soOriginalDst); err == nil { // begins with a struct sockaddr_in6
			to = netip.AddrPortFrom(netip.AddrFrom16(a.Addr.Addr), a.Addr.Port<<8|a.Addr.Port>>8)
		}
	})
	return to, err
}

func addrPortOf(a net.Addr) netip.AddrPort {
	ap := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port())
}

type buffered struct {
	net.Conn
	r *bufio.Reader
}

func (b buffered) Read(p []byte) (int, error) { return b.r.Read(p) }

func selfSigned() (tls.Certificate, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, err
}

// beSidecar is the main function of the test's program as a proxy.
func beSidecar() error {
	var s sidecar
	if err := json.Unmarshal([]byte(os.Getenv(envSidecar)), &s); err != nil {
		return err
	}
	return s.run()
}
