// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
	"golang.org/x/net/http2/hpack"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Hostile peers run in a process of their own, so that the memory of this one is the manager's.

const floodVariable = "SIDESTEP_TEST_FLOOD"

func TestMain(m *testing.M) {
	if plan := os.Getenv(floodVariable); plan != "" {
		flood(plan)
		return
	}
	os.Exit(m.Run())
}

// attack is what hostile peers do.
type attack struct {
	GRPC, Connect, HTTP string
	Peers               int
	// Token is a node agent's, and Key that of a session with an Intercept. With them, others do nothing.
	Token, Key string
}

// unleash lets hostile peers loose until the test ends. It returns when each of them has been at it.
func unleash(t *testing.T, a attack) {
	t.Helper()
	plan, err := json.Marshal(a)
	require.NoError(t, err)
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), floodVariable+"="+string(plan), "GOMEMLIMIT=1GiB",
		"GOMAXPROCS=1") // one processor is left to the others
	cmd.Stderr = os.Stderr
	in, err := cmd.StdinPipe()
	require.NoError(t, err)
	out, err := cmd.StdoutPipe()
	require.NoError(t, err)
	require.NoError(t, cmd.Start())
	t.Cleanup(func() {
		_ = in.Close()
		report, _ := io.ReadAll(out)
		_ = cmd.Wait()
		t.Logf("hostile peers: %s", report)
	})
	_, err = io.ReadFull(out, make([]byte, 1))
	require.NoError(t, err)
}

// flood attacks until stdin ends. It writes a byte when each peer has done something, and at its end
// how often they did.
func flood(plan string) {
	var a attack
	if err := json.Unmarshal([]byte(plan), &a); err != nil {
		panic(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		_, _ = io.Copy(io.Discard, os.Stdin)
		cancel()
	}()
	roles := []role{{"node agents", a.agent}, {"laptops", a.laptop}}
	if a.Token == "" {
		roles = a.strangers()
	}
	counts := make([]atomic.Int64, len(roles))
	var all, first sync.WaitGroup
	for i := range a.Peers {
		first.Add(1)
		all.Go(func() {
			did := sync.OnceFunc(first.Done)
			// Each peer has an address of its own.
			p := &hostile{net.Dialer{Timeout: 5 * time.Second,
				LocalAddr: &net.TCPAddr{IP: net.IPv4(127, 9, byte(i/250), byte(i%250+1))}}}
			which := i % len(roles)
			for ctx.Err() == nil {
				turn, end := context.WithTimeout(ctx, 20*time.Second)
				_ = roles[which].act(turn, p)
				end()
				counts[which].Add(1)
				did()
				select {
				case <-ctx.Done():
				case <-time.After(50 * time.Millisecond):
				}
			}
			did()
		})
	}
	go func() {
		time.Sleep(3 * time.Second) // some roles wait for long
		fmt.Print("!")
	}()
	all.Wait()
	for i, r := range roles {
		fmt.Printf("%s %d, ", r.name, counts[i].Load())
	}
}

type role struct {
	name string
	act  func(context.Context, *hostile) error
}

func (a *attack) strangers() []role {
	return []role{
		{"no handshake", a.noHandshake}, {"no greeting", a.noGreeting}, {"pings", a.pings},
		{"sessions", a.session}, {"streams that are never read", a.streams}, {"metadata", a.metadata},
		{"upgrades", a.upgrade}, {"sessions by upgrades", a.upgraded}, {"half a request", a.halfRequest},
		{"no token", a.noToken},
	}
}

// hostile is a peer.
type hostile struct{ net.Dialer }

// dial connects, and closes the connection when ctx is done.
func (p *hostile) dial(ctx context.Context, address string) (net.Conn, error) {
	c, err := p.DialContext(ctx, "tcp", address)
	if err == nil {
		context.AfterFunc(ctx, func() { _ = c.Close() })
	}
	return c, err
}

// wait reads until the other end has enough.
func wait(c net.Conn) error {
	_, err := io.Copy(io.Discard, c)
	_ = c.Close()
	return err
}

func (a *attack) noHandshake(ctx context.Context, p *hostile) error {
	c, err := p.dial(ctx, a.GRPC)
	if err != nil {
		return err
	}
	_, _ = c.Write([]byte("\x16\x03\x01\x40\x00\x01\x00"))
	return wait(c)
}

func (a *attack) noGreeting(ctx context.Context, p *hostile) error {
	h, err := a.speak(ctx, p)
	if err != nil {
		return err
	}
	return wait(h.Conn)
}

func (a *attack) pings(ctx context.Context, p *hostile) error {
	h, err := a.speak(ctx, p)
	for err == nil { // never reading
		err = h.framer.WritePing(false, [8]byte{})
	}
	return err
}

func (a *attack) session(ctx context.Context, p *hostile) error {
	h, err := a.speak(ctx, p)
	if err != nil {
		return err
	}
	key := randomKey()
	if err := h.greet(key); err != nil {
		return err
	}
	for range 5000 {
		if _, err := h.call("/sidestep.client.v1.Clients/Nodes", key, []byte{0, 0, 0, 0, 0}, true); err != nil {
			return err
		}
	}
	return wait(h.Conn)
}

func (a *attack) streams(ctx context.Context, p *hostile) error {
	c, err := p.dial(ctx, a.GRPC)
	if err != nil {
		return err
	}
	return occupy(ctx, c, randomKey())
}

// occupy opens streams in a session and fills them.
func occupy(ctx context.Context, c net.Conn, key string) error {
	h, err := speak(ctx, c)
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(io.Discard, h.Conn) }()
	if err := h.greet(key); err != nil {
		return err
	}
	for {
		id, err := h.call("/sidestep.client.v1.Clients/Accept", key, nil, false)
		if err == nil {
			err = h.fill(id)
		}
		if err != nil {
			return err
		}
	}
}

