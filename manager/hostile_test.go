// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"runtime/debug"
	"runtime/metrics"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/api/resource"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// memoryLimit is what the chart gives the manager, which sets GOMEMLIMIT by it.
var memoryLimit = resource.MustParse("512Mi")

// longVariable makes tests take minutes that do so only in `make test-long`.
const longVariable = "SIDESTEP_TEST_LONG"

// watchMemory returns what the process has in memory at most until stop is called. It clears what earlier
// tests have left.
func watchMemory(t *testing.T) (stop func() (rss, live uint64)) {
	t.Helper()
	before := debug.SetMemoryLimit(memoryLimit.Value())
	leaveRoom()
	debug.FreeOSMemory()
	live := []metrics.Sample{{Name: "/gc/heap/live:bytes"}} // what the last collection has left
	done, result := make(chan struct{}), make(chan [2]uint64)
	go func() {
		var most [2]uint64
		for {
			metrics.Read(live)
			most[0], most[1] = max(most[0], residentBytes()), max(most[1], live[0].Value.Uint64())
			select {
			case <-done:
				result <- most
				return
			case <-time.After(100 * time.Millisecond):
			}
		}
	}()
	return func() (uint64, uint64) {
		close(done)
		most := <-result
		debug.SetMemoryLimit(before)
		return most[0], most[1]
	}
}

func residentBytes() uint64 {
	statm, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	pages, _ := strconv.ParseUint(strings.Fields(string(statm))[1], 10, 64)
	return pages * uint64(os.Getpagesize())
}

// errToApp: the laptop did not take a connection within 1.5 s, as on a machine that stood still. A node
// agent gives it to the app.
var errToApp = errors.New("the app has the connection")

// served opens a tunnel to a laptop that echoes, and returns what went wrong.
func served(ctx context.Context, t *testing.T, a *nodeAgent, uid string) error {
	c, cancel := a.open(t, uid)
	defer cancel()
	defer context.AfterFunc(ctx, cancel)()
	switch answer, err := c.Opened(ctx); {
	case err != nil:
		return err
	case answer.Result == tunnelpb.Opened_TIMEOUT:
		return errToApp
	}
	sent := bytes.Repeat([]byte("hello "), 10_000)
	go func() {
		_, _ = c.Write(sent)
		_ = c.CloseWrite()
	}()
	got, err := io.ReadAll(c)
	if err == nil && !bytes.Equal(got, sent) {
		err = fmt.Errorf("%d bytes of %d came back", len(got), len(sent))
	}
	return err
}

func TestHostilePeersCostNobodyAnything(t *testing.T) {
	peers, lasts := 200, 5*time.Second
	if os.Getenv(longVariable) != "" {
		peers, lasts = 1000, time.Minute
	} else if testing.Short() {
		peers, lasts = 50, time.Second
	}
	besiege(t, attack{Peers: peers}, lasts)
}

// evil is the token of a node agent.
const evil = "node/node-666"

// Node agents of one node, and laptops of one developer, that are not what they should be.
func TestHostileNodeAgentsAndLaptopsCostNobodyAnything(t *testing.T) {
	lasts := 5 * time.Second
	if os.Getenv(longVariable) != "" {
		lasts = time.Minute
	}
	besiege(t, attack{Peers: 20, Token: evil, Key: hex.EncodeToString(sessionKey("mallory"))}, lasts)
}

// besiege checks that a laptop and a node agent are served while others attack, and that the manager
// stays within its memory limit.
func besiege(t *testing.T, by attack, lasts time.Duration) {
	t.Helper()
	m, a, l, uid := intercepted(t, 8)
	m.kube.create(t, asks("mallory", "grpc", "tcp"))
	go l.echo()
	require.NoError(t, served(t.Context(), t, a, uid))
	stop := watchMemory(t)
	idle, _ := stop()
	stop = watchMemory(t)
	by.GRPC, by.Connect, by.HTTP = m.grpc, m.connect, strings.TrimPrefix(m.http, "http://")
	unleash(t, by)

	longest, requests, toApp, newcomers := time.Duration(0), 0, 0, 0
	for began := time.Now(); time.Since(began) < lasts; {
		asked := time.Now()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		err := served(ctx, t, a, uid)
		cancel()
		if errors.Is(err, errToApp) {
			toApp++
			continue
		}
		require.NoError(t, err)
		longest = max(longest, time.Since(asked))
		if requests++; requests%100 == 1 {
			m.arrives(t, fmt.Sprint("newcomer-", newcomers))
			newcomers++
			code, _ := get(t, m.http+"/healthz")
			assert.Equal(t, http.StatusOK, code)
		}
	}
	rss, live := stop()
	_, page := get(t, m.http+"/metrics")
	for line := range strings.Lines(page) {
		for _, name := range []string{"unproven", "limits", "held"} {
			if strings.HasPrefix(line, "sidestep_manager_"+name) {
				t.Log(strings.TrimSpace(line))
			}
		}
	}
	t.Logf("%d hostile peers: resident %d MiB (%d MiB before), live %d MiB, limit %s; "+
		"%d requests, the slowest %s, and %d to the app; %d laptops came", by.Peers, rss>>20, idle>>20, live>>20,
		memoryLimit.String(), requests, longest, toApp, newcomers)
	assert.Positive(t, requests)
	if !raceDetector {
		assert.Less(t, rss, uint64(memoryLimit.Value()))
	}
	assert.Equal(t, v1alpha1.StateActive, m.kube.intercept(t, "alice").Status.State)
}

// arrives lets a laptop and a node agent come, each of which comes again if it is turned away.
func (r *running) arrives(t *testing.T, name string) {
	t.Helper()
	began := time.Now()
	l := r.laptop(t, name, 8)
	a := r.agent(t, name)
	a.has(t)
	t.Logf("%s: here after %s", name, time.Since(began))
	l.cancel()
	a.cancel()
}
