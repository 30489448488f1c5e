// SPDX-License-Identifier: Apache-2.0

package http1

import (
	"io"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/proxy/budget"
)

// TestHeadsBeyondTheBudgetPassUnread opens connections that each send a long head without its end,
// and asks on a last one for what the laptop is to answer, and on another for what the app is.
func TestHeadsBeyondTheBudgetPassUnread(t *testing.T) {
	var shared budget.Budget
	app, laptop := &server{name: "app"}, &server{name: "dev"}
	var ends []*end
	var all []chan struct{}
	open := func() *end {
		outside, client := pair()
		done := make(chan struct{})
		go func() {
			defer close(done)
			Serve(t.Context(), Config{
				Client: client.duplex(), Target: &memoryTarget{app: app, laptop: laptop, diverts: true},
				OpenTimeout: time.Second, Budget: &shared, Log: slog.New(slog.DiscardHandler),
			})
		}()
		ends, all = append(ends, outside), append(all, done)
		return outside
	}
	head := []byte("GET / HTTP/1.1\r\nHost: o\r\nX: " + strings.Repeat("x", 60_000))
	for range 1000 {
		open().Write(head)
	}
	require.Eventually(t, func() bool { return shared.Times(budget.Memory) > 0 }, 30*time.Second,
		time.Millisecond)
	assert.LessOrEqual(t, shared.Held(), int64(budget.Bytes))

	for _, who := range []string{"", "X-Dev: me\r\n"} {
		c := open()
		io.WriteString(c, "GET /p HTTP/1.1\r\nHost: o\r\n"+who+"\r\n")
		c.CloseWrite()
		got, err := io.ReadAll(c)
		assert.NoError(t, err)
		assert.Contains(t, string(got), "GET /p", "whoever sends whole heads notices nothing")
	}
	for i, c := range ends {
		c.reset()
		<-all[i]
	}
	assert.Zero(t, shared.Held(), "what is held is given back")
}
