// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/tunnel"
)

func TestInterceptOfUDP(t *testing.T) {
	t.Run("datagrams reach the local port", func(t *testing.T) {
		w := connected(t)
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		defer c.Close()
		go func() {
			buffer := make([]byte, 100)
			for {
				n, from, err := c.ReadFrom(buffer)
				if err != nil {
					return
				}
				_, _ = c.WriteTo(append([]byte("laptop "), buffer[:n]...), from)
			}
		}()
		port := int32(c.LocalAddr().(*net.UDPAddr).Port)
		info, said, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: port, PortIdentifier: "dns", Protocol: "UDP"})
		require.NoError(t, err)
		for _, line := range said {
			assert.NotContains(t, line, "nothing listens")
		}
		assert.Equal(t, "UDP", info.GetProtocol())
		assert.Equal(t, "dns/UDP", info.GetServicePort())
		object := w.object()
		assert.Equal(t, v1alpha1.ProtocolUDP, object.Spec.Protocol)
		tun, _, err := w.manager.Open(t.Context(), object, false)
		require.NoError(t, err)
		defer tun.Close()
		require.NoError(t, tun.SetReadDeadline(time.Now().Add(20*time.Second)))
		answer, err := tunnel.ReadDatagram(tun, nil)
		require.NoError(t, err)
		assert.Equal(t, "laptop hello", string(answer))

		t.Run("while TCP goes to the same number", func(t *testing.T) {
			_, said, err := w.intercept(t.Context(),
				&daemonpb.InterceptRequest{Name: "stock", LocalPort: port, PortIdentifier: "http"})
			require.NoError(t, err)
			assert.Contains(t, said, fmt.Sprintf(
				"warning: nothing listens on 127.0.0.1:%d yet: until something does, the pods answer", port))
		})
		t.Run("which cannot become another protocol's", func(t *testing.T) {
			_, _, err := w.intercept(t.Context(),
				&daemonpb.InterceptRequest{Name: "orders", LocalPort: port, PortIdentifier: "http",
					Protocol: "TCP"})
			assert.Equal(t, reason.InterceptExists, reason.Of(err))
			assert.ErrorContains(t, err, "takes all UDP datagrams")
		})
	})
	t.Run("a silent local port is mentioned", func(t *testing.T) {
		w := connected(t)
		c, err := net.ListenPacket("udp", "127.0.0.1:0")
		require.NoError(t, err)
		port := int32(c.LocalAddr().(*net.UDPAddr).Port)
		require.NoError(t, c.Close())
		_, said, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: port, PortIdentifier: "dns", Protocol: "UDP"})
		require.NoError(t, err)
		assert.Contains(t, said, fmt.Sprintf(
			"warning: nothing listens on 127.0.0.1:%d yet: until something does, the pods answer", port))
	})
	t.Run("a traffic manager that knows nothing of it gets no intercept of TCP instead", func(t *testing.T) {
		w := connected(t)
		w.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			st := clienttest.Active(i)
			st.Protocol = ""
			return st
		})
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", LocalPort: 5353, PortIdentifier: "dns", Protocol: "UDP"})
		assert.ErrorContains(t, err, "the traffic manager is older than this program")
		assert.Empty(t, w.api.Intercepts())
	})
	t.Run("requests cannot be told apart", func(t *testing.T) {
		w := connected(t)
		_, _, err := w.intercept(t.Context(),
			&daemonpb.InterceptRequest{Name: "orders", Protocol: "UDP", Mechanism: "http", AutoHeader: true})
		assert.Equal(t, reason.Invalid, reason.Of(err))
	})
}
