// SPDX-License-Identifier: Apache-2.0

package sockdiag_test

import (
	"io"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

func addrOf(a net.Addr) netip.AddrPort {
	at := a.(*net.TCPAddr).AddrPort()
	return netip.AddrPortFrom(at.Addr().Unmap(), at.Port())
}

func TestFindAndDestroyOneOfTwoConnections(t *testing.T) {
	for name, address := range map[string]string{
		"IPv4": "127.0.0.1:0", "IPv6": "[::1]:0", "IPv4 to a listener of both families": ":0",
	} {
		t.Run(name, func(t *testing.T) {
			node := testnet.NewNode(t)
			l := testnet.Listen(t, node.Namespace, address)
			to := addrOf(l.Addr())
			if to.Addr().IsUnspecified() {
				to = netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), to.Port())
			}
			var clients []net.Conn
			for range 2 {
				c, err := testnet.Dial(t.Context(), node.Namespace, to)
				require.NoError(t, err)
				t.Cleanup(func() { _ = c.Close() })
				accepted, err := l.Accept()
				require.NoError(t, err)
				t.Cleanup(func() { _ = accepted.Close() })
				clients = append(clients, c)
				go func() { _, _ = io.Copy(accepted, accepted) }()
			}
			remote, local := addrOf(clients[0].LocalAddr()), to
			require.NoError(t, node.Do(func() error {
				s, err := sockdiag.Find(remote, local)
				require.NoError(t, err)
				assert.Equal(t, remote, s.Remote)
				assert.Equal(t, local, s.Local)
				listed, err := sockdiag.List(local.Port())
				require.NoError(t, err)
				var cookies []uint64
				for _, other := range listed {
					cookies = append(cookies, other.Cookie())
				}
				assert.Len(t, cookies, 2)
				assert.Contains(t, cookies, s.Cookie())
				return sockdiag.Destroy(&s)
			}))
			for _, c := range clients {
				require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
			}
			_, err := clients[0].Read(make([]byte, 1))
			assert.ErrorIs(t, err, unix.ECONNRESET)
			_, err = clients[1].Write([]byte("x"))
			require.NoError(t, err)
			_, err = io.ReadFull(clients[1], make([]byte, 1))
			assert.NoError(t, err, "the other one goes on")
			require.NoError(t, node.Do(func() error {
				_, err := sockdiag.Find(remote, local)
				assert.ErrorIs(t, err, sockdiag.ErrNotFound)
				return nil
			}))
		})
	}
}
