// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"sync"
	"time"

	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/client/podconn"
	"sidestep.dev/sidestep/internal/tunnel"
)

// Forward connects to a port of a pod.
type Forward func(ctx context.Context, c *kube.Cluster, namespace, pod string, port int) (net.Conn, error)

// byForward connects with a port-forward, as Kubernetes' tools do. It works wherever the API server
// reaches the kubelet.
func byForward(ctx context.Context, c *kube.Cluster, namespace, pod string, port int) (net.Conn, error) {
	conn, err := podconn.Dial(ctx, c.Config, namespace, pod, port)
	if err != nil {
		return nil, err // not a nil *podconn.Conn in an interface
	}
	return conn, nil
}

// byUpgrade connects with an upgraded request. It is quicker, but needs an API server that reaches
// pods, the right to pods/proxy, and a manager that supports it.
func byUpgrade(ctx context.Context, c *kube.Cluster, namespace, pod string, port int) (net.Conn, error) {
	conn, err := podconn.DialUpgrade(ctx, c.Config, namespace, pod, port, tunnel.UpgradePath,
		tunnel.UpgradeProtocol)
	if err != nil {
		return nil, err
	}
	return conn, nil
}

const (
	// headStart is how long the quicker way is tried alone. A firewall between API server and pods
	// may drop packets silently.
	headStart = 500 * time.Millisecond
	// avoidFor is how long the quicker way is not tried after it has failed where the other one has
	// worked.
	avoidFor = 10 * time.Minute
)

// detour remembers that the quicker way does not work.
type detour struct {
	mu    sync.Mutex
	until time.Time
	why   error
}

func (d *detour) take(why error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until, d.why = time.Now().Add(avoidFor), why
}

func (d *detour) end() {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.until, d.why = time.Time{}, nil
}

// reason returns why to avoid the quicker way, nil if it may be tried.
func (d *detour) reason() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if time.Now().After(d.until) {
		return nil
	}
	return d.why
}

// dialer connects to a pod of the manager in one way.
type dialer func(context.Context) (net.Conn, error)

// either connects in the quicker way, else in the sure one, and remembers in d which of them works.
func (d *detour) either(ctx context.Context, quick, sure dialer) (*Way, error) {
	var conn net.Conn
	var err error
	why, again := d.reason(), sure
	if why != nil {
		if conn, err = sure(ctx); err != nil {
			d.end()
		}
	} else if conn, why, err = race(ctx, quick, sure); err == nil && why != nil {
		if passing(why) {
			again = func(ctx context.Context) (net.Conn, error) {
				conn, _, err := race(ctx, quick, sure)
				return conn, err
			}
		} else {
			d.take(why)
		}
	}
	if err != nil {
		return nil, err
	}
	if why != nil {
		return &Way{Conn: conn, Again: again, By: fmt.Sprintf("port-forward (%v)", why), Failed: d.end}, nil
	}
	silent := func() { d.take(errors.New("an upgraded request did not lead to the manager")) }
	return &Way{Conn: conn, Again: quick, By: "upgraded request", Failed: silent}, nil
}

// passing reports whether the quicker way may work in a moment: a manager that has just been
// restarted did not listen yet. Tunnels then use it on the further connections, whichever way the
// first one is.
func passing(why error) bool {
	var answer apierrors.APIStatus
	return errors.As(why, &answer) && answer.Status().Code >= http.StatusInternalServerError
}

// race returns the first connection. The quicker way has a head start. why is nil if the connection
// is by the quicker way. err is the error of the sure way.
func race(ctx context.Context, quick, sure dialer) (conn net.Conn, why, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	type result struct {
		conn net.Conn
		err  error
	}
	start := func(dial dialer) <-chan result {
		done := make(chan result, 1)
		go func() {
			conn, err := dial(ctx)
			done <- result{conn, err}
		}()
		return done
	}
	discard := func(done <-chan result) {
		if done == nil {
			return
		}
		go func() {
			if late := <-done; late.err == nil {
				_ = late.conn.Close()
			}
		}()
	}
	timer := time.NewTimer(headStart)
	defer timer.Stop()
	quicker, surer := start(quick), (<-chan result)(nil)
	why = errors.New("the API server's proxy to pods is slow to answer")
	for {
		select {
		case <-timer.C:
			if surer == nil && quicker != nil {
				surer = start(sure)
			}
		case r := <-quicker:
			if r.err == nil {
				discard(surer)
				return r.conn, nil, nil
			}
			if quicker, why = nil, r.err; err != nil {
				return nil, why, err
			}
			if surer == nil {
				surer = start(sure)
			}
		case r := <-surer:
			if r.err == nil {
				discard(quicker)
				return r.conn, why, nil
			}
			if err = r.err; quicker == nil {
				return nil, why, err
			}
			surer = nil
		}
	}
}
