// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bufio"
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/http"
	"runtime"
	runtimemetrics "runtime/metrics"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

func TestASlowLaptopCostsTheAppNothing(t *testing.T) {
	const size, uploads = 100 << 20, 3
	app := httpServer(t, func(rw http.ResponseWriter, r *http.Request) {
		sum := sha256.New()
		io.Copy(sum, r.Body)
		fmt.Fprintf(rw, "%x", sum.Sum(nil))
	})
	hang := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) { <-t.Context().Done() })
	block := bytes.Repeat([]byte("0123456789abcdef"), 4096)
	sum := sha256.New()
	for range size / len(block) {
		sum.Write(block)
	}
	want := fmt.Sprintf("%x", sum.Sum(nil))
	for name, rule := range map[string]Rule{"http": tapRule(),
		"tcp": {InterceptUID: "tap-1", Connected: true, Wiretap: true, TCP: true}} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t, app, hang)
			w.target.SetRules([]Rule{rule}, Kubelet{})
			// what the collection has found alive, without what has become garbage since
			live := func() uint64 {
				runtime.GC()
				sample := []runtimemetrics.Sample{{Name: "/gc/heap/live:bytes"}}
				runtimemetrics.Read(sample)
				return sample[0].Value.Uint64()
			}
			before := live()
			var clients sync.WaitGroup
			for i := range uploads {
				clients.Go(func() {
					body := &repeat{block: block, left: size, at: func(left int) {
						assert.LessOrEqual(t, w.proxy.copies.Bytes(), int64(32<<20))
						if left%(size/4) == 0 && i == 0 {
							assert.Less(t, live(), before+128<<20, "of 300 MiB in the end")
						}
					}}
					resp, err := onceOnly.Post("http://"+w.addr+"/", "", body)
					if !assert.NoError(t, err) {
						return
					}
					defer resp.Body.Close()
					got, err := io.ReadAll(resp.Body)
					assert.NoError(t, err)
					assert.Equal(t, want, string(got))
				})
			}
			clients.Wait()
			w.settled()
			got := w.copies() // a copy that is cut before its tunnel was open is dropped
			assert.Equal(t, got.Copied, got.Cut)
			assert.EqualValues(t, uploads, got.Copied+got.Dropped)
		})
	}
}

// onceOnly is a client that keeps no connections.
var onceOnly = &http.Client{Transport: &http.Transport{DisableKeepAlives: true}}

// repeat is a body of that block over and over.
type repeat struct {
	block []byte
	left  int
	at    func(left int)
}

func (r *repeat) Read(p []byte) (int, error) {
	r.at(r.left)
	if r.left == 0 {
		return 0, io.EOF
	}
	n := copy(p[:min(len(p), r.left)], r.block)
	r.left -= n
	return n, nil
}

func TestRequestsBeyondWhatTheLaptopTakesAreDropped(t *testing.T) {
	hang := rawServer(t, func(c *net.TCPConn, r *bufio.Reader) { <-t.Context().Done() })
	w := patient(t, says(t, "app"), hang)
	w.target.SetRules([]Rule{tapRule()}, Kubelet{})
	c := w.connect()
	for range 1000 {
		require.Equal(t, "app GET / 0\n", c.get("/", ""))
	}
	require.Eventually(t, func() bool { return w.copies().Copied == 32 }, 10*time.Second, time.Millisecond)
	assert.EqualValues(t, 1000-32-256, w.copies().Dropped, "32 are being sent, and 256 wait")
	w.target.SetRules(nil, Kubelet{})
	w.settled()
	assert.Eventually(t, func() bool { return w.proxy.copies.Lines() == 0 }, 10*time.Second, time.Millisecond)
	assert.Equal(t, tap.Counts{Copied: 32, Dropped: 968}, w.proxy.copies.Counts())
}

func TestLargeBodiesPassUnreadBesideAWiretap(t *testing.T) {
	const size = 32 << 20
	app := httpServer(t, func(rw http.ResponseWriter, r *http.Request) {
		n, _ := io.Copy(io.Discard, r.Body)
		fmt.Fprint(rw, n)
	})
	w := newWorld(t, app, says(t, "laptop"))
	w.target.SetRules([]Rule{tapping(t)}, Kubelet{})
	before := readBytes(t)
	resp, err := onceOnly.Post("http://"+w.addr+"/", "", bytes.NewReader(make([]byte, size)))
	require.NoError(t, err)
	defer resp.Body.Close()
	got, err := io.ReadAll(resp.Body)
	require.NoError(t, err)
	assert.Equal(t, fmt.Sprint(size), string(got))
	assert.Less(t, readBytes(t)-before, int64(size*3/2), "bytes read, which are the app's")
}
