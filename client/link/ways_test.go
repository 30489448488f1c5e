// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// named is a connection that knows its way, and whether it was closed.
type named struct {
	net.Conn
	way    string
	closed atomic.Bool
}

func (n *named) Close() error { n.closed.Store(true); return nil }

// fake is a dialer that takes its time, and may fail.
type fake struct {
	way   string
	takes time.Duration
	err   error
	calls atomic.Int32
	last  atomic.Pointer[named]
}

// dial ignores its context: a connection may be established just when nothing needs it any more.
func (f *fake) dial(context.Context) (net.Conn, error) {
	f.calls.Add(1)
	time.Sleep(f.takes)
	if f.err != nil {
		return nil, f.err
	}
	n := &named{way: f.way}
	f.last.Store(n)
	return n, nil
}

func TestTheWayToTheManager(t *testing.T) {
	const ms = time.Millisecond
	no := errors.New("no")
	tests := map[string]struct {
		quick, sure *fake
		way         string // that is taken; "": none
		takes       time.Duration
		avoids      bool // the quick way next time
		sureCalled  int32
	}{
		"the quick one, if it works": {&fake{takes: 50 * ms}, &fake{},
			"quick", 50 * ms, false, 0},
		"the quick one, though it is slower than the sure one": {&fake{takes: 600 * ms},
			&fake{takes: 300 * ms}, "quick", 600 * ms, false, 1},
		"the sure one at once, if the quick one is refused": {&fake{takes: 20 * ms, err: no},
			&fake{takes: 30 * ms}, "sure", 50 * ms, true, 1},
		"the sure one, if the quick one hangs": {&fake{takes: time.Hour},
			&fake{takes: 30 * ms}, "sure", 530 * ms, true, 1},
		"the quick one late, if the sure one fails": {&fake{takes: time.Second},
			&fake{err: no}, "quick", time.Second, false, 1},
		"none, if both fail": {&fake{err: no},
			&fake{takes: 30 * ms, err: no}, "", 30 * ms, false, 1},
		"none, if the quick one fails last": {&fake{takes: time.Second, err: no},
			&fake{err: no}, "", time.Second, false, 1},
	}
	for name, test := range tests {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				test.quick.way, test.sure.way = "quick", "sure"
				d := &detour{}
				began := time.Now()
				way, err := d.either(t.Context(), test.quick.dial, test.sure.dial)
				assert.Equal(t, test.takes, time.Since(began))
				assert.Equal(t, test.sureCalled, test.sure.calls.Load())
				assert.Equal(t, test.avoids, d.reason() != nil)
				if test.way == "" {
					assert.ErrorIs(t, err, no)
					return
				}
				require.NoError(t, err)
				taken := way.Conn.(*named)
				assert.Equal(t, test.way, taken.way)
				again, err := way.Again(t.Context())
				require.NoError(t, err)
				assert.Equal(t, test.way, again.(*named).way)
				time.Sleep(2 * time.Hour)
				synctest.Wait()
				assert.False(t, taken.closed.Load())
				for _, other := range []*fake{test.quick, test.sure} {
					if last := other.last.Load(); last != nil && other.way != test.way {
						assert.True(t, last.closed.Load(), "a connection that came too late stays open")
					}
				}
			})
		})
	}
}

func TestTheQuickWayIsAvoidedForAWhile(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		quick, sure := &fake{way: "quick", err: errors.New("forbidden")}, &fake{way: "sure"}
		d := &detour{}
		by := func() string {
			way, err := d.either(t.Context(), quick.dial, sure.dial)
			require.NoError(t, err)
			return way.By
		}
		assert.Equal(t, "port-forward (forbidden)", by())
		quick.err = nil
		assert.Equal(t, "port-forward (forbidden)", by())
		assert.EqualValues(t, 1, quick.calls.Load())
		time.Sleep(avoidFor - time.Second)
		assert.Equal(t, "port-forward (forbidden)", by(), "a laptop that connects again and again")
		assert.EqualValues(t, 1, quick.calls.Load())
		time.Sleep(2 * time.Second)
		assert.Equal(t, "upgraded request", by())
	})
}

func TestFurtherConnectionsGoByTheQuickWayOnceTheManagerListens(t *testing.T) {
	for _, passes := range []bool{true, false} {
		why := error(apierrors.NewForbidden(corev1.Resource("pods/proxy"), "manager-0",
			errors.New("not for you")))
		if passes {
			why = fmt.Errorf("not upgraded: %w",
				apierrors.NewGenericServerResponse(503, "get", corev1.Resource("pods/proxy"), "",
					"connection refused", 0, false))
		}
		quick, sure := &fake{way: "quick", err: why}, &fake{way: "sure"}
		d := &detour{}
		way, err := d.either(t.Context(), quick.dial, sure.dial)
		require.NoError(t, err)
		assert.Equal(t, "sure", way.Conn.(*named).way)
		assert.Equal(t, passes, d.reason() == nil, "%v", why)
		quick.err = nil
		further, err := way.Again(t.Context())
		require.NoError(t, err)
		assert.Equal(t, passes, further.(*named).way == "quick", "%v", why)
	}
}

func TestAWayOnWhichTheManagerIsNotHeardIsNotTakenAgain(t *testing.T) {
	quick, sure := &fake{way: "quick"}, &fake{way: "sure"}
	d := &detour{}
	for _, want := range []string{"quick", "sure", "quick"} {
		way, err := d.either(t.Context(), quick.dial, sure.dial)
		require.NoError(t, err)
		assert.Equal(t, want, way.Conn.(*named).way)
		way.Failed()
	}
	sure.err = errors.New("gone")
	_, err := d.either(t.Context(), quick.dial, sure.dial) // avoiding the quick one
	require.ErrorIs(t, err, sure.err)
	way, err := d.either(t.Context(), quick.dial, sure.dial)
	require.NoError(t, err)
	assert.Equal(t, "quick", way.Conn.(*named).way, "the sure one is no better")
}

func TestThePortForUpgradedRequestsIsThatOfThePod(t *testing.T) {
	older := corev1.Container{Ports: []corev1.ContainerPort{{Name: "grpc", ContainerPort: 8443},
		{Name: "http", ContainerPort: 8080}}}
	newer := corev1.Container{Ports: append([]corev1.ContainerPort{{Name: "connect", ContainerPort: 8444}},
		older.Ports...)}
	for name, c := range map[string]struct {
		container corev1.Container
		want      int
	}{
		"a manager with a port for it":          {newer, 8444},
		"a manager of the minor version before": {older, 8080},
		"a pod that declares no ports":          {corev1.Container{}, 8080},
	} {
		t.Run(name, func(t *testing.T) {
			pod := &corev1.Pod{Spec: corev1.PodSpec{Containers: []corev1.Container{{Name: "sidecar"}, c.container}}}
			assert.Equal(t, c.want, connectPort(pod))
		})
	}
}