// fill sends a stream a part of a message, as much as the manager's window takes.
func (h *h2) fill(id uint32) error {
	block := make([]byte, 16<<10)
	copy(block, []byte{0, 0, 0x0f, 0xff, 0xff})
	for range 63 {
		if err := h.framer.WriteData(id, false, block); err != nil {
			return err
		}
	}
	return nil
}

// laptop is that of a developer who holds an Intercept.
func (a *attack) laptop(ctx context.Context, p *hostile) error {
	c, err := p.dial(ctx, a.GRPC)
	if err != nil {
		return err
	}
	return occupy(ctx, c, a.Key)
}

// agent is a node agent.
func (a *attack) agent(ctx context.Context, p *hostile) error {
	h, err := a.speak(ctx, p)
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(io.Discard, h.Conn) }()
	for i := 0; ; i++ {
		method := []string{"Tunnel", "AcceptToPod", "Environments", "Tunnel", "Attach"}[i%5]
		id, err := h.callAs("/sidestep.agent.v1.Agents/"+method,
			hpack.HeaderField{Name: "authorization", Value: "Bearer " + a.Token})
		if err == nil {
			err = h.fill(id)
		}
		if err != nil {
			return err
		}
	}
}

func (a *attack) metadata(ctx context.Context, p *hostile) error {
	h, err := a.speak(ctx, p)
	if err != nil {
		return err
	}
	for i := 0; ; i++ {
		_, err := h.call("/sidestep.client.v1.Clients/Session", strings.Repeat("k", 12<<10+i%1000), nil, false)
		if err != nil {
			return err
		}
	}
}

func (a *attack) upgrade(ctx context.Context, p *hostile) error {
	c, err := a.upgradedConn(ctx, p)
	if err != nil {
		return err
	}
	return wait(c)
}

func (a *attack) upgraded(ctx context.Context, p *hostile) error {
	c, err := a.upgradedConn(ctx, p)
	if err != nil {
		return err
	}
	return occupy(ctx, c, randomKey())
}

