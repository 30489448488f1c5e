// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/internal/testnet"
)

// delayedLink returns two networks, whose addresses 192.0.2.1 and .2 reach each other with that
// delay each way, and a listener in the second.
func delayedLink(t testing.TB, oneWay time.Duration) (dial dialer, listener net.Listener) {
	var networks [2]*netns.Namespace
	var ends [2]*os.File
	for i := range ends {
		networks[i] = testnet.NewNode(t).Namespace
		var err error
		ends[i], err = openTun(networks[i], delayed)
		require.NoError(t, err)
		t.Cleanup(func() { _ = ends[i].Close() })
		require.NoError(t, networks[i].Do(func() error {
			device, err := netlink.LinkByName(delayed)
			if err != nil {
				return err
			}
			address, err := netlink.ParseAddr(fmt.Sprintf("192.0.2.%d/24", i+1))
			if err != nil {
				return err
			}
			return netlink.AddrAdd(device, address)
		}))
	}
	go carry(ends[0], ends[1], oneWay)
	go carry(ends[1], ends[0], oneWay)
	dial = func(ctx context.Context, _, address string) (net.Conn, error) {
		return testnet.Dial(ctx, networks[0], netip.MustParseAddrPort(address))
	}
	return dial, testnet.Listen(t, networks[1], "192.0.2.2:80")
}

func TestADelayedLinkCarriesEverythingAndTakesItsTime(t *testing.T) {
	const oneWay = 15 * time.Millisecond
	dial, listener := delayedLink(t, oneWay)
	sent := make([]byte, 8<<20)
	for i := range sent {
		sent[i] = byte(rand.Uint32())
	}
	go func() {
		if c, err := listener.Accept(); err == nil {
			_, _ = c.Write(sent)
			_ = c.Close()
		}
	}()
	began := time.Now()
	c, err := dial(t.Context(), "tcp", listener.Addr().String())
	require.NoError(t, err)
	defer c.Close()
	assert.GreaterOrEqual(t, time.Since(began), 2*(oneWay-early), "a handshake goes there and back")
	got, err := io.ReadAll(c)
	require.NoError(t, err)
	assert.True(t, bytes.Equal(sent, got), "what has arrived is what was sent")
}

func TestBulkCountsWhatArrivesAfterItsStart(t *testing.T) {
	dial, listener := delayedLink(t, time.Millisecond)
	go func() { _ = serveBulks(t.Context(), listener) }()
	for _, upload := range []bool{false, true} {
		var a arrived
		long := 100 * time.Millisecond
		// a busy machine may take a while to begin
		for ; (a.Counted == 0 || a.All == a.Counted) && long < 10*time.Second; long *= 2 {
			var err error
			a, err = bulk{connections: 3, upload: upload, settle: long, duration: long}.run(t.Context(),
				dial, listener.Addr().String())
			require.NoError(t, err)
			assert.GreaterOrEqual(t, a.Seconds, long.Seconds())
		}
		assert.Positive(t, a.Counted)
		assert.Greater(t, a.All, a.Counted)
	}
	_, err := bulk{connections: 2, upload: true, duration: time.Second}.run(t.Context(), dial, "192.0.2.2:81")
	assert.Error(t, err, "nobody listens there")
}

func BenchmarkDelayedLink(b *testing.B) {
	for _, roundTrip := range []time.Duration{0, 20 * time.Millisecond, 80 * time.Millisecond} {
		for _, connections := range []int{1, 8} {
			b.Run(fmt.Sprintf("%s/%d", roundTrip, connections), func(b *testing.B) {
				dial, listener := delayedLink(b, roundTrip/2)
				go func() { _ = serveBulks(b.Context(), listener) }()
				for b.Loop() {
					a, err := bulk{connections: connections, settle: time.Second,
						duration: time.Second}.run(b.Context(), dial, listener.Addr().String())
					require.NoError(b, err)
					b.ReportMetric(a.sample().rate, "MB/s")
				}
			})
		}
	}
}
