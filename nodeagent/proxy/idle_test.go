// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"runtime"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// idleVariable says how many connections BenchmarkIdleConnections makes. Each takes three
// descriptors here and one in the app.
const idleVariable = "SIDESTEP_PROXY_IDLE_CONNECTIONS"

// addressed dials the app from the client's own address, since one address has ports for some
// 28,000 connections only.
type addressed struct{ app string }

func (a addressed) DialApp(client, _ netip.AddrPort, _ bool) (stream.Socket,
	func(context.Context) error, error) {
	d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(client.Addr(), 0))}
	d.SetMultipathTCP(false)
	c, err := d.Dial("tcp", a.app)
	if err != nil {
		return nil, nil, err
	}
	return c.(*net.TCPConn), nil, nil
}

// BenchmarkIdleConnections reports what a connection that waits costs: memory of the process, and
// what the kernel's caches of sockets grew by, of which half is due to the client's and the app's
// own ends.
func BenchmarkIdleConnections(b *testing.B) {
	conns := 2000
	if n, err := strconv.Atoi(os.Getenv(idleVariable)); err == nil {
		conns = n
	}
	most := &unix.Rlimit{Cur: uint64(4*conns + 1000), Max: uint64(4*conns + 1000)}
	if most.Max > 1<<19 {
		most.Cur, most.Max = 1<<19, 1<<19
	}
	require.NoError(b, unix.Setrlimit(unix.RLIMIT_NOFILE, most))
	app := idleApp(b)
	for _, kind := range []struct {
		name  string
		rules []Rule
		say   string
	}{
		{"has said nothing", []Rule{headerRule(b)}, ""},
		{"has been answered", []Rule{headerRule(b)}, "GET / HTTP/1.1\r\nHost: o\r\n\r\n"},
		{"is passed unread", []Rule{headerRule(b)}, "\x16\x03\x01\x00\x05"},
		{"is the app's as a whole", []Rule{{InterceptUID: "away", TCP: true}}, "hello"},
	} {
		b.Run(kind.name, func(b *testing.B) {
			proxy, target := New(Config{}), NewTarget("shop/orders-0", addressed{app})
			target.SetRules(kind.rules, Kubelet{})
			addr := netip.MustParseAddrPort(serveOn(b,
				func(ctx context.Context, c *net.TCPConn) { proxy.Serve(ctx, c, target) }))
			for b.Loop() {
				measureIdle(b, conns, func(i int) int { return idle(b, addr, i, kind.say) })
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

// idleApp is an app in another process that answers whatever comes with a line.
func idleApp(b *testing.B) string {
	cmd := role(b, "answers")
	in, err := cmd.StdinPipe()
	require.NoError(b, err)
	out, err := cmd.StdoutPipe()
	require.NoError(b, err)
	require.NoError(b, cmd.Start())
	b.Cleanup(func() {
		in.Close()
		cmd.Wait()
	})
	addr, err := bufio.NewReader(out).ReadString('\n')
	require.NoError(b, err)
	return strings.TrimSpace(addr)
}

// benchAnswers greets each connection that says something with an HTTP response, until its standard
// input ends.
func benchAnswers() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		panic(err)
	}
	fmt.Println(l.Addr())
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				p := make([]byte, 512)
				for {
					if _, err := c.Read(p); err != nil {
						c.Close()
						return
					}
					io.WriteString(c, "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok")
				}
			}()
		}
	}()
	io.Copy(io.Discard, os.Stdin)
}

func measureIdle(b *testing.B, conns int, connect func(i int) int) {
	memory := func() (heap, stack float64) {
		runtime.GC()
		runtime.GC()
		var m runtime.MemStats
		runtime.ReadMemStats(&m)
		return float64(m.HeapAlloc), float64(m.StackInuse)
	}
	heap, stack := memory()
	kernel, goroutines := socketCaches(b), runtime.NumGoroutine()
	var fds []int
	for i := range conns {
		fds = append(fds, connect(i))
	}
	heapNow, stackNow := memory()
	n := float64(conns)
	b.ReportMetric((heapNow-heap)/n, "heap-B/conn")
	b.ReportMetric((stackNow-stack)/n, "stack-B/conn")
	b.ReportMetric((socketCaches(b)-kernel)/n, "kernel-B/conn")
	b.ReportMetric(float64(runtime.NumGoroutine()-goroutines)/n, "goroutines/conn")
	for _, fd := range fds {
		unix.Close(fd)
	}
}

// socketCaches is what the kernel's caches hold that every socket takes from, in bytes; 0 where
// only root may know.
func socketCaches(b *testing.B) (size float64) {
	text, err := os.ReadFile("/proc/slabinfo")
	if err != nil {
		b.Log(err)
		return 0
	}
	for line := range strings.Lines(string(text)) {
		f := strings.Fields(line)
		switch f[0] {
		case "TCP", "sock_inode_cache", "filp", "dentry", "eventpoll_epi", "eventpoll_pwq",
			"skbuff_head_cache", "skbuff_small_head", "tcp_bind_bucket":
			objects, _ := strconv.ParseFloat(f[1], 64)
			each, _ := strconv.ParseFloat(f[3], 64)
			size += objects * each
		}
	}
	return size
}

// idle makes a connection that costs this process no more than a descriptor, and says something on
// it that is answered.
func idle(b *testing.B, to netip.AddrPort, i int, say string) (fd int) {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	require.NoError(b, err)
	from := &unix.SockaddrInet4{Addr: [4]byte{127, 0, 1, byte(i / 20_000)}}
	require.NoError(b, unix.SetsockoptInt(fd, unix.SOL_IP, unix.IP_BIND_ADDRESS_NO_PORT, 1))
	require.NoError(b, unix.Bind(fd, from))
	require.NoError(b, unix.Connect(fd, &unix.SockaddrInet4{Port: int(to.Port()), Addr: to.Addr().As4()}))
	if say == "" {
		return fd
	}
	_, err = unix.Write(fd, []byte(say))
	require.NoError(b, err)
	n, err := unix.Read(fd, make([]byte, 4096))
	require.NoError(b, err)
	require.Positive(b, n)
	return fd
}
