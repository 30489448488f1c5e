// SPDX-License-Identifier: Apache-2.0

//lint:file-ignore SA1019 No other server takes Upgrade: h2c.

package proxy

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os/exec"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	xhttp2 "golang.org/x/net/http2"
	h2cupgrade "golang.org/x/net/http2/h2c"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	"google.golang.org/grpc/health"
	healthpb "google.golang.org/grpc/health/grpc_health_v1"
)

func TestGRPCProbesReachTheApp(t *testing.T) {
	serve := func(status healthpb.HealthCheckResponse_ServingStatus) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		require.NoError(t, err)
		s := grpc.NewServer()
		h := health.NewServer()
		h.SetServingStatus("", status)
		healthpb.RegisterHealthServer(s, h)
		go s.Serve(l)
		t.Cleanup(s.Stop)
		return l.Addr().String()
	}
	const app, laptop = healthpb.HealthCheckResponse_SERVING, healthpb.HealthCheckResponse_NOT_SERVING
	w := newWorld(t, serve(app), serve(laptop))
	everything := Rule{InterceptUID: "uid-1", Namespace: "shop", Name: "orders", Connected: true}
	check := func(kubelet Kubelet, agent string) healthpb.HealthCheckResponse_ServingStatus {
		w.target.SetRules([]Rule{everything}, kubelet)
		cc, err := grpc.NewClient("passthrough:"+w.addr,
			grpc.WithTransportCredentials(insecure.NewCredentials()), grpc.WithUserAgent(agent))
		require.NoError(t, err)
		defer cc.Close()
		ctx, _ := as(t, false)
		resp, err := healthpb.NewHealthClient(cc).Check(ctx, &healthpb.HealthCheckRequest{})
		require.NoError(t, err)
		return resp.Status
	}
	here := Kubelet{HostIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")}, GRPC: true}
	assert.Equal(t, laptop, check(Kubelet{}, "someone/1"))
	assert.Equal(t, app, check(Kubelet{}, "kube-probe/1.34"))
	assert.Equal(t, app, check(here, "someone/1"))
	here.HostIPs[0] = netip.MustParseAddr("192.0.2.1")
	assert.Equal(t, laptop, check(here, "someone/1"))
}

func TestAnAppThatSendsSettingsFirstIsRoutedByStream(t *testing.T) {
	_, _, app := grpcServer(t, "app") // one of gRPC does
	_, _, local := grpcServer(t, "laptop")
	direct := connect(t, app)
	settings := make([]byte, 9)
	_, err := io.ReadFull(direct, settings)
	require.NoError(t, err)
	require.Equal(t, byte(4), settings[3])
	for range 5 {
		w := newWorld(t, app, local)
		w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
		conn, err := net.Dial("tcp", w.addr)
		require.NoError(t, err)
		require.Eventually(t, func() bool { return w.appDials() == 1 }, 30*time.Second, time.Millisecond)
		time.Sleep(5 * time.Millisecond) // so that the app speaks first
		c := grpcClient(t, w.addr,
			grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) { return conn, nil }))
		for _, me := range []bool{false, true} {
			ctx, who := as(t, me)
			require.NoError(t, callAll(ctx, c, who))
		}
		conn.Close()
	}
}

func TestConnectionsThatAreUpgradedToHTTP2GoWhole(t *testing.T) {
	serve := func(name string) string {
		h := http.HandlerFunc(func(w http.ResponseWriter,
			r *http.Request) {
			io.WriteString(w, name+" "+r.Proto)
		})
		return httpServer(t, h2cupgrade.NewHandler(h, &xhttp2.Server{}).ServeHTTP)
	}
	w := newWorld(t, serve("app"), serve("laptop"))
	w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
	for me, who := range map[string]string{"you": "app", "me": "laptop"} {
		out, err := exec.Command("curl", "-sS", "--http2", "-H", "x-dev: "+me, "http://"+w.addr+
			"/").CombinedOutput()
		require.NoError(t, err, "%s", out)
		assert.Contains(t, string(out), who+" HTTP/")
	}
}
