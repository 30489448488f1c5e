// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"io"
	"time"
)

// Conn is what Of makes a Duplex of, for instance a tunnel.
type Conn interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetReadDeadline(t time.Time) error
}

// Of makes a Duplex of c, which it owns from then on. reset ends c out of order.
func Of(c Conn, reset func()) Duplex { return duplex{c, reset} }

type duplex struct {
	Conn
	reset func()
}

func (d duplex) Fill(b *Buffer) error { return b.readFrom(d.Conn) }
func (d duplex) Reset()               { d.reset() }
