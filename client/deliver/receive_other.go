// SPDX-License-Identifier: Apache-2.0

//go:build !unix

package deliver

import "net"

// receive waits for a datagram.
func receive(c *net.UDPConn) (buffer *[]byte, n int, err error) {
	buffer = datagramBuffers.Get().(*[]byte)
	n, err = c.Read(*buffer)
	return buffer, n, err
}
