// SPDX-License-Identifier: Apache-2.0

// Package sidecar holds the two proxies that injected sidecars commonly are, as plain as Go's
// libraries make them. Benchmarks run them beside an app, to have something to compare with.
package sidecar

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"sync"
)

// ServeHTTP relays HTTP requests to the app, as a sidecar that matches headers does. HTTP/2 without
// TLS stays HTTP/2.
func ServeHTTP(ctx context.Context, listener net.Listener, app string) error {
	server := &http.Server{Handler: handler(app), Protocols: protocols(true, true)}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}

func handler(app string) http.Handler {
	target := &url.URL{Scheme: "http", Host: app}
	proxy := func(p *http.Protocols) http.Handler {
		transport := &http.Transport{Protocols: p, MaxIdleConnsPerHost: 1024}
		return &httputil.ReverseProxy{
			Transport:     transport,
			FlushInterval: -1, // streams flow
			Rewrite: func(r *httputil.ProxyRequest) {
				r.SetURL(target)
				r.Out.Host = r.In.Host
			},
		}
	}
	http1, http2 := proxy(protocols(true, false)), proxy(protocols(false, true))
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.ProtoMajor == 2 {
			http2.ServeHTTP(w, r)
			return
		}
		http1.ServeHTTP(w, r)
	})
}

func protocols(http1, http2 bool) *http.Protocols {
	p := new(http.Protocols)
	p.SetHTTP1(http1)
	p.SetUnencryptedHTTP2(http2)
	return p
}

// ServeTCP passes connections on to the app, as a sidecar does that looks at no bytes.
func ServeTCP(ctx context.Context, listener net.Listener, app string) error {
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		conn, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		go relay(conn.(*net.TCPConn), app)
	}
}

func relay(client *net.TCPConn, app string) {
	defer client.Close()
	conn, err := net.Dial("tcp", app)
	if err != nil {
		return
	}
	defer conn.Close()
	upstream := conn.(*net.TCPConn)
	var back sync.WaitGroup
	back.Go(func() {
		_, _ = io.Copy(client, upstream)
		_ = client.CloseWrite()
	})
	_, _ = io.Copy(upstream, client)
	_ = upstream.CloseWrite()
	back.Wait()
}
