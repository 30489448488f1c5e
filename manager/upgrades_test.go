// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bufio"
	"context"
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/google/uuid"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/metadata"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/tlsbatch"
	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/internal/version"
	"sidestep.dev/sidestep/manager/web"
)

// upgrade asks a port for a connection.
func upgrade(address, protocol string) (net.Conn, *http.Response, error) {
	conn, err := net.Dial("tcp", address)
	if err != nil {
		return nil, nil, err
	}
	fmt.Fprintf(conn, "GET %s HTTP/1.1\r\nHost: manager\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		tunnel.UpgradePath, protocol)
	res, err := http.ReadResponse(bufio.NewReaderSize(conn, 16), nil)
	if err != nil {
		_ = conn.Close()
	}
	return conn, res, err
}

// overUpgrade makes a gRPC connection of an upgraded request.
func (r *running) overUpgrade(t *testing.T, address string) *grpc.ClientConn {
	t.Helper()
	conn, err := grpc.NewClient("passthrough:manager", append(tunnel.DialOptions(),
		grpc.WithTransportCredentials(tlsbatch.Credentials(r.tls)),
		grpc.WithContextDialer(func(context.Context, string) (net.Conn, error) {
			conn, res, err := upgrade(address, tunnel.UpgradeProtocol)
			if err == nil && res.StatusCode != http.StatusSwitchingProtocols {
				err = fmt.Errorf("%s", res.Status)
			}
			return conn, err
		}))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func TestLaptopsConnectByAnUpgradedRequest(t *testing.T) {
	for _, port := range []string{web.PortConnect, web.PortHTTP} {
		t.Run(port, func(t *testing.T) {
			r := start(t, newKube())
			r.ready(t)
			address, other := r.connect, web.PortHTTP
			if port == web.PortHTTP { // laptops of the minor version before
				address, other = strings.TrimPrefix(r.http, "http://"), web.PortConnect
			}
			connectsByUpgrade(t, r, address)
			r.measures(t, fmt.Sprintf(`sidestep_manager_connects_total{port=%q} 1`, port),
				fmt.Sprintf(`sidestep_manager_connects_total{port=%q} 0`, other))
		})
	}
}

func TestThePortForLaptopsServesNothingElse(t *testing.T) {
	r := start(t, newKube())
	r.ready(t)
	for _, path := range []string{"/metrics", "/healthz", "/readyz", "/"} {
		code, _ := get(t, "http://"+r.connect+path)
		assert.Equal(t, http.StatusNotFound, code, path)
	}
}

// connectsByUpgrade holds a session over an upgraded request until the manager stops.
func connectsByUpgrade(t *testing.T, r *running, address string) {
	conn := r.overUpgrade(t, address)
	session := newSession(t, conn)
	r.measures(t, "sidestep_manager_sessions 1")

	agents, err := agentpb.NewAgentsClient(conn).Tunnel(metadata.AppendToOutgoingContext(t.Context(),
		"authorization", "Bearer node/n1"))
	require.NoError(t, err)
	_, err = agents.Recv()
	assert.Equal(t, codes.Unimplemented, status.Code(err), "node agents have nothing to look for here")
	assert.Zero(t, r.kube.reviews.Load(), "nobody makes the manager ask the API server about tokens here")
	require.NoError(t, session.CloseSend())
}

func TestAnUpgradedConnectionEndsInOrderWithTheManager(t *testing.T) {
	r := start(t, newKube())
	r.ready(t)
	session := newSession(t, r.overUpgrade(t, r.connect))
	r.stop()
	var err error
	for err == nil {
		_, err = session.Recv()
	}
	assert.Equal(t, codes.Unavailable, status.Code(err), "the manager says that it stops: %v", err)
}

// newSession returns a session that the manager has greeted.
func newSession(t *testing.T, conn *grpc.ClientConn) grpc.BidiStreamingClient[clientpb.ClientMessage,
	clientpb.ManagerMessage] {
	t.Helper()
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	ctx := metadata.AppendToOutgoingContext(t.Context(), "sidestep-session-key", hex.EncodeToString(key))
	session, err := clientpb.NewClientsClient(conn).Session(ctx)
	require.NoError(t, err)
	hello := &clientpb.ClientHello{Session: uuid.NewString(), Holder: "me@laptop", Version: "v1",
		Protocol: version.Protocol}
	require.NoError(t, session.Send(
		&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{Hello: hello}}))
	answer, err := session.Recv()
	require.NoError(t, err)
	assert.Equal(t, version.Version, answer.GetHello().GetVersion())
	return session
}

func TestOtherRequestsAreNotUpgraded(t *testing.T) {
	r := start(t, newKube())
	r.ready(t)
	for _, protocol := range []string{"websocket", "", "h2c"} {
		conn, res, err := upgrade(r.connect, protocol)
		require.NoError(t, err)
		assert.Equal(t, http.StatusUpgradeRequired, res.StatusCode, protocol)
		assert.Equal(t, tunnel.UpgradeProtocol, res.Header.Get("Upgrade"))
		_ = conn.Close()
	}
	res, err := http.Post(r.http+tunnel.UpgradePath, "text/plain", strings.NewReader("hello"))
	require.NoError(t, err)
	_ = res.Body.Close()
	assert.Equal(t, http.StatusMethodNotAllowed, res.StatusCode)
}

func TestWhoeverSpeaksNoTLSIsSentAway(t *testing.T) {
	r := start(t, newKube())
	r.ready(t)
	conn, res, err := upgrade(r.connect, tunnel.UpgradeProtocol)
	require.NoError(t, err)
	defer conn.Close()
	require.Equal(t, http.StatusSwitchingProtocols, res.StatusCode)
	_, err = io.WriteString(conn, "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n")
	require.NoError(t, err)
	require.NoError(t, conn.SetReadDeadline(time.Now().Add(patient)))
	_, err = io.Copy(io.Discard, conn)
	assert.False(t, os.IsTimeout(err), "the connection stays open")
}
