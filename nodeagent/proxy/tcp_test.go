// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
)

// named greets if it speaks first, and answers everything up to the client's half-close with its
// name and what it got.
func named(t *testing.T, name string, first bool) string {
	return rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		if first {
			io.WriteString(c, "hello\n")
		}
		b, err := io.ReadAll(r)
		if err != nil {
			return
		}
		fmt.Fprintf(c, "%s got %d:%s", name, len(b), b)
	})
}

func tcpRule() Rule {
	return Rule{InterceptUID: "tcp-1", Namespace: "shop", Name: "orders", TCP: true, Connected: true}
}

func TestATCPRuleHasWholeConnections(t *testing.T) {
	w := newWorld(t, named(t, "app", true), named(t, "laptop", true))
	w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
	c := w.connect()
	line, err := c.r.ReadString('\n')
	require.NoError(t, err)
	assert.Equal(t, "hello\n", line)
	c.send("GET / HTTP/1.1\r\n\r\n")
	c.CloseWrite()
	got, err := c.rest()
	assert.NoError(t, err)
	assert.Equal(t, "laptop got 18:GET / HTTP/1.1\r\n\r\n", got)
	assert.Zero(t, w.appDials())
	assert.Equal(t, InterceptStats{Matched: 1, Answered: 1}, w.target.Stats().Intercepts["tcp-1"])
}

func TestATCPRuleThatIsNotConnectedLeavesTheAppItsConnections(t *testing.T) {
	w := newWorld(t, named(t, "app", false), named(t, "laptop", false))
	r := tcpRule()
	r.Connected = false
	w.target.SetRules([]Rule{r}, Kubelet{})
	c := w.connect()
	c.send("hi")
	c.CloseWrite()
	got, err := c.rest()
	assert.NoError(t, err)
	assert.Equal(t, "app got 2:hi", got)
	var want InterceptStats
	want.Unanswered[divert.Unreachable] = 1
	assert.Equal(t, want, w.target.Stats().Intercepts["tcp-1"])
}

func TestTheAppGetsAConnectionWithAllItsBytes(t *testing.T) {
	for name, spoil := range map[string]struct {
		how    func(*laptop)
		reason divert.Reason
	}{
		"there is no manager": {func(l *laptop) { l.gone = true }, divert.Unreachable},
		"the laptop is not connected": {func(l *laptop) {
			l.answer = func(*tunnelpb.Open) tunnelpb.Opened_Result { return tunnelpb.Opened_NO_CLIENT }
		}, divert.Unreachable},
		"nothing listens on the laptop": {func(l *laptop) { l.local = "127.0.0.1:1" }, divert.LocalRefused},
		"nobody answers OPEN":           {func(l *laptop) { l.delay = make(chan struct{}) }, divert.Silent},
	} {
		for size, say := range map[string]string{"nothing": "", "little": "abc",
			"much": strings.Repeat("0123456789", 50_000)} {
			t.Run(name+", "+size, func(t *testing.T) {
				w := newWorldWith(t, named(t, "app", true), named(t, "laptop", false), impatient)
				w.laptop.set(spoil.how)
				w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
				c := w.connect()
				go func() {
					c.Write([]byte(say))
					c.CloseWrite()
				}()
				got, err := c.rest()
				assert.NoError(t, err)
				assert.True(t, fmt.Sprintf("hello\napp got %d:%s", len(say), say) == got, "%d bytes", len(got))
				want := InterceptStats{Fallbacks: 1}
				want.Unanswered[spoil.reason] = 1
				assert.Equal(t, want, w.target.Stats().Intercepts["tcp-1"])
			})
		}
	}
}

func TestWhatTheClientSendsWhileTheLaptopConnects(t *testing.T) {
	delay := make(chan struct{})
	w := newWorld(t, named(t, "app", false), named(t, "laptop", false))
	w.laptop.set(func(l *laptop) { l.delay = delay })
	w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
	data := make([]byte, 1<<20)
	rand.Read(data)
	c := w.connect()
	go func() {
		for p := data; len(p) > 0; p = p[10_000:] {
			if len(p) < 10_000 {
				c.Write(p)
				break
			}
			c.Write(p[:10_000])
		}
		c.CloseWrite()
	}()
	time.AfterFunc(100*time.Millisecond, func() { close(delay) })
	got, err := c.rest()
	assert.NoError(t, err)
	want := append(fmt.Appendf(nil, "laptop got %d:", len(data)), data...)
	assert.True(t, bytes.Equal(want, []byte(got)), "%d bytes", len(got))
}

func TestAClientThatLeavesWhileTheLaptopConnects(t *testing.T) {
	w := newWorld(t, named(t, "app", false), named(t, "laptop", false))
	w.laptop.set(func(l *laptop) { l.delay = make(chan struct{}) })
	w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
	c := w.connect()
	require.Eventually(t, func() bool { return w.laptop.opened() == 1 }, time.Second, time.Millisecond)
	c.SetLinger(0)
	c.Close()
	require.Eventually(t, func() bool { return w.target.Stats().Open == 0 }, time.Second, time.Millisecond)
	assert.Zero(t, w.appDials())
}

