// SPDX-License-Identifier: Apache-2.0

package load

import (
	"context"
	"net"
	"net/http"
	"net/http/httptest"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/tests/apps/greeter"
	"sidestep.dev/sidestep/tests/apps/lines"
	"sidestep.dev/sidestep/tests/apps/shop"
)

// split answers as the laptop when the request has the header, as an intercept would do, and as
// orders otherwise.
func split(t *testing.T) (url string, connections *atomic.Int64) {
	t.Helper()
	laptop := (&shop.Service{Name: "laptop", Pod: "desk"}).Handler()
	orders := (&shop.Service{Name: "orders", Pod: "orders-a"}).Handler()
	connections = new(atomic.Int64)
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case r.URL.Path == "/broken":
			http.Error(w, "broken", http.StatusServiceUnavailable)
		case r.Header.Get("X-User") == "ada" || r.URL.Path == "/api":
			laptop.ServeHTTP(w, r)
		default:
			orders.ServeHTTP(w, r)
		}
	}))
	server.Config.ConnState = func(_ net.Conn, state http.ConnState) {
		if state == http.StateNew {
			connections.Add(1)
		}
	}
	server.Start()
	t.Cleanup(server.Close)
	return server.URL, connections
}

func run(t *testing.T, plan Plan) *Summary {
	t.Helper()
	plan.Timeout = 10 * time.Second
	plan.Laptop = "laptop"
	plan.Concurrency = 4
	summary, err := Run(t.Context(), plan)
	require.NoError(t, err)
	assert.Equal(t, summary.Requests, summary.MatchedTotal+summary.UnmatchedTotal)
	return summary
}

func TestMatchedAndUnmatchedRequestsAreToldApart(t *testing.T) {
	url, connections := split(t)
	summary := run(t, Plan{Target: url, Requests: 300, Matched: 0.3,
		Matching: Variant{Headers: []string{"x-user: ada"}}})
	assert.Equal(t, 90, summary.MatchedTotal)
	assert.Equal(t, 90, summary.MatchedToLaptop)
	assert.Equal(t, 210, summary.UnmatchedTotal)
	assert.Zero(t, summary.UnmatchedToLaptop)
	assert.Zero(t, summary.Failures.Count+summary.Missed.Count+summary.Strayed.Count)
	assert.Equal(t, map[string]int{"laptop/desk": 90, "orders/orders-a": 210}, summary.AnsweredBy)
	assert.EqualValues(t, 300, connections.Load(), "a request did not have a connection of its own")
	assert.Positive(t, summary.RPS)
	assert.Positive(t, summary.Matched.P50)
	assert.LessOrEqual(t, summary.Matched.P50, summary.Matched.P99)
}

func TestKeptAliveConnectionsAreUsedAgain(t *testing.T) {
	url, connections := split(t)
	run(t, Plan{Target: url, Requests: 200, KeepAlive: true})
	assert.LessOrEqual(t, connections.Load(), int64(8))
}

func TestAPathCanBeWhatMatches(t *testing.T) {
	url, _ := split(t)
	summary := run(t, Plan{Target: url + "/other", Requests: 10, Matched: 0.5, Matching: Variant{Path: "/api"}})
	assert.Equal(t, 5, summary.MatchedToLaptop)
	assert.Zero(t, summary.UnmatchedToLaptop)
}

func TestALaptopFurtherUpTheChainCounts(t *testing.T) {
	url, _ := split(t)
	frontend := httptest.NewServer((&shop.Service{Name: "frontend", Upstream: url,
		Forward: []string{"x-user"}}).Handler())
	defer frontend.Close()
	summary := run(t, Plan{Target: frontend.URL, Requests: 10, Matched: 0.5,
		Matching: Variant{Headers: []string{"x-user: ada"}}})
	assert.Equal(t, 5, summary.MatchedToLaptop)
	assert.Zero(t, summary.UnmatchedToLaptop)
	assert.Equal(t, 10, summary.AnsweredBy["frontend/"])
}

