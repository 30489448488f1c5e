// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"io"
	"net"
	"testing"

	"github.com/stretchr/testify/require"
)

// route joins a client and an app in one of the ways that are to be compared.
type route func(b *testing.B) (client, app *net.TCPConn)

// throughManager goes TCP, node agent's end, manager, laptop's end, TCP.
func throughManager(over transport) route {
	return func(b *testing.B) (client, app *net.TCPConn) {
		client, app, _, _ = newManager(b, over).through(b)
		return client, app
	}
}

// plainRelay is what a TCP connection through a process that copies would be.
func plainRelay(b *testing.B) (client, app *net.TCPConn) {
	client, in := tcpPair(b)
	out, app := tcpPair(b)
	go func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{out}, struct{ io.Reader }{in},
			make([]byte, 64<<10))
	}()
	go func() {
		_, _ = io.CopyBuffer(struct{ io.Writer }{in}, struct{ io.Reader }{out},
			make([]byte, 64<<10))
	}()
	return client, app
}

var routes = []struct {
	name string
	route
}{
	{"plain TCP relay", plainRelay},
	{"tunnel over memory", throughManager(overMemory)},
	{"tunnel over TLS", throughManager(overTLS)},
}

func BenchmarkBulk(b *testing.B) {
	for _, r := range routes {
		b.Run(r.name, func(b *testing.B) {
			client, app := r.route(b)
			const block = 1 << 20
			go func() {
				buf := make([]byte, 64<<10)
				for {
					if _, err := app.Read(buf); err != nil {
						return
					}
				}
			}()
			data := make([]byte, block)
			b.SetBytes(block)
			b.ReportAllocs()
			for b.Loop() {
				_, err := client.Write(data)
				require.NoError(b, err)
			}
			_ = client.SetLinger(0)
			_ = client.Close()
		})
	}
}

func BenchmarkPingPong(b *testing.B) {
	for _, r := range routes {
		b.Run(r.name, func(b *testing.B) {
			client, app := r.route(b)
			go func() {
				buf := make([]byte, 100)
				for {
					if _, err := io.ReadFull(app, buf); err != nil {
						return
					}
					if _, err := app.Write(buf); err != nil {
						return
					}
				}
			}()
			buf := make([]byte, 100)
			b.ReportAllocs()
			for b.Loop() {
				_, err := client.Write(buf)
				require.NoError(b, err)
				_, err = io.ReadFull(client, buf)
				require.NoError(b, err)
			}
			_ = client.SetLinger(0)
			_ = client.Close()
		})
	}
}

func BenchmarkOpen(b *testing.B) {
	m := newManager(b, overTLS)
	b.ReportAllocs()
	for b.Loop() {
		near, far := m.pair(b)
		_ = near.Close()
		_ = far.Close()
	}
}
