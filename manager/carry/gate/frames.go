// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"context"
	"encoding/binary"
	"net"
	"reflect"

	"golang.org/x/net/http2"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials"
)

// frames finds the heads of HTTP/2 frames in a stream of bytes.
type frames struct {
	skip int // bytes until the next head
	head [frameHead]byte
	have int
}

const frameHead = 9

// scan calls each for every head that ends in b.
func (f *frames) scan(b []byte, each func(kind http2.FrameType, id uint32, length int)) {
	for len(b) > 0 {
		if n := min(f.skip, len(b)); n > 0 {
			f.skip -= n
			b = b[n:]
			continue
		}
		n := copy(f.head[f.have:], b)
		b = b[n:]
		if f.have += n; f.have < frameHead {
			return
		}
		f.have = 0
		f.skip = int(f.head[0])<<16 | int(f.head[1])<<8 | int(f.head[2])
		each(http2.FrameType(f.head[3]), binary.BigEndian.Uint32(f.head[5:])&(1<<31-1), f.skip)
	}
}

// Credentials returns a server's credentials over whose connections what calls hold is counted.
func Credentials(c credentials.TransportCredentials) credentials.TransportCredentials {
	return countingCredentials{c}
}

type countingCredentials struct {
	credentials.TransportCredentials
}

func (c countingCredentials) ServerHandshake(raw net.Conn) (net.Conn, credentials.AuthInfo, error) {
	sealed, info, err := c.TransportCredentials.ServerHandshake(raw)
	if conn, ok := raw.(*Conn); ok && err == nil {
		sealed = &plain{Conn: sealed, conn: conn, in: frames{skip: len(http2.ClientPreface)}}
	}
	return sealed, info, err
}

func (c countingCredentials) Clone() credentials.TransportCredentials {
	return countingCredentials{c.TransportCredentials.Clone()}
}

// plain is a connection's plaintext. It is read by one goroutine, and written by one.
type plain struct {
	net.Conn
	conn    *Conn
	in, out frames
}

func (p *plain) Read(b []byte) (int, error) {
	n, err := p.Conn.Read(b)
	p.in.scan(b[:n], func(kind http2.FrameType, id uint32, length int) {
		switch kind {
		case http2.FrameHeaders:
			p.conn.account.open(id)
		case http2.FrameData:
			p.conn.account.arrived(id, length)
		}
	})
	return n, err
}

func (p *plain) Write(b []byte) (int, error) {
	n, err := p.Conn.Write(b)
	p.out.scan(b[:n], func(kind http2.FrameType, id uint32, length int) {
		if kind == http2.FrameData {
			p.conn.account.written(id, length)
		}
	})
	return n, err
}

// streamID returns the number of a call's stream, which grpc-go shows to nobody; 0 if it cannot be had.
func streamID(ctx context.Context) uint32 {
	v := reflect.ValueOf(grpc.ServerTransportStreamFromContext(ctx))
	if v.Kind() != reflect.Pointer || v.Elem().Kind() != reflect.Struct {
		return 0
	}
	id := v.Elem().FieldByName("id")
	if !id.IsValid() || id.Kind() != reflect.Uint32 {
		return 0
	}
	return uint32(id.Uint())
}