func TestWhatGoesWrongIsListed(t *testing.T) {
	url, _ := split(t)
	failed := run(t, Plan{Target: url + "/broken", Requests: 200})
	assert.Equal(t, 200, failed.UnmatchedFailed)
	assert.Equal(t, 200, failed.Failures.Count)
	assert.Len(t, failed.Failures.First, keptEvents)
	assert.Contains(t, failed.Failures.First[0].Error, "503 Service Unavailable: broken")
	assert.False(t, failed.Failures.Last.Time.Before(failed.Failures.First[keptEvents-1].Time))

	missed := run(t, Plan{Target: url, Requests: 10, Matched: 1,
		Matching: Variant{Headers: []string{"x-user: eve"}}})
	assert.Equal(t, 10, missed.Missed.Count)
	assert.Equal(t, "orders/orders-a", missed.Missed.First[0].AnsweredBy)

	strayed := run(t, Plan{Target: url + "/api", Requests: 10})
	assert.Equal(t, 10, strayed.Strayed.Count)
	assert.Equal(t, 10, strayed.UnmatchedToLaptop)
}

func TestADurationEndsTheLoadAndARateSlowsIt(t *testing.T) {
	url, _ := split(t)
	summary := run(t, Plan{Target: url, Duration: 300 * time.Millisecond, Rate: 100})
	assert.InDelta(t, 0.3, summary.Seconds, 0.2)
	assert.InDelta(t, 30, summary.Requests, 10)
	assert.Zero(t, summary.Failures.Count)
}

func TestALoadThatIsInterruptedSumsUpWhatItDid(t *testing.T) {
	url, _ := split(t)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	summary, err := Run(ctx, Plan{Target: url, Requests: 1000, Concurrency: 1, Timeout: time.Second})
	require.NoError(t, err)
	assert.Less(t, summary.Requests, 1000)
	assert.Zero(t, summary.Failures.Count)
}

func TestLinesAndGreetersCanBeAskedToo(t *testing.T) {
	ctx, stop := context.WithCancel(context.Background())
	defer stop()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go lines.Server{Name: "laptop", Greeting: "welcome"}.Serve(ctx, listener)
	summary := run(t, Plan{Target: "tcp://" + listener.Addr().String(), Requests: 20, Matched: 1})
	assert.Equal(t, 20, summary.MatchedToLaptop)

	listener, err = net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	go greeter.Serve(ctx, greeter.New("laptop", "desk"), listener)
	for _, keepAlive := range []bool{false, true} {
		summary = run(t, Plan{Target: "grpc://" + listener.Addr().String(), Requests: 20, Matched: 1,
			KeepAlive: keepAlive})
		assert.Equal(t, 20, summary.MatchedToLaptop)
		assert.Equal(t, map[string]int{"laptop/desk": 20}, summary.AnsweredBy)
	}
}

func TestAPlanThatMakesNoSenseIsRefused(t *testing.T) {
	good := Plan{Target: "http://127.0.0.1", Requests: 1, Concurrency: 1, Timeout: time.Second}
	for name, spoil := range map[string]func(*Plan){
		"no end":               func(p *Plan) { p.Requests = 0 },
		"no workers":           func(p *Plan) { p.Concurrency = 0 },
		"a share above one":    func(p *Plan) { p.Matched = 1.5 },
		"a negative rate":      func(p *Plan) { p.Rate = -1 },
		"no timeout":           func(p *Plan) { p.Timeout = 0 },
		"a header without one": func(p *Plan) { p.Matching.Headers = []string{"x-user"} },
		"an unknown scheme":    func(p *Plan) { p.Target = "ftp://127.0.0.1" },
	} {
		t.Run(name, func(t *testing.T) {
			plan := good
			spoil(&plan)
			_, err := Run(t.Context(), plan)
			assert.Error(t, err)
		})
	}
}
