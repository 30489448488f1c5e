// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/internal/reason"
)

func TestConnectAndQuit(t *testing.T) {
	w := newWorld(t)
	text := ""
	for _, args := range [][]string{
		{"quit"}, {"connect", "-n", "shop"}, {"connect"}, {"connect", "-n", "nope"}, {"connect", "--quiet"},
		{"connect", "--output", "json"}, {"quit"}, {"quit"}, {"quit", "-s"}, {"quit", "-s"},
		{"connect", "now"}, {"quit", "now"},
	} {
		text += w.transcript(args...) + "\n"
	}
	golden(t, "connect and quit", text)
	assert.Equal(t, 1, w.launches)
}

func TestConnectTakesTheNamespaceForTheSession(t *testing.T) {
	w := newWorld(t).connected(false)
	require.Zero(t, w.do("connect", "-n", "shop"))
	assert.Equal(t, "shop", request[*daemonpb.ConnectRequest](t, w).GetNamespace())
}

func TestConnectForTheLengthOfACommand(t *testing.T) {
	w := newWorld(t).connected(false)
	w.programCode = 7
	assert.Equal(t, 7, w.do("connect", "--", "make", "test"))
	assert.Equal(t, [][]string{{"make", "test"}}, w.programs)
	assert.False(t, w.daemon.connected, "the session ended with the command")

	require.Zero(t, w.do("connect"))
	assert.Equal(t, 7, w.do("connect", "--", "make", "test"))
	assert.True(t, w.daemon.connected, "a session that was there before stays")
}

func TestQuitWarnsOfInterceptsThatCouldNotBeDeleted(t *testing.T) {
	for _, args := range [][]string{{"quit"}, {"quit", "-s"}} {
		w := newWorld(t).connected(true)
		w.daemon.quitErr = reason.New(codes.Unavailable, reason.InterceptsLeft,
			"the cluster cannot be reached; intercept orders ends within 15m")
		golden(t, "quit with intercepts left "+args[len(args)-1], w.transcript(args...))
	}
}

func TestQuitResumesAndEndsASessionThatADeadDaemonLeft(t *testing.T) {
	w := newWorld(t)
	w.hasSaved = true
	assert.Zero(t, w.do("quit"))
	assert.Equal(t, 1, w.launches)
	assert.Equal(t, "Disconnected\n", w.stdout.String())
}

func TestTheDaemonRunsInTheForeground(t *testing.T) {
	w := newWorld(t)
	assert.Equal(t, exitError, w.do(env.ForegroundCommand))
	assert.Contains(t, w.stderr.String(), "the daemon ran")
	w.Foreground = func(context.Context) error { return nil }
	assert.Zero(t, w.do(env.ForegroundCommand))
}

func TestCommandsThatDoNotExist(t *testing.T) {
	w := newWorld(t)
	text := ""
	for _, args := range [][]string{
		{"intercpt", "orders"}, {"frobnicate"}, {"login"}, {"login", "--apikey", "x"}, {"logout"},
		{"dashboard"}, {"preview", "create", "orders"},
		{"replace", "orders"}, {"helm", "frob"}, {"--frob"}, {"--frob", "list"},
	} {
		text += w.transcript(args...) + "\n"
	}
	golden(t, "no such command", text)
}
