// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sync/errgroup"
)

// Ports of what is measured. An app's port is the same in both pods.
const (
	goPort    = 8080
	nginxPort = 8090
	nodePort  = 8091
	grpcPort  = 9090
)

// proxies of the second pod. Connections to port are redirected to the proxy by iptables, as an
// injected sidecar has it; it connects to the app over loopback.
var proxies = []struct {
	name, kind string
	port, app  int
}{
	{reverseProxy, "http", 18001, goPort},
	{byteProxy, "bytes", 18002, goPort},
	{haproxy, "haproxy", 18003, goPort},
	{nginxProxy, "nginx", 18004, goPort},
	{reverseProxy, "http", 18011, grpcPort},
	{byteProxy, "bytes", 18012, grpcPort},
	{haproxy, "haproxy-h2", 18013, grpcPort},
	{haproxy, "haproxy-h2", 18023, goPort},
}

// Names of ways. The others are compared with the first.
const (
	direct       = "direct"
	intercepted  = "intercepted"
	reverseProxy = "sidecar: Go ReverseProxy"
	byteProxy    = "sidecar: bytes only"
	haproxy      = "sidecar: HAProxy"
	nginxProxy   = "sidecar: nginx"
)

// measured is the workload that is intercepted.
const measured = "measured"

// upPlaces brings up both pods and everything in them.
func (b *bench) upPlaces(ctx context.Context) error {
	group := new(errgroup.Group)
	group.Go(func() error { return b.upPlain(ctx) })
	group.Go(func() error { return b.upMeshed(ctx) })
	return group.Wait()
}

// placePorts returns the ports of both pods.
func placePorts() []servicePort {
	return []servicePort{{"go", goPort}, {"nginx", nginxPort}, {"node", nodePort}, {"grpc", grpcPort}}
}

// upPlain brings up the pod that is intercepted.
func (b *bench) upPlain(ctx context.Context) (err error) {
	if b.plain, err = b.newPlace(ctx, measured, placePorts()...); err != nil {
		return err
	}
	self, err := os.Executable()
	if err != nil {
		return err
	}
	if err := b.plain.startGreeter(ctx, b.apps); err != nil {
		return err
	}
	if err := b.plain.start(ctx, bulkPort, self, "-bulk-server", fmt.Sprint(":", bulkPort)); err != nil {
		return err
	}
	if err := b.plain.startNginx(ctx, nginxPort, "return 200 '"+text256+"';"); err != nil {
		return err
	}
	return b.plain.start(ctx, nodePort, "node", "-e",
		fmt.Sprintf("require('http').createServer((q,r)=>r.end('%s')).listen(%d,'0.0.0.0')", text256, nodePort))
}

// upMeshed brings up the pod with the proxies.
func (b *bench) upMeshed(ctx context.Context) (err error) {
	if b.meshed, err = b.newPlace(ctx, "sidecars", placePorts()...); err != nil {
		return err
	}
	if err := b.meshed.startGreeter(ctx, b.apps); err != nil {
		return err
	}
	for _, x := range proxies {
		if err := b.startProxy(ctx, x.kind, x.port-3000, x.app); err != nil {
			return fmt.Errorf("start %s: %w", x.name, err)
		}
		if err := b.meshed.run(ctx, "iptables", "-t", "nat", "-A", "PREROUTING", "-p", "tcp", "--dport",
			fmt.Sprint(x.port),
			"-j", "REDIRECT", "--to-ports", fmt.Sprint(x.port-3000)); err != nil {
			return err
		}
	}
	return nil
}

// startGreeter starts the gRPC app.
func (p *place) startGreeter(ctx context.Context, apps string) error {
	return p.start(ctx, grpcPort, apps, "greeter", "--listen", fmt.Sprintf(":%d", grpcPort))
}

func (b *bench) downPlaces() {
	for _, p := range []*place{b.plain, b.meshed} {
		if p != nil {
			p.close()
		}
	}
}

func (b *bench) startProxy(ctx context.Context, kind string, port, app int) error {
	p := b.meshed
	listen, to := fmt.Sprintf("--listen=:%d", port), fmt.Sprintf("--app=127.0.0.1:%d", app)
	switch kind {
	case "http":
		return p.start(ctx, port, b.apps, "sidecar", listen, to)
	case "bytes":
		return p.start(ctx, port, b.apps, "sidecar", "--tcp", listen, to)
	case "nginx":
		return p.startNginx(ctx, port,
			"proxy_pass http://app; proxy_http_version 1.1; proxy_set_header Connection ''; proxy_set_header Host $http_host;")
	}
	proto := ""
	if kind == "haproxy-h2" {
		proto = "proto h2"
	}
	path, err := p.configure(fmt.Sprintf("haproxy-%d.cfg", port),
		fmt.Sprintf(haproxyConfig, port, proto, app, proto))
	if err != nil {
		return err
	}
	return p.start(ctx, port, "haproxy", "-db", "-f", path)
}

// startNginx starts a server whose only location is as given. It can refer to the app as
// http://app.
func (p *place) startNginx(ctx context.Context, port int, location string) error {
	dir := filepath.Join(p.dir, fmt.Sprint("nginx-", port))
	path, err := p.configure(fmt.Sprintf("nginx-%d.conf", port),
		fmt.Sprintf(nginxConfig, dir, dir, dir, dir, dir, dir, goPort, port, location))
	if err != nil {
		return err
	}
	return p.start(ctx, port, "nginx", "-c", path, "-e", "stderr")
}

// text256 is as long as what /bytes/256 of the sample service answers.
const text256 = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef" +
	"0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef"

const nginxConfig = `daemon off;
user root;
worker_processes auto;
pid %s.pid;
events { worker_connections 4096; }
http {
	access_log off;
	keepalive_requests 1000000000;
	client_body_temp_path %s-body;
	proxy_temp_path %s-proxy;
	fastcgi_temp_path %s-fastcgi;
	uwsgi_temp_path %s-uwsgi;
	scgi_temp_path %s-scgi;
	upstream app { server 127.0.0.1:%d; keepalive 1024; keepalive_requests 1000000000; }
	server { listen %d backlog=4096; location / { %s } }
}
`

const haproxyConfig = `global
	maxconn 4000
defaults
	mode http
	timeout connect 5s
	timeout client 60s
	timeout server 60s
	http-reuse always
frontend clients
	bind :%d %s
	default_backend app
backend app
	server app 127.0.0.1:%d %s
`
