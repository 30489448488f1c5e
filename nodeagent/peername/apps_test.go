// SPDX-License-Identifier: Apache-2.0

package peername_test

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
)

// The addresses that an app listens on.
const (
	only4 = "IPv4"
	only6 = "IPv6"
	both  = "both"
)

// app is a program that tells its clients how it sees them, as "ADDRESS PORT" once for each way in
// which it asks.
type app struct {
	name       string
	executable string // empty: this test's program
	command    func(t *testing.T, listen string) *exec.Cmd
	request    string // what it wants to be sent first
}

// envApp turns the test's program into an app that listens so.
const envApp = "SIDESTEP_TEST_PEERNAME_APP"

func TestMain(m *testing.M) {
	if listen := os.Getenv(envApp); listen != "" {
		fmt.Fprintln(os.Stderr, serve(listen))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

// serve is the app in Go. Its listener is one of MPTCP, as is Go's default.
func serve(listen string) error {
	network, address, _ := strings.Cut(listen, " ")
	l, err := net.Listen(network, address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		fmt.Fprintln(c, seen(c.RemoteAddr()), seen(askAgain(c.(*net.TCPConn))))
		_ = c.Close()
	}
}

func seen(a net.Addr) string {
	ap := a.(*net.TCPAddr).AddrPort()
	return fmt.Sprintf("%s %d", ap.Addr().Unmap(), ap.Port())
}

// askAgain asks by getpeername.
func askAgain(c *net.TCPConn) net.Addr {
	file, err := c.File()
	if err != nil {
		return &net.TCPAddr{}
	}
	defer file.Close()
	again, err := net.FileConn(file)
	if err != nil {
		return &net.TCPAddr{}
	}
	defer again.Close()
	return again.RemoteAddr()
}

var goApp = app{name: "Go", command: func(_ *testing.T, listen string) *exec.Cmd {
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), envApp+"="+map[string]string{
		only4: "tcp4 0.0.0.0:8080", only6: "tcp6 [::]:8080", both: "tcp :8080",
	}[listen])
	return cmd
}}

// otherApps are in languages that the developers of apps are known to use.
var otherApps = []app{
	{name: "Python", executable: "python3", command: func(t *testing.T, listen string) *exec.Cmd {
		return exec.Command("python3", write(t, "app.py", pythonApp), listen)
	}},
	{name: "Node", executable: "node", command: func(t *testing.T, listen string) *exec.Cmd {
		return exec.Command("node", write(t, "app.js", nodeApp), listen)
	}},
	{name: "nginx", executable: "nginx", request: "GET / HTTP/1.0\r\n\r\n",
		command: func(t *testing.T, listen string) *exec.Cmd {
			conf := write(t, "nginx.conf", fmt.Sprintf(nginxConf, map[string]string{
				only4: "0.0.0.0:8080", only6: "[::]:8080 ipv6only=on", both: "[::]:8080 ipv6only=off",
			}[listen]))
			return exec.Command("nginx", "-p", filepath.Dir(conf), "-c", conf)
		}},
}

const pythonApp = `
import socket, sys
listen = sys.argv[1]
s = socket.socket(socket.AF_INET if listen == "IPv4" else socket.AF_INET6)
s.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
if listen != "IPv4":
    s.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, listen == "IPv6")
s.bind(("0.0.0.0" if listen == "IPv4" else "::", 8080))
s.listen(100)
while True:
    c, a = s.accept()
    b = c.getpeername()
    c.sendall(f"{a[0]} {a[1]} {b[0]} {b[1]}\n".encode())
    c.close()
`

const nodeApp = `
const listen = process.argv[2]
require("net").createServer(c => c.end(c.remoteAddress + " " + c.remotePort + "\n"))
  .listen({port: 8080, host: listen == "IPv4" ? "0.0.0.0" : "::", ipv6Only: listen == "IPv6"})
`

const nginxConf = `
daemon off;
master_process off;
user root;
pid nginx.pid;
error_log stderr warn;
events {}
http {
    log_format seen "$remote_addr $remote_port";
    access_log access.log seen;
    server {
        listen %s;
        location / { return 200 "$remote_addr $remote_port\n"; }
    }
}
`

func write(t *testing.T, name, text string) string {
	file := filepath.Join(t.TempDir(), name)
	require.NoError(t, os.WriteFile(file, []byte(text), 0o644))
	return file
}

// need skips where an app cannot run: on a machine with nothing but tests, and on a developer's
// that lacks it.
func (a app) need(t *testing.T) {
	t.Helper()
	if a.executable == "" {
		return
	}
	_, err := exec.LookPath(a.executable)
	if err == nil {
		return
	}
	if _, noShell := exec.LookPath("sh"); noShell == nil && os.Getenv("CI") != "" {
		t.Fatalf("%v (run tests/deps.sh run)", err)
	}
	t.Skip(err)
}

// ask connects by dial and gives what the app says, each address with its port.
func (a app) ask(ctx context.Context, dial func(context.Context) (net.Conn, error)) ([]netip.AddrPort, error) {
	c, err := dial(ctx)
	if err != nil {
		return nil, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	if _, err := io.WriteString(c, a.request); err != nil {
		return nil, err
	}
	var last string
	for lines := bufio.NewScanner(c); lines.Scan(); {
		last = lines.Text()
	}
	var all []netip.AddrPort
	words := strings.Fields(last)
	for i := 0; i+1 < len(words); i += 2 {
		ip, err := netip.ParseAddr(words[i])
		if err != nil {
			return nil, err
		}
		var port uint16
		if _, err := fmt.Sscan(words[i+1], &port); err != nil {
			return nil, err
		}
		all = append(all, netip.AddrPortFrom(ip.Unmap(), port))
	}
	if len(all) == 0 {
		return nil, fmt.Errorf("the app said %q", last)
	}
	return all, nil
}
