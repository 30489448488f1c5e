// SPDX-License-Identifier: Apache-2.0

package lines

import (
	"context"
	"fmt"
	"io"
	"net"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func start(t *testing.T, server Server) string {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- server.Serve(ctx, listener) }()
	t.Cleanup(func() {
		stop()
		assert.NoError(t, <-done)
	})
	return listener.Addr().String()
}

func TestALineIsAnsweredWithTheName(t *testing.T) {
	name, err := Ask(t.Context(), start(t, Server{Name: "echo"}), "hello")
	require.NoError(t, err)
	assert.Equal(t, "echo", name)
}

func TestAGreetingComesBeforeTheClientSaysAnything(t *testing.T) {
	address := start(t, Server{Name: "mail", Greeting: "220 ready"})
	conn, err := net.Dial("tcp", address)
	require.NoError(t, err)
	defer conn.Close()
	greeting := make([]byte, 10)
	_, err = io.ReadFull(conn, greeting)
	require.NoError(t, err)
	assert.Equal(t, "220 ready\n", string(greeting))

	name, err := Ask(t.Context(), address, "hello")
	require.NoError(t, err)
	assert.Equal(t, "mail", name)
}

func TestLinesSentBeforeFINAreAllAnswered(t *testing.T) {
	conn, err := net.Dial("tcp", start(t, Server{Name: "echo"}))
	require.NoError(t, err)
	defer conn.Close()
	_, err = fmt.Fprint(conn, "one\ntwo\n")
	require.NoError(t, err)
	require.NoError(t, conn.(*net.TCPConn).CloseWrite())
	answers, err := io.ReadAll(conn)
	require.NoError(t, err)
	assert.Equal(t, "echo: one\necho: two\n", string(answers))
}

func TestAskGivesUpWhenItsTimeIsOver(t *testing.T) {
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	require.NoError(t, err)
	defer listener.Close()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Millisecond)
	defer cancel()
	_, err = Ask(ctx, listener.Addr().String(), "hello")
	assert.Error(t, err)
}
