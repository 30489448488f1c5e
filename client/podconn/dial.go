// SPDX-License-Identifier: Apache-2.0

// Package podconn connects to a pod through the Kubernetes API server, without a local listener:
// with a port-forward to any of its ports, or with an upgraded request to one of its HTTP servers,
// which is much quicker.
package podconn

import (
	"context"
	"errors"
	"fmt"
	"net/http"
	"net/url"
	"strconv"
	"time"

	corev1 "k8s.io/api/core/v1"
	constants "k8s.io/apimachinery/pkg/util/portforward"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/portforward"
	spdytransport "k8s.io/client-go/transport/spdy"
	"k8s.io/client-go/transport/websocket"
	"k8s.io/klog/v2"
	"k8s.io/streaming/pkg/httpstream/spdy"
)

// connectTimeout bounds Dial as a whole: a laptop that has just woken up dials over routes that are
// gone.
const connectTimeout = 15 * time.Second

// Dial connects to a port of a pod. It uses SPDY in a WebSocket, or bare SPDY if the API server, or
// a proxy before it, cannot upgrade to WebSockets. errors.As finds an error of the API server as an
// apierrors.APIStatus.
//
// Success does not mean that anything listens on the port: if not, the first Read returns an error.
func Dial(ctx context.Context, config *rest.Config, namespace, pod string, port int) (*Conn, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, connectTimeout, errors.New("no answer in time"))
	defer cancel()
	type result struct {
		conn *Conn
		err  error
	}
	done := make(chan result, 1)
	go func() {
		conn, err := dial(ctx, config, namespace, pod, port)
		done <- result{conn, err}
	}()
	select {
	case r := <-done:
		return r.conn, r.err
	case <-ctx.Done():
		// Not everything below takes a context.
		go func() {
			if r := <-done; r.conn != nil {
				_ = r.conn.Close()
			}
		}()
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, context.Cause(ctx))
	}
}

func dial(ctx context.Context, config *rest.Config, namespace, pod string, port int) (*Conn, error) {
	address, err := address(config, namespace, pod)
	if err != nil {
		return nil, err
	}
	remote := fmt.Sprintf("%s/%s:%d", namespace, pod, port)
	conn, err := dialWebSocket(ctx, config, address, remote, port)
	if cause, ok := upgradeFailure(err); ok {
		if conn, err = dialSPDY(ctx, config, address, remote, port); err != nil {
			err = fmt.Errorf("%w (over a WebSocket: %w)", err, cause)
		}
	}
	if err != nil {
		return nil, fmt.Errorf("port-forward to pod %s/%s: %w", namespace, pod, err)
	}
	return conn, nil
}

func address(config *rest.Config, namespace, pod string) (*url.URL, error) {
	base, _, err := rest.DefaultServerUrlFor(config)
	if err != nil {
		return nil, fmt.Errorf("the API server's address: %w", err)
	}
	return base.JoinPath("api", "v1", "namespaces", namespace, "pods", pod, "portforward"), nil
}

func dialWebSocket(ctx context.Context, config *rest.Config, address *url.URL, remote string,
	port int) (*Conn, error) {
	transport, holder, err := websocket.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address.String(), nil)
	if err != nil {
		return nil, err
	}
	ws, err := websocket.Negotiate(transport, holder, req, constants.WebsocketsSPDYTunnelingPortForwardV1)
	if err != nil {
		return nil, err
	}
	raw := portforward.NewTunnelingConnectionWithLogger(klog.FromContext(ctx), ws)
	session, err := spdy.NewClientConnectionWithPings(raw, portforward.PingPeriod)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("begin SPDY: %w", err), raw.Close())
	}
	return overSPDY(session, raw, remote, port)
}

func dialSPDY(ctx context.Context, config *rest.Config, address *url.URL, remote string,
	port int) (*Conn, error) {
	transport, upgrader, err := spdytransport.RoundTripperFor(config)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, address.String(), nil)
	if err != nil {
		return nil, err
	}
	session, protocol, err := spdytransport.NegotiateStreaming(upgrader,
		&http.Client{Transport: transport}, req, portforward.PortForwardProtocolV1Name)
	if err != nil {
		return nil, err
	}
	if protocol != portforward.PortForwardProtocolV1Name {
		return nil, errors.Join(fmt.Errorf("the API server answered with protocol %q", protocol),
			session.Close())
	}
	return overSPDY(session, nil, remote, port)
}

// headers returns those of one of the two streams of a connection.
func headers(kind string, port int) http.Header {
	h := http.Header{}
	h.Set(corev1.StreamType, kind)
	h.Set(corev1.PortHeader, strconv.Itoa(port))
	h.Set(corev1.PortForwardRequestIDHeader, "0")
	return h
}
