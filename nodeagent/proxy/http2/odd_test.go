// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"io"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/http2"
)

// atOnce is how long bytes may take that nothing has to be waited for.
const atOnce = 2 * time.Second

// gets reads as many bytes as want has, and fails if they take long.
func gets(t *testing.T, e *end, want string) {
	t.Helper()
	require.NoError(t, e.SetReadDeadline(time.Now().Add(atOnce)))
	got := make([]byte, len(want))
	n, err := io.ReadFull(e, got)
	require.NoError(t, err, "only %q came", got[:n])
	assert.Equal(t, want, string(got))
	require.NoError(t, e.SetReadDeadline(time.Time{}))
}

// oddWords are what a peer may say first that is not what HTTP/2 has it say. It says no more, and
// keeps the connection open.
var oddWords = map[string]string{
	"an answer of HTTP/1 to garbage":    "HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n",
	"the beginning of one":              "HTTP",
	"a greeting":                        "220 hi\r\n",
	"one byte":                          "H",
	"a TLS alert":                       "\x15\x03\x01\x00\x02\x02\x46",
	"a frame that is not SETTINGS":      "\x00\x00\x08\x06\x00\x00\x00\x00\x0012345678",
	"an acknowledgement first":          "\x00\x00\x00\x04\x01\x00\x00\x00\x00",
	"SETTINGS on a stream":              "\x00\x00\x00\x04\x00\x00\x00\x00\x01",
	"SETTINGS of the wrong length":      "\x00\x00\x05\x04\x00\x00\x00\x00\x00abcde",
	"SETTINGS longer than is allowed":   "\x00\x40\x02\x04\x00\x00\x00\x00\x00",
	"half a head of SETTINGS":           "\x00\x00\x06\x04\x00",
	"half of SETTINGS":                  "\x00\x00\x06\x04\x00\x00\x00\x00\x00\x00\x03\x00",
	"SETTINGS and half of a PING":       "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x08\x06\x00\x00\x00\x00\x001234",
	"SETTINGS and half of a head":       "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00",
	"SETTINGS and half of HEADERS":      "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x09\x01\x04\x00\x00\x00\x01\x88",
	"SETTINGS and half of DATA":         "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x09\x00\x00\x00\x00\x00\x01abc",
	"SETTINGS and too long a frame":     "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x50\x00\x01\x04\x00\x00\x00\x01",
	"SETTINGS and HTTP/1":               "\x00\x00\x00\x04\x00\x00\x00\x00\x00HTTP/1.1 400 Bad\r\n\r\n",
	"SETTINGS and a wrong PING":         "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x06\x00\x00\x00\x00\x00x",
	"SETTINGS and a stray CONTINUATION": "\x00\x00\x00\x04\x00\x00\x00\x00\x00\x00\x00\x01\x09\x00\x00\x00\x00\x01x",
}

func TestWhatAnAppSaysInsteadOfHTTP2PassesAtOnce(t *testing.T) {
	for name, says := range oddWords {
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			client := newPeer(t, sc.client)
			client.WriteString(http2.ClientPreface)
			client.WriteSettings()
			client.request(1, true)
			client.send()
			sc.app.Write([]byte(says))
			gets(t, sc.client, says)
			sc.app.Write([]byte("and more"))
			gets(t, sc.client, "and more")
			sc.client.reset()
			sc.wait(t)
		})
	}
}

// TestAnAppThatDoesNotSpeakHTTP2IsHeardByAClientOfTheLaptop has the request diverted before the app
// has said a word.
func TestAnAppThatDoesNotSpeakHTTP2IsHeardByAClientOfTheLaptop(t *testing.T) {
	for _, says := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "220 hi\r\n", "H"} {
		sc := newScene(t)
		client := newPeer(t, sc.client)
		client.WriteString(http2.ClientPreface)
		client.WriteSettings()
		client.request(1, true, me...)
		client.send()
		l := sc.laptop(t)
		l.headersOf(1)
		sc.app.Write([]byte(says))
		gets(t, sc.client, says)
		client.WriteString("anything")
		client.send()
		sc.app.Write([]byte("and more"))
		gets(t, sc.client, "and more")
		assert.Equal(t, 1, sc.fellBack)
		sc.client.reset()
		sc.wait(t)
	}
}

func TestWhatAClientSaysInsteadOfHTTP2PassesAtOnce(t *testing.T) {
	for name, says := range oddWords {
		switch name {
		case "half a head of SETTINGS", "half of SETTINGS", "SETTINGS and half of a PING",
			"SETTINGS and half of a head", "SETTINGS and half of HEADERS":
			continue // a request may be in what is not there yet
		}
		t.Run(name, func(t *testing.T) {
			sc := newScene(t)
			sc.client.Write([]byte(http2.ClientPreface + says))
			gets(t, sc.app, http2.ClientPreface+says)
			sc.client.reset()
			sc.wait(t)
		})
	}
}

// TestAHalfFrameOfTheAppIsFinishedBeforeALaptopAnswers has the app stop in a frame that the client
// has the beginning of.
func TestAHalfFrameOfTheAppIsFinishedBeforeALaptopAnswers(t *testing.T) {
	for _, cut := range []int{1, 8, 9, 10, 12} {
		sc, client, app := begin(t)
		client.request(1, true)
		client.send()
		app.headersOf(1)
		app.headers(1, false, ":status", "200", "x", "app")
		whole := app.take()
		app.WriteString(string(whole[:cut]))
		app.send()
		require.Eventually(t, func() bool { return sc.client.in.unread() == cut }, atOnce, time.Millisecond)
		client.request(3, true, me...)
		client.send()
		l := sc.laptop(t)
		l.headersOf(3)
		l.headers(3, true, ":status", "200", "x", "laptop")
		l.send()
		app.WriteString(string(whole[cut:]))
		app.headers(1, true, "x", "app")
		app.send()
		assert.Equal(t, "app", client.headersOf(1)[1].Value)
		for range 2 {
			if client.next(http2.FrameHeaders).Header().StreamID == 3 {
				assert.Equal(t, "laptop", client.out[1].Value)
			} else {
				assert.Equal(t, "app", client.out[0].Value)
			}
		}
	}
}

func TestALaptopThatSpeaksSomethingElseIsNotWaitedFor(t *testing.T) {
	for _, says := range []string{"HTTP/1.1 400 Bad Request\r\n\r\n", "HTTP", "220 hi\r\n", "\x15\x03", "x"} {
		sc, client, app := begin(t)
		client.request(1, true, me...)
		client.send()
		l := newPeer(t, <-sc.laptops)
		l.WriteString(says)
		l.send()
		start := time.Now()
		app.headersOf(1)
		assert.Less(t, time.Since(start), atOnce)
		assert.Equal(t, 1, sc.fellBack)
	}
}

func TestDataThatIsLongerThanTheAppAllowsIsRefused(t *testing.T) {
	sc, client, app := begin(t)
	client.request(1, true, me...)
	client.request(3, false)
	client.send()
	app.headersOf(3)
	client.WriteString("\x30\x30\x30\x00\x00\x00\x00\x00\x030")
	client.send()
	assert.Equal(t, http2.ErrCodeFrameSize, client.next(http2.FrameGoAway).(*http2.GoAwayFrame).ErrCode)
	sc.app.CloseWrite()
	sc.wait(t)
	assert.NotContains(t, string(sc.app.in.written()), "\x00\x00\x00\x00\x030", "the app sees none of it")
}
