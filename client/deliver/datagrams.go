// SPDX-License-Identifier: Apache-2.0

package deliver

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"sync"
	"syscall"
	"time"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// refusalTime is how long a local port has to answer with ICMP that nothing listens there. On the
// same machine that is immediate.
const refusalTime = 50 * time.Millisecond

// datagramBuffers hold any datagram. A flow takes one only when there is something to read, so idle
// flows cost none.
var datagramBuffers = sync.Pool{New: func() any {
	b := make([]byte, tunnel.MaxDatagram)
	return &b
}}

// deliverDatagrams carries a flow of datagrams to a local port, and the answers back. If nothing
// listens, the flow is refused, or reset if that shows later. The app then gets what its client
// sends.
func (p *Pool) deliverDatagrams(ctx context.Context, addr string, conn *tunnel.Conn, log *slog.Logger) {
	_ = conn.SetReadDeadline(time.Now().Add(dialTimeout))
	first, err := tunnel.ReadDatagram(conn, nil)
	if err != nil {
		log.Debug("a flow began without a datagram", "error", err)
		conn.Reset("there was no datagram")
		return
	}
	_ = conn.SetReadDeadline(time.Time{})
	local, answer, err := reach(ctx, addr, first)
	if err != nil {
		log.Debug("no local process", "error", err)
		p.answer(conn, log, tunnelpb.Opened_REFUSED, err.Error())
		_ = conn.Close()
		return
	}
	defer local.Close()
	if !p.answer(conn, log, tunnelpb.Opened_OK, "") {
		conn.Reset("could not answer")
		return
	}
	stop := context.AfterFunc(ctx, func() {
		_ = local.Close()
		conn.Reset("disconnected")
	})
	defer stop()
	var answering sync.WaitGroup
	answering.Go(func() { returnDatagrams(local, conn, answer, addr) })
	for datagram := first; ; {
		if datagram, err = tunnel.ReadDatagram(conn, datagram); err != nil {
			break
		}
		if _, err := local.Write(datagram); errors.Is(err, syscall.ECONNREFUSED) {
			conn.Reset("nothing listens on " + addr)
		} else if err != nil {
			log.Debug("a datagram is lost", "error", err) // EMSGSIZE, or no room
		}
	}
	_ = local.Close()
	answering.Wait()
	_ = conn.Close()
	log.Debug("flow ended", "reason", err)
}

// reach sends the first datagram: a process that listens on localhost may do so on ::1 alone.
// answer is the answer if one arrived within refusalTime, else nil.
func reach(ctx context.Context, addr string, first []byte) (local *net.UDPConn, answer []byte, err error) {
	addresses := []string{addr}
	if host, port, err := net.SplitHostPort(addr); err == nil && host == "127.0.0.1" {
		addresses = append(addresses, net.JoinHostPort("::1", port))
	}
	var dialer net.Dialer
	for _, to := range addresses {
		c, dialErr := dialer.DialContext(ctx, "udp", to)
		if dialErr != nil {
			err = errors.Join(err, dialErr)
			continue
		}
		local = c.(*net.UDPConn)
		if answer, dialErr = try(local, first); dialErr == nil {
			return local, answer, nil
		}
		_ = local.Close()
		err = errors.Join(err, dialErr)
	}
	if errors.Is(err, syscall.ECONNREFUSED) {
		err = fmt.Errorf("nothing listens on %s", addr)
	}
	return nil, nil, err
}

func try(local *net.UDPConn, first []byte) (answer []byte, err error) {
	if _, err := local.Write(first); err != nil {
		return nil, err
	}
	buffer := datagramBuffers.Get().(*[]byte)
	defer datagramBuffers.Put(buffer)
	_ = local.SetReadDeadline(time.Now().Add(refusalTime))
	n, err := local.Read(*buffer)
	_ = local.SetReadDeadline(time.Time{})
	switch {
	case errors.Is(err, os.ErrDeadlineExceeded):
		return nil, nil
	case err != nil:
		return nil, err
	}
	return append([]byte{}, (*buffer)[:n]...), nil
}

// returnDatagrams sends answers until the socket is closed. The first one may have arrived already.
func returnDatagrams(local *net.UDPConn, conn *tunnel.Conn, answer []byte, addr string) {
	var scratch []byte
	var err error
	if answer != nil {
		scratch, err = tunnel.WriteDatagram(conn, answer, scratch)
	}
	for err == nil {
		var buffer *[]byte
		var n int
		if buffer, n, err = receive(local); err == nil {
			scratch, err = tunnel.WriteDatagram(conn, (*buffer)[:n], scratch)
		} else if !errors.Is(err, net.ErrClosed) {
			conn.Reset(fmt.Sprintf("nothing listens on %s any more: %v", addr, err))
		}
		if buffer != nil {
			datagramBuffers.Put(buffer)
		}
	}
}
