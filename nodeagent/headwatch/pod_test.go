// SPDX-License-Identifier: Apache-2.0

package headwatch_test

import (
	"bufio"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/headwatch"
	"sidestep.dev/sidestep/nodeagent/sockdiag"
)

// endAnn ends the connections of requests with x-user: ann, to whichever port.
type endAnn struct {
	pod   *testnet.Pod
	ended atomic.Int64
}

func (p *endAnn) Verdict(head match.Head) (v headwatch.Verdict) {
	head.Values("x-user", func(value []byte) bool {
		if string(value) == "ann" {
			v = headwatch.End
		}
		return true
	})
	return v
}

func (p *endAnn) End(s *sockdiag.Socket) error {
	p.ended.Add(1)
	return p.pod.Do(func() error { return sockdiag.Destroy(s) })
}

var needles = []match.Needle{{Header: "x-user", Value: "ann"}}

func ask(t *testing.T, c net.Conn, user string) error {
	t.Helper()
	require.NoError(t, c.SetDeadline(time.Now().Add(30*time.Second)))
	if _, err := fmt.Fprintf(c, "GET / HTTP/1.1\r\nHost: h\r\nX-User: %s\r\n\r\n", user); err != nil {
		return err
	}
	res, err := http.ReadResponse(bufio.NewReader(c), nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(io.Discard, res.Body)
	return err
}

// One program watches two ports of a pod, one of them by list and one for all connections.
func TestPodIsWatchedByOneProgram(t *testing.T) {
	for name, clsact := range map[string]bool{"as the kernel has it": false, "by clsact": true} {
		t.Run(name, func(t *testing.T) {
			node := testnet.NewNode(t)
			pod := node.NewPod(t)
			var seen atomic.Int64 // the requests of ann that the app has seen
			app := http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
				if r.Header.Get("X-User") == "ann" {
					seen.Add(1)
				}
			})
			for _, port := range []string{":8080", ":8081"} {
				l := testnet.Listen(t, pod.Namespace, port)
				go func() { _ = http.Serve(l, app) }()
			}
			dial := func(ip netip.Addr, port uint16) net.Conn {
				c, err := testnet.Dial(t.Context(), node.Namespace, netip.AddrPortFrom(ip, port))
				require.NoError(t, err)
				t.Cleanup(func() { _ = c.Close() })
				return c
			}
			policy := &endAnn{pod: pod}
			counters := &headwatch.Counters{}
			watch := headwatch.NewPod(headwatch.Config{Namespace: pod.Namespace, Counters: counters, Clsact: clsact,
				Timeout: 10 * time.Second, // for slow machines
				Log:     slog.New(slog.NewTextHandler(t.Output(), nil))})
			listed, err := watch.Open(8080, policy)
			require.NoError(t, err)
			all, err := watch.Open(8081, policy)
			require.NoError(t, err)
			_, err = watch.Open(8081, policy)
			require.Error(t, err, "it is watched already")
			require.NoError(t, listed.Watch(needles, nil))
			require.NoError(t, all.WatchAll(needles))
			for _, ip := range []netip.Addr{pod.IP4, pod.IP6} {
				unlisted, bystander, ann := dial(ip, 8080), dial(ip, 8081), dial(ip, 8081)
				require.NoError(t, ask(t, unlisted, "ann"))
				assert.EqualValues(t, 1, seen.Swap(0), "the connection is not listed")
				released := counters.Released.Load()
				for range 2 {
					require.NoError(t, ask(t, bystander, "bob"))
					require.NoError(t, ask(t, bystander, "annie"))
					require.NoError(t, ask(t, ann, "bob"))
				}
				assert.Equal(t, released+2, counters.Released.Load(), "annie's requests were queued")
				assert.ErrorIs(t, ask(t, ann, "ann"), unix.ECONNRESET)
				assert.Zero(t, seen.Load())
				require.NoError(t, ask(t, bystander, "bob"))
			}
			assert.EqualValues(t, 2, policy.ended.Load())
			require.NoError(t, all.Close())
			require.NoError(t, ask(t, dial(pod.IP4, 8081), "ann"), "it is no longer watched")
			require.NoError(t, listed.Watch(needles, nil), "the other port is")
			require.NoError(t, listed.Close())
			require.NoError(t, listed.Close(), "again")
			again, err := watch.Open(8081, policy)
			require.NoError(t, err)
			require.NoError(t, again.WatchAll(needles))
			assert.ErrorIs(t, ask(t, dial(pod.IP6, 8081), "ann"), unix.ECONNRESET)
			require.NoError(t, again.Close())
		})
	}
}
