// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"strconv"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
)

const (
	// envConnections is how many connections TestMoreConnectionsThanPorts makes, on as many ports
	// as a pod has by default. Without it there are few of both.
	envConnections = "SIDESTEP_TEST_CONNECTIONS"
	fewConnections = 3000
	fewPorts       = "40000 40299"
)

// Each connection that is passed on leaves a port of the pod's address behind for a minute, at the
// node agent's end or at the app's.
func TestMoreConnectionsThanPorts(t *testing.T) {
	for name, closes := range map[string]string{"the app closes": "close", "the client closes": "keep-alive"} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			most := fewConnections
			if text := os.Getenv(envConnections); text != "" {
				var err error
				most, err = strconv.Atoi(text)
				require.NoError(t, err)
			} else {
				require.NoError(t, w.pod.Do(func() error {
					return os.WriteFile("/proc/sys/net/ipv4/ip_local_port_range", []byte(fewPorts), 0)
				}))
			}
			clients := w.clientAddresses(t, 8)
			w.spawn(t)
			w.steering(t, w.assign(w.wants()))
			var next, failed atomic.Int64
			var all sync.WaitGroup
			began, slowest := time.Now(), atomic.Int64{}
			for _, from := range clients {
				all.Go(func() {
					for next.Add(1) <= int64(most) {
						start := time.Now()
						if err := oneConnection(w, from, closes); err != nil && failed.Add(1) <= 3 {
							t.Log(err)
						}
						for took := int64(time.Since(start)); took > slowest.Load(); {
							slowest.Store(took)
						}
					}
				})
			}
			all.Wait()
			t.Logf("%d connections in %s, the slowest took %s", most,
				time.Since(began).Round(time.Millisecond),
				time.Duration(slowest.Load()).Round(time.Millisecond))
			assert.Zero(t, failed.Load(), "failed connections")
			w.expect(t, "me", "laptop")
		})
	}
}

// clientAddresses gives the node more addresses, since clients run out of ports, too.
func (w *world) clientAddresses(t *testing.T, n int) (all []netip.Addr) {
	t.Helper()
	device, err := linkByName(w.node, "pod1")
	require.NoError(t, err)
	for i := range n {
		ip := netip.AddrFrom4([4]byte{198, 18, 1, byte(100 + i)})
		a, err := netlink.ParseAddr(ip.String() + "/24")
		require.NoError(t, err)
		require.NoError(t, w.node.Do(func() error { return netlink.AddrAdd(device, a) }))
		all = append(all, ip)
	}
	return all
}

// oneConnection makes one request on a connection of its own, which is closed by the app if that is
// asked to.
func oneConnection(w *world, from netip.Addr, closes string) error {
	var c net.Conn
	err := w.node.Do(func() (err error) {
		d := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0)), Timeout: patience}
		d.SetMultipathTCP(false)
		c, err = d.Dial("tcp", netip.AddrPortFrom(w.pod.IP4, appPort).String())
		return err
	})
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(patience))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: orders\r\nConnection: %s\r\n\r\n",
		closes); err != nil {
		return err
	}
	r := bufio.NewReader(c)
	resp, err := http.ReadResponse(r, nil)
	if err != nil {
		return err
	}
	body, err := io.ReadAll(resp.Body)
	if err == nil && string(body) != "app" {
		err = fmt.Errorf("answered by %q", body)
	}
	if err == nil && closes == "close" {
		if _, err = r.ReadByte(); err == io.EOF {
			err = nil
		}
	}
	return err
}
