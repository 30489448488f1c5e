// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"crypto/rand"
	"fmt"
	"io"
	"net/http"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"golang.org/x/net/websocket"
)

// chatting is a server with a WebSocket at /chat that greets with its name and echoes messages;
// elsewhere it answers with its name.
func chatting(t *testing.T, name string) string {
	chat := websocket.Server{Handler: func(c *websocket.Conn) {
		c.MaxPayloadBytes = 8 << 20
		websocket.Message.Send(c, "hello from "+name)
		for {
			var message []byte
			if websocket.Message.Receive(c, &message) != nil {
				return
			}
			if string(message) == "bye" {
				c.WriteClose(1000)
				return
			}
			websocket.Message.Send(c, message)
		}
	}}
	return httpServer(t, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Path == "/chat" {
			chat.ServeHTTP(w, r)
			return
		}
		io.WriteString(w, name)
	})
}

func TestWebSockets(t *testing.T) {
	for who, header := range map[string]http.Header{"app": {}, "laptop": {"X-Dev": {"me"}}} {
		for _, before := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, on a connection that was used before: %v", who, before), func(t *testing.T) {
				w := newWorld(t, chatting(t, "app"), chatting(t, "laptop"))
				w.target.SetRules([]Rule{headerRule(t)}, Kubelet{})
				c := w.connect()
				if before {
					assert.Equal(t, "laptop", c.get("/", mine))
					assert.Equal(t, "app", c.get("/", ""))
				}
				config, err := websocket.NewConfig("ws://orders/chat", "http://orders")
				require.NoError(t, err)
				config.Header = header
				ws, err := websocket.NewClient(config, c.TCPConn)
				require.NoError(t, err)
				ws.MaxPayloadBytes = 8 << 20
				var greeting string
				require.NoError(t, websocket.Message.Receive(ws, &greeting))
				assert.Equal(t, "hello from "+who, greeting)
				for _, size := range []int{0, 1, 125, 126, 65535, 65536, 2 << 20} {
					message := make([]byte, size)
					rand.Read(message)
					require.NoError(t, websocket.Message.Send(ws, message))
					var echo []byte
					require.NoError(t, websocket.Message.Receive(ws, &echo))
					assert.True(t, string(message) == string(echo), "%d bytes", size)
				}
				// What looks like a matched request is a message now.
				require.NoError(t, websocket.Message.Send(ws, "GET / HTTP/1.1\r\nHost: o\r\n"+mine+"\r\n"))
				var echo string
				require.NoError(t, websocket.Message.Receive(ws, &echo))
				assert.Contains(t, echo, mine)
				require.NoError(t, websocket.Message.Send(ws, "bye"))
				assert.Equal(t, io.EOF, websocket.Message.Receive(ws, &echo), "the close handshake arrives")
			})
		}
	}
}
