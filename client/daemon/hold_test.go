// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"io"
	"os"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/clienttest"
	"sidestep.dev/sidestep/internal/reason"
)

// hold holds an intercept, or the session, until ctx ends.
func (w *world) hold(ctx context.Context, name string) daemonpb.Daemon_HoldClient {
	w.Helper()
	stream, err := w.daemon.Hold(ctx, &daemonpb.HoldRequest{Intercept: name})
	require.NoError(w, err)
	_, err = stream.Recv()
	require.NoError(w, err)
	return stream
}

func TestHold(t *testing.T) {
	connected := func(t *testing.T) *world {
		w := newWorld(t)
		w.start()
		w.connect()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		return w
	}
	t.Run("an intercept whose holder dies is left, and no other", func(t *testing.T) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001})
		ctx, die := context.WithCancel(t.Context())
		w.hold(ctx, "orders")
		assert.Len(t, w.api.Intercepts(), 2)
		die()
		w.eventually(func() bool { return len(w.api.Intercepts()) == 1 }, "the intercept is deleted")
		assert.Equal(t, "stock", w.object().Spec.Name)
		assert.NotEmpty(t, w.status().GetSession())
	})
	t.Run("a cluster that is away is told when it is back", func(t *testing.T) {
		w := connected(t)
		ctx, die := context.WithCancel(t.Context())
		w.hold(ctx, "orders")
		w.api.Stop()
		die()
		w.eventually(func() bool { return w.status().GetState() == "Reconnecting" }, "the outage is noticed")
		w.api.Start(t)
		w.eventually(func() bool { return len(w.api.Intercepts()) == 0 }, "the intercept is deleted")
	})
	t.Run("a holder learns that the intercept has been left", func(t *testing.T) {
		w := connected(t)
		stream := w.hold(t.Context(), "orders")
		_, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		_, err = stream.Recv()
		assert.Equal(t, io.EOF, err)
	})
	t.Run("an intercept that is moved meanwhile is still the one that is held", func(t *testing.T) {
		w := connected(t)
		ctx, die := context.WithCancel(t.Context())
		w.hold(ctx, "orders")
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello again")})
		die()
		w.eventually(func() bool { return len(w.api.Intercepts()) == 0 }, "the intercept is deleted")
	})
	t.Run("an intercept that was left and made anew is another one", func(t *testing.T) {
		w := connected(t)
		ctx, die := context.WithCancel(t.Context())
		stream := w.hold(ctx, "orders")
		_, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "orders"})
		require.NoError(t, err)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
		_, err = stream.Recv()
		require.Equal(t, io.EOF, err)
		die()
		assert.Len(t, w.api.Intercepts(), 1)
	})
	t.Run("what does not exist cannot be held", func(t *testing.T) {
		w := connected(t)
		stream, err := w.daemon.Hold(t.Context(), &daemonpb.HoldRequest{Intercept: "nothing"})
		require.NoError(t, err)
		_, err = stream.Recv()
		assert.Equal(t, reason.InterceptNotFound, reason.Of(err))
	})
	t.Run("a session whose holder dies ends, with its intercepts", func(t *testing.T) {
		w := connected(t)
		ctx, die := context.WithCancel(t.Context())
		w.hold(ctx, "")
		die()
		w.eventually(func() bool { return w.status().GetSession() == "" }, "the session ends")
		w.eventually(func() bool { return len(w.api.Intercepts()) == 0 }, "the intercept is deleted")
	})
	t.Run("quit ends the holding", func(t *testing.T) {
		w := connected(t)
		session, intercept := w.hold(t.Context(), ""), w.hold(t.Context(), "orders")
		_, err := w.daemon.Disconnect(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
		for _, stream := range []daemonpb.Daemon_HoldClient{session, intercept} {
			_, err := stream.Recv()
			assert.Equal(t, io.EOF, err)
		}
	})
}

