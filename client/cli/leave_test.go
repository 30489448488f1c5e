// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"testing"

	"github.com/stretchr/testify/assert"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
)

func TestInterceptForTheLengthOfACommand(t *testing.T) {
	w := newWorld(t).connected(true)
	w.daemon.status = statusOf(&daemonpb.InterceptInfo{Name: "orders-shop"})
	w.programCode = 3
	assert.Equal(t, 3, w.do("intercept", "orders", "-n", "shop", "-p", "9000", "--", "./orders",
		"--port", "9000"))
	assert.Equal(t, [][]string{{"./orders", "--port", "9000"}}, w.programs)
	assert.Equal(t, []string{"orders-shop"}, w.daemon.left)
	assert.Empty(t, w.stderr.String())

	w.Run = func(context.Context, env.Program) (int, error) { return 0, errors.New("no such file") }
	assert.Equal(t, exitError, w.do("intercept", "orders", "-n", "shop", "--", "./order"))
	assert.Contains(t, w.stderr.String(), "run ./order: no such file")
	assert.Len(t, w.daemon.left, 2, "and the intercept is gone")

	w.daemon.status = statusOf()
	w.Run = func(context.Context, env.Program) (int, error) { return 0, nil }
	assert.Zero(t, w.do("intercept", "orders", "--", "true"), "that somebody else has left it is no error")
}

func TestLeave(t *testing.T) {
	w := newWorld(t).connected(true)
	w.daemon.status = statusOf(anIntercept())
	text := ""
	for _, args := range [][]string{
		{"leave", "orders-shop"}, {"detach", "orders-shop"}, {"leave", "orders-shop", "--quiet"},
		{"leave", "orders-shop", "--output", "json"},
		{"leave", "orders-shop", "--output", "yaml"}, {"leave", "orders"}, {"leave"}, {"leave", "a", "b"},
	} {
		text += w.transcript(args...) + "\n"
	}
	w = newWorld(t)
	text += w.transcript("leave", "orders")
	assert.Zero(t, w.launches)
	golden(t, "leave", text)

	w = newWorld(t)
	w.hasSaved, w.daemon.status = true, statusOf(anIntercept())
	assert.Zero(t, w.do("leave", "orders-shop"), "a session that a dead daemon left is resumed")
	assert.Equal(t, 1, w.launches)
}
