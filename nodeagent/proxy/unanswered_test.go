// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/nodeagent/proxy/divert"
)

// TestEachMatchThatTheLaptopDoesNotAnswerHasAReason sends requests that match and that the app gets.
func TestEachMatchThatTheLaptopDoesNotAnswerHasAReason(t *testing.T) {
	for name, c := range map[string]struct {
		request string
		reason  divert.Reason
	}{
		"two equal lengths": {"Content-Length: 0\r\nContent-Length: 0\r\n" + mine + "\r\n", divert.Framing},
		"both framings":     {"Content-Length: 0\r\nTransfer-Encoding: chunked\r\n" + mine + "\r\n0\r\n\r\n", divert.Framing},
		"bare LF":           {"A: b\n" + mine + "\r\n", divert.Framing},
		"a folded line":     {mine + "A: b\r\n c\r\n\r\n", divert.Framing},
		"a long head":       {mine + "A: " + strings.Repeat("b", 70_000) + "\r\n\r\n", divert.HeadTooLarge},
		"no local process":  {mine + "\r\n", divert.LocalRefused},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorldWith(t, says(t, "app"), "127.0.0.1:1", 10*time.Second)
			w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
			conn := w.connect()
			conn.send("GET / HTTP/1.1\r\nHost: o\r\n%s", c.request)
			require.Eventually(t, func() bool {
				return w.target.Stats().Intercepts["uid-1"].Unanswered[c.reason] == 1
			}, 10*time.Second, time.Millisecond)
			assert.Zero(t, w.target.Stats().Intercepts["uid-1"].Matched)
		})
	}
}