func TestAHolderIsToldOnceOfEachReasonForRequestsThatThisLaptopDoesNotAnswer(t *testing.T) {
	w := newWorld(t)
	w.start()
	w.connect()
	now := time.Now()
	judge := func(answered metav1.ConditionStatus, all ...v1alpha1.Unanswered) {
		w.manager.Judge(func(i *v1alpha1.Intercept) *v1alpha1.InterceptStatus {
			st := clienttest.Active(i)
			st.Unanswered = all
			st.Conditions = []metav1.Condition{{Type: v1alpha1.ConditionAnswered, Status: answered}}
			return st
		})
	}
	one := func(reason string, n int64, ago time.Duration) v1alpha1.Unanswered {
		return v1alpha1.Unanswered{Reason: reason, Count: n, Last: metav1.NewTime(now.Add(-ago))}
	}
	judge(metav1.ConditionTrue, one("LocalRefused", 9, 2*time.Hour))
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("hello")})
	stream := w.hold(t.Context(), "orders")
	next := func() string {
		event, err := stream.Recv()
		require.NoError(t, err)
		return event.GetWarning()
	}
	judge(metav1.ConditionFalse, one("LocalTLS", 1, 0), one("LocalRefused", 9, 2*time.Hour))
	assert.Equal(t, "a request that matches intercept orders was not answered here: the local process speaks only "+
		"TLS — have it listen without TLS: requests reach it as the app in the pod gets them", next())
	judge(metav1.ConditionFalse, one("Silent", 1, 0), one("LocalTLS", 2, 0), one("LocalRefused", 9, 2*time.Hour))
	assert.Contains(t, next(), "did not answer in time", "LocalTLS was told, and nothing of the past is")
}

func TestADaemonThatEndsLeavesNothingThatIsHeld(t *testing.T) {
	for name, signal := range map[string]os.Signal{"kill -9": syscall.SIGKILL, "SIGTERM": syscall.SIGTERM} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			cmd := w.spawn()
			w.connect()
			w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
			stream := w.hold(t.Context(), "orders")
			require.NoError(t, cmd.Process.Signal(signal))
			_, err := stream.Recv()
			assert.Equal(t, codes.Unavailable, status.Code(err),
				"the holder learns that it is the daemon that has gone: %v", err)
			if signal == syscall.SIGTERM {
				assert.ErrorContains(t, err, "the next one can hold it again",
					"it is told, and not cut off after a while")
			}
			_ = cmd.Wait()
			assert.Len(t, w.api.Intercepts(), 1)
		})
	}
}

func TestConfigAndLogLevel(t *testing.T) {
	w := newWorld(t)
	w.start()
	config := func() *daemonpb.ConfigInfo {
		info, err := w.daemon.Config(t.Context(), &daemonpb.Empty{})
		require.NoError(t, err)
		return info
	}
	set := func(level string, d time.Duration) error {
		_, err := w.daemon.SetLogLevel(t.Context(),
			&daemonpb.LogLevelRequest{Level: level, DurationMs: d.Milliseconds()})
		return err
	}
	was := config()
	assert.Equal(t, w.options.LogFile, was.GetLogFile())
	assert.Equal(t, w.options.Socket, was.GetSocket())
	assert.Equal(t, "debug", was.GetLogLevel())
	assert.Zero(t, was.GetLogLevelRevertsMs())
	assert.Zero(t, was.GetSessionGraceMs())

	require.NoError(t, set("error", 0))
	assert.Equal(t, "error", config().GetLogLevel())
	w.connect()
	assert.NotZero(t, config().GetSessionGraceMs())
	log, err := os.ReadFile(w.options.LogFile)
	require.NoError(t, err)
	assert.NotContains(t, string(log), "session begun", "it is logged with level info")

	require.NoError(t, set("warn", time.Hour))
	require.NoError(t, set("info", 50*time.Millisecond))
	assert.Equal(t, "info", config().GetLogLevel())
	w.eventually(func() bool { return config().GetLogLevel() == "debug" },
		"the level reverts to the daemon's own")
	assert.ErrorContains(t, set("loud", 0), `there is no log level "loud"`)
}