func (a *attack) upgradedConn(ctx context.Context, p *hostile) (net.Conn, error) {
	c, err := p.dial(ctx, a.Connect)
	if err != nil {
		return nil, err
	}
	_, err = fmt.Fprintf(c, "GET %s HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		tunnel.UpgradePath, tunnel.UpgradeProtocol)
	answer := make([]byte, 12)
	if err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && string(answer) != "HTTP/1.1 101" {
		err = fmt.Errorf("answer %q", answer)
	}
	for end := ""; err == nil && !strings.HasSuffix(end, "\r\n\r\n"); {
		_, err = io.ReadFull(c, answer[:1])
		end += string(answer[:1])
	}
	return c, err
}

func (a *attack) halfRequest(ctx context.Context, p *hostile) error {
	c, err := p.dial(ctx, a.HTTP)
	if err != nil {
		return err
	}
	_, _ = fmt.Fprintf(c, "GET /metrics HTTP/1.1\r\nHost: x\r\nX: %s", strings.Repeat("x", 15<<10))
	return wait(c)
}

func (a *attack) noToken(ctx context.Context, p *hostile) error {
	h, err := a.speak(ctx, p)
	if err != nil {
		return err
	}
	go func() { _, _ = io.Copy(io.Discard, h.Conn) }()
	for i := 0; ; i++ {
		method := []string{"Attach", "Tunnel", "AcceptToPod", "Environments"}[i%4]
		id, err := h.callAs("/sidestep.agent.v1.Agents/"+method,
			hpack.HeaderField{Name: "authorization", Value: "Bearer " + randomKey()})
		if err == nil {
			err = h.framer.WriteData(id, false, make([]byte, 1000))
		}
		if err != nil {
			return err
		}
	}
}

func randomKey() string {
	key := make([]byte, 32)
	_, _ = rand.Read(key)
	return hex.EncodeToString(key)
}

// h2 is a connection that keeps no rule of HTTP/2 but the format of its frames.
type h2 struct {
	net.Conn
	framer *http2.Framer
	next   uint32
}

// speak begins HTTP/2 on a new connection to the gRPC port.
func (a *attack) speak(ctx context.Context, p *hostile) (*h2, error) {
	c, err := p.dial(ctx, a.GRPC)
	if err != nil {
		return nil, err
	}
	return speak(ctx, c)
}

func speak(ctx context.Context, c net.Conn) (*h2, error) {
	sealed := tls.Client(c, &tls.Config{InsecureSkipVerify: true, NextProtos: []string{"h2"}})
	if err := sealed.HandshakeContext(ctx); err != nil {
		return nil, err
	}
	if _, err := io.WriteString(sealed, http2.ClientPreface); err != nil {
		return nil, err
	}
	h := &h2{Conn: sealed, framer: http2.NewFramer(sealed, sealed), next: 1}
	// What it asks for is never sent.
	return h, h.framer.WriteSettings(http2.Setting{ID: http2.SettingInitialWindowSize, Val: 0})
}

func (h *h2) callAs(method string, more ...hpack.HeaderField) (id uint32, err error) {
	var block strings.Builder
	encoder := hpack.NewEncoder(&block)
	for _, f := range append([]hpack.HeaderField{
		{Name: ":method", Value: "POST"}, {Name: ":scheme", Value: "https"}, {Name: ":path", Value: method},
		{Name: ":authority", Value: "sidestep-manager"}, {Name: "content-type", Value: "application/grpc"},
		{Name: "te", Value: "trailers"},
	}, more...) {
		if err := encoder.WriteField(f); err != nil {
			return 0, err
		}
	}
	id = h.next
	h.next += 2
	fragment := []byte(block.String())
	head := fragment[:min(len(fragment), 16<<10)]
	rest := fragment[len(head):]
	err = h.framer.WriteHeaders(http2.HeadersFrameParam{StreamID: id, BlockFragment: head,
		EndHeaders: len(rest) == 0})
	if err == nil && len(rest) > 0 {
		err = h.framer.WriteContinuation(id, true, rest)
	}
	return id, err
}

// call makes a call that shows a session key.
func (h *h2) call(method, key string, data []byte, end bool) (id uint32, err error) {
	id, err = h.callAs(method, hpack.HeaderField{Name: "sidestep-session-key", Value: key})
	if err == nil && data != nil {
		err = h.framer.WriteData(id, end, data)
	}
	return id, err
}

// greet begins a session.
func (h *h2) greet(key string) error {
	hello, err := proto.Marshal(&clientpb.ClientMessage{Message: &clientpb.ClientMessage_Hello{
		Hello: &clientpb.ClientHello{Session: "0b7a3f5e-9d0c-4b5e-8a52-6f2d1c0e9a11", Holder: "mallory",
			Protocol: 1}}})
	if err != nil {
		return err
	}
	if len(hello) > 255 {
		return errors.New("a long hello")
	}
	message := append([]byte{0, 0, 0, 0, byte(len(hello))}, hello...)
	_, err = h.call("/sidestep.client.v1.Clients/Session", key, message, false)
	return err
}