func TestRemovingATCPRuleResetsItsConnections(t *testing.T) {
	echo := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) { io.Copy(c, r) })
	w := newWorld(t, named(t, "app", true), echo)
	w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
	c := w.connect()
	for _, word := range []string{"before\n", "after\n"} {
		c.send("%s", word)
		got, err := c.r.ReadString('\n')
		require.NoError(t, err)
		assert.Equal(t, word, got)
		w.target.SetRules([]Rule{tcpRule()}, Kubelet{}) // the same again changes nothing
	}
	w.target.SetRules(nil, Kubelet{})
	_, err := c.r.ReadByte()
	assert.ErrorIs(t, err, syscall.ECONNRESET)
}

func TestResetsPassThroughTunnels(t *testing.T) {
	begun, result := make(chan struct{}), make(chan error, 1)
	local := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) {
		b, _ := r.ReadByte()
		if b == 'R' {
			c.SetLinger(0)
			return
		}
		close(begun)
		_, err := r.ReadByte()
		result <- err
	})
	w := newWorld(t, named(t, "app", true), local)
	w.target.SetRules([]Rule{tcpRule()}, Kubelet{})
	c := w.connect()
	c.send("R")
	_, err := c.r.ReadByte()
	assert.ErrorIs(t, err, syscall.ECONNRESET)
	c = w.connect()
	c.send("x")
	<-begun
	c.SetLinger(0)
	c.Close()
	assert.ErrorIs(t, <-result, syscall.ECONNRESET)
}

func TestCancellingServeResetsAllKindsOfConnections(t *testing.T) {
	for name, rules := range map[string][]Rule{"tcp": {tcpRule()}, "none": nil,
		"raw": {{InterceptUID: "x", TCP: true}}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, named(t, "app", true), named(t, "laptop", true))
			w.target.SetRules(rules, Kubelet{})
			ctx, cancel := context.WithCancel(t.Context())
			addr := serveOn(t, func(_ context.Context, c *net.TCPConn) { w.proxy.Serve(ctx, c, w.target) })
			c := connect(t, addr)
			_, err := c.r.ReadString('\n')
			require.NoError(t, err)
			cancel()
			_, err = c.r.ReadByte()
			assert.ErrorIs(t, err, syscall.ECONNRESET)
		})
	}
}

func TestKubeletProbesReachTheApp(t *testing.T) {
	const probe = "User-Agent: kube-probe/1.34\r\n"
	node := Kubelet{HostIPs: []netip.Addr{netip.MustParseAddr("127.0.0.1")},
		HTTPPaths: []string{"/healthz"}, TCP: true, GRPC: true}
	t.Run("from a rule for requests", func(t *testing.T) {
		w := newWorld(t, says(t, "app"), says(t, "laptop"))
		all := Rule{InterceptUID: "all", Connected: true}
		w.target.SetRules([]Rule{all}, Kubelet{})
		c := w.connect()
		assert.Equal(t, "app GET /healthz 0\n", c.get("/healthz", probe))
		assert.Equal(t, "laptop GET /healthz 0\n", c.get("/healthz", ""))
	})
	for name, test := range map[string]struct{ say, who string }{
		"an http probe":    {"GET /healthz HTTP/1.1\r\nHost: o\r\n" + probe + "\r\n", "app"},
		"a gRPC probe":     {"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\x00\x00\x00\x04\x00\x00\x00\x00\x00", "app"},
		"a tcp probe":      {"", "app"},
		"another request":  {"GET /healthz HTTP/1.1\r\nHost: o\r\n\r\n", "laptop"},
		"another protocol": {"hello", "laptop"},
	} {
		t.Run("from a tcp rule: "+name, func(t *testing.T) {
			w := newWorld(t, named(t, "app", false), named(t, "laptop", false))
			patient := node
			patient.wait = 20 * time.Second // so that a busy machine makes no difference
			w.target.SetRules([]Rule{tcpRule()}, patient)
			c := w.connect()
			c.send("%s", test.say)
			c.CloseWrite()
			got, err := c.rest()
			assert.NoError(t, err)
			assert.Equal(t, fmt.Sprintf("%s got %d:%s", test.who, len(test.say), test.say), got)
		})
	}
	t.Run("and a silent connection from the node is not held up for long", func(t *testing.T) {
		w := newWorld(t, named(t, "app", true), named(t, "laptop", true))
		w.target.SetRules([]Rule{tcpRule()}, node)
		c := w.connect()
		start := time.Now()
		_, err := c.r.ReadString('\n')
		assert.NoError(t, err)
		assert.Less(t, time.Since(start), 2*time.Second)
		assert.Equal(t, 1, w.laptop.opened())
	})
	t.Run("and connections from elsewhere are not looked at", func(t *testing.T) {
		w := newWorld(t, named(t, "app", false), named(t, "laptop", false))
		k := node
		k.HostIPs = []netip.Addr{netip.MustParseAddr("10.0.0.1")}
		w.target.SetRules([]Rule{tcpRule()}, k)
		c := w.connect()
		c.send("GET /healthz HTTP/1.1\r\n%s\r\n", probe)
		c.CloseWrite()
		got, _ := c.rest()
		assert.True(t, strings.HasPrefix(got, "laptop"), got)
	})
}
