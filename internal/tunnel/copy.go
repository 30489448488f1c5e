package tunnel

import (
	"errors"
	"io"
	"net"

	"google.golang.org/grpc/mem"
)

// Copy joins a TCP connection and a tunnel in both directions: half-close, reset and back-pressure pass from one to the other. It returns, with
// both closed, when both directions have ended; the counts are in bytes.
func Copy(tcp *net.TCPConn, t *Conn) (toTunnel, fromTunnel int64, err error) {
	ended := make(chan error, 1)
	go func() {
		var err error
		fromTunnel, err = t.WriteTo(tcp)
		if err == nil {
			err = tcp.CloseWrite()
		}
		if err != nil {
			reset(tcp, t, err)
		}
		ended <- err
	}()
	toTunnel, err = t.ReadFrom(tcp)
	if err == nil {
		err = t.CloseWrite()
	}
	if err != nil {
		reset(tcp, t, err)
	}
	if other := <-ended; err == nil || (other != nil && errors.Is(err, net.ErrClosed)) {
		err = other
	}
	_ = tcp.Close()
	_ = t.Close()
	return toTunnel, fromTunnel, err
}

// reset carries an error of either side to both.
func reset(tcp *net.TCPConn, t *Conn, err error) {
	_ = tcp.SetLinger(0)
	_ = tcp.Close()
	t.Reset(err.Error())
}

// Sizes of the buffers that a socket is read into: the large one while data streams, the small one while a connection idles.
const (
	smallRead = 4 << 10
	largeRead = frameData
)

// ReadFrom sends everything that r gives, up to its end, without copying. It does not send FIN.
func (c *Conn) ReadFrom(r io.Reader) (int64, error) {
	var total int64
	size := smallRead
	for {
		buf := pool.Get(size)
		n, err := r.Read((*buf)[:size])
		if n > 0 {
			total += int64(n)
			data := (*buf)[:n]
			*buf = data
			if sendErr := c.send(mem.NewBuffer(buf, pool)); sendErr != nil {
				return total, sendErr
			}
		} else {
			pool.Put(buf)
		}
		if err == io.EOF {
			return total, nil
		}
		if err != nil {
			return total, err
		}
		if n == size {
			size = largeRead
		} else if n < smallRead/2 {
			size = smallRead
		}
	}
}
