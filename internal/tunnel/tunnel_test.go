package tunnel_test

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// pair is a relay with one opened tunnel through it: near is the opener's end, far the accepter's.
func pair(t *testing.T) (near, far *tunnel.Conn) {
	t.Helper()
	conn := relay(t)
	far2 := make(chan *tunnel.Conn, 1)
	go func() {
		s, cancel := stream(t, conn, "/test/Accept")
		_, c, err := tunnel.Accept(s, tunnel.OnClose(cancel))
		if err == nil {
			err = c.Answer(tunnelpb.Opened_OK, "")
		}
		assert.NoError(t, err)
		far2 <- c
	}()
	s, cancel := stream(t, conn, "/test/Open")
	near, err := tunnel.Open(s, &tunnelpb.Open{InterceptUid: "u"}, tunnel.OnClose(cancel))
	require.NoError(t, err)
	answer, err := near.Opened(t.Context())
	require.NoError(t, err)
	require.Equal(t, tunnelpb.Opened_OK, answer.GetResult())
	return near, <-far2
}

// relay is a server that joins each opened stream with a parked one.
func relay(t testing.TB) *grpc.ClientConn {
	t.Helper()
	type parked struct {
		s    grpc.ServerStream
		done chan error
	}
	waiting := make(chan parked)
	handler := func(_ any, s grpc.ServerStream) error {
		if method, _ := grpc.MethodFromServerStream(s); method == "/test/Accept" {
			p := parked{s, make(chan error, 1)}
			waiting <- p
			return <-p.done
		}
		open, err := tunnel.RecvOpen(s)
		if err != nil {
			return err
		}
		p := <-waiting
		if err := tunnel.SendOpen(p.s, open); err != nil {
			return err
		}
		err = tunnel.Relay(s, p.s)
		p.done <- err
		return err
	}
	server := grpc.NewServer(append(tunnel.ServerOptions(), grpc.UnknownServiceHandler(handler))...)
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go func() { _ = server.Serve(listener) }()
	t.Cleanup(server.Stop)
	conn, err := grpc.NewClient(listener.Addr().String(), append(tunnel.DialOptions(), grpc.WithTransportCredentials(insecure.NewCredentials()))...)
	require.NoError(t, err)
	t.Cleanup(func() { _ = conn.Close() })
	return conn
}

func stream(t testing.TB, conn *grpc.ClientConn, method string) (grpc.ClientStream, context.CancelFunc) {
	t.Helper()
	ctx, cancel := context.WithCancel(context.Background())
	s, err := conn.NewStream(ctx, &grpc.StreamDesc{ClientStreams: true, ServerStreams: true}, method)
	require.NoError(t, err)
	return s, cancel
}

func TestBytesArriveUnchangedInBothDirectionsAndEndWithHalfClose(t *testing.T) {
	near, far := pair(t)
	for _, direction := range [][2]*tunnel.Conn{{near, far}, {far, near}} {
		from, to := direction[0], direction[1]
		sent, received := sha256.New(), sha256.New()
		go func() {
			_, err := io.Copy(io.MultiWriter(from, sent), io.LimitReader(rand.Reader, 8<<20))
			assert.NoError(t, err)
			assert.NoError(t, from.CloseWrite())
		}()
		n, err := io.Copy(received, to)
		require.NoError(t, err)
		assert.EqualValues(t, 8<<20, n)
		assert.Equal(t, sent.Sum(nil), received.Sum(nil))
	}
}

func TestResetReachesTheOtherEnd(t *testing.T) {
	near, far := pair(t)
	near.Reset("test")
	_, err := far.Read(make([]byte, 1))
	var reset *tunnel.ResetError
	require.ErrorAs(t, err, &reset)
}

func TestAStoppedReaderHoldsItsWriterBack(t *testing.T) {
	near, far := pair(t)
	written := make(chan int)
	go func() {
		total := 0
		for {
			n, err := near.Write(make([]byte, 64<<10))
			total += n
			if err != nil {
				written <- total
				return
			}
		}
	}()
	time.Sleep(time.Second) // nothing to wait for: the claim is that nothing more happens
	far.Reset("enough")
	assert.Less(t, <-written, 40<<20)
}

func TestReadDeadline(t *testing.T) {
	near, far := pair(t)
	require.NoError(t, near.SetReadDeadline(time.Now().Add(10*time.Millisecond)))
	_, err := near.Read(make([]byte, 1))
	require.ErrorContains(t, err, "timeout")
	require.NoError(t, near.SetReadDeadline(time.Time{}))
	_, err = far.Write([]byte("x"))
	require.NoError(t, err)
	_, err = near.Read(make([]byte, 1))
	require.NoError(t, err)
}
