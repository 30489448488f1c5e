// SPDX-License-Identifier: Apache-2.0

package mesh_test

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/cilium/ebpf/rlimit"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/mesh"
)

// envProxy turns the test's program into a mesh's proxy that listens on a port. Who connects to it
// gives an address, and is told from where the proxy connects to that.
const envProxy = "SIDESTEP_TEST_MESH_PROXY"

func TestMain(m *testing.M) {
	if address := os.Getenv(envProxy); address != "" {
		fmt.Fprintln(os.Stderr, proxy(address))
		os.Exit(1)
	}
	os.Exit(m.Run())
}

func proxy(address string) error {
	l, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	for {
		c, err := l.Accept()
		if err != nil {
			return err
		}
		line, _ := bufio.NewReader(c).ReadString('\n')
		from, to, _ := strings.Cut(strings.TrimSpace(line), " ")
		var d net.Dialer
		if ip := net.ParseIP(from); ip != nil {
			d.LocalAddr = &net.TCPAddr{IP: ip}
		}
		if app, err := d.Dial("tcp", to); err != nil {
			fmt.Fprintln(c, err)
		} else {
			fmt.Fprintln(c, app.LocalAddr().(*net.TCPAddr).IP)
			_ = app.Close()
		}
		_ = c.Close()
	}
}

const appPort = 8080

type world struct {
	pod *testnet.Pod
	it  *mesh.Pod
}

func newWorld(t *testing.T) *world {
	require.NoError(t, rlimit.RemoveMemlock()) // as the steering does
	node := testnet.NewNode(t)
	w := &world{pod: node.NewPod(t)}
	for _, port := range []uint16{appPort, appPort + 1} {
		app := testnet.Listen(t, w.pod.Namespace, fmt.Sprintf(":%d", port))
		go func() {
			for {
				c, err := app.Accept()
				if err != nil {
					return
				}
				_ = c.Close()
			}
		}()
	}
	m := mesh.New(node.Proc())
	w.it = m.Pod(w.pod.UID, w.pod.Namespace)
	t.Cleanup(func() { assert.NoError(t, w.it.Close()) })
	return w
}

// look is Look, as the node agent would.
func (w *world) look(t *testing.T) (mesh.Proxy, error) {
	var targets []netip.AddrPort
	for _, ip := range []netip.Addr{w.pod.IP4, w.pod.IP6, netip.MustParseAddr("127.0.0.1"),
		netip.IPv6Loopback()} {
		targets = append(targets, netip.AddrPortFrom(ip, appPort))
	}
	return w.it.Look(targets, []string{"1001"})
}

// start starts a proxy as a user.
func (w *world) start(t *testing.T, port uint16, uid uint32) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), fmt.Sprintf("%s=:%d", envProxy, port))
	cmd.Stderr = t.Output()
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	w.pod.Start(t, "", cmd)
	require.Eventually(t, func() bool {
		c, err := testnet.Dial(t.Context(), w.pod.Namespace, netip.AddrPortFrom(w.pod.IP4, port))
		if err == nil {
			_ = c.Close()
		}
		return err == nil
	}, 20*time.Second, 10*time.Millisecond)
}

// from tells from where the proxy connects.
func (w *world) from(t *testing.T, port uint16, bound string, ip netip.Addr, to uint16) string {
	t.Helper()
	c, err := testnet.Dial(t.Context(), w.pod.Namespace, netip.AddrPortFrom(w.pod.IP4, port))
	require.NoError(t, err)
	defer c.Close()
	_, err = fmt.Fprintln(c, bound, netip.AddrPortFrom(ip, to))
	require.NoError(t, err)
	line, err := bufio.NewReader(c).ReadString('\n')
	require.NoError(t, err)
	return strings.TrimSpace(line)
}

func TestProxyIsMadeKnown(t *testing.T) {
	w := newWorld(t)
	found, err := w.look(t)
	require.NoError(t, err)
	assert.Empty(t, found.Name, "nobody listens")
	w.start(t, 4143, 2102)
	w.start(t, 15001, 1000) // somebody else
	found, err = w.look(t)
	assert.Equal(t, "Linkerd", found.Name)
	if !testnet.KernelAtLeast(t, 5, 14) {
		assert.ErrorContains(t, err, "needs Linux 5.14")
		return
	}
	require.NoError(t, err)
	loop4, loop6 := netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback()
	for _, tc := range []struct {
		name  string
		proxy uint16
		bound string
		ip    netip.Addr
		port  uint16
		want  string
	}{
		{"to the pod's IPv4 address", 4143, "-", w.pod.IP4, appPort, "127.0.0.1"},
		{"to the pod's IPv6 address", 4143, "-", w.pod.IP6, appPort, "::1"},
		{"to 127.0.0.1", 4143, "-", loop4, appPort, mesh.DialsFrom.String()},
		{"to another port", 4143, "-", w.pod.IP4, appPort + 1, w.pod.IP4.String()},
		{"bound to an address of its own", 4143, "127.0.0.6", w.pod.IP4, appPort, "127.0.0.6"},
		{"as another user", 15001, "-", w.pod.IP4, appPort, w.pod.IP4.String()},
		{"as another user to 127.0.0.1", 15001, "-", loop4, appPort, "127.0.0.1"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			assert.Equal(t, tc.want,
				w.from(t, tc.proxy, tc.bound, tc.ip, tc.port))
		})
	}
	_, missed := w.it.Missed()
	assert.False(t, missed)
	assert.Equal(t, "::1", w.from(t, 4143, "-", loop6, appPort))
	target, missed := w.it.Missed()
	assert.True(t, missed)
	assert.Equal(t, netip.AddrPortFrom(loop6, appPort), target)
	require.NoError(t, w.it.Close())
	assert.Equal(t, w.pod.IP4.String(), w.from(t, 4143, "-", w.pod.IP4, appPort), "let go")
}

// Whoever listens where a mesh's proxy does is none unless it is the user that the mesh's rules
// know it by.
func TestOnlyTheUsersOfMeshesAreProxies(t *testing.T) {
	for _, tc := range []struct {
		port uint16
		uid  uint32
		want string
	}{
		{4143, 1000, ""}, {15006, 0, ""}, {15006, 1337, "Istio"}, {15006, 5678, "Kuma"},
		{20000, 5995, "Consul"}, {20000, 0, ""},
		{4143, 3<<16 + 2102, "Linkerd"}, // in a user namespace of the pod's
	} {
		t.Run(fmt.Sprintf("user %d on port %d", tc.uid, tc.port), func(t *testing.T) {
			w := newWorld(t)
			w.start(t, tc.port, tc.uid)
			found, err := w.look(t)
			if err != nil {
				require.ErrorContains(t, err, "needs Linux 5.14")
			}
			assert.Equal(t, tc.want, found.Name)
		})
	}
}
