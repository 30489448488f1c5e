// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"net"
	"net/http"
	"strings"
	"sync"

	"sidestep.dev/sidestep/internal/tunnel"
)

// upgrades is a listener for the connections of HTTP requests that are upgraded to
// tunnel.UpgradeProtocol. They come through the API server's proxy to pods, which dials the manager
// itself: a port-forward would pass the kubelet and the container runtime besides.
type upgrades struct {
	conns chan net.Conn
	over  chan struct{}
	close sync.Once
}

func newUpgrades() *upgrades {
	return &upgrades{conns: make(chan net.Conn), over: make(chan struct{})}
}

func (u *upgrades) Accept() (net.Conn, error) {
	select {
	case conn := <-u.conns:
		return conn, nil
	case <-u.over:
		return nil, net.ErrClosed
	}
}

func (u *upgrades) Close() error {
	u.close.Do(func() { close(u.over) })
	return nil
}

// Addr is for logs.
func (u *upgrades) Addr() net.Addr { return upgradesAddr{} }

type upgradesAddr struct{}

func (upgradesAddr) Network() string { return "http" }
func (upgradesAddr) String() string  { return tunnel.UpgradePath }

func (u *upgrades) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	if !strings.EqualFold(r.Header.Get("Upgrade"), tunnel.UpgradeProtocol) {
		w.Header().Set("Connection", "Upgrade")
		w.Header().Set("Upgrade", tunnel.UpgradeProtocol)
		http.Error(w, "this is where laptops connect: ask for an upgrade to "+tunnel.UpgradeProtocol,
			http.StatusUpgradeRequired)
		return
	}
	conn, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "this connection cannot be upgraded", http.StatusHTTPVersionNotSupported)
		return
	}
	if buffered.Reader.Buffered() > 0 { // nobody may speak before the answer
		_ = conn.Close()
		return
	}
	_, err = fmt.Fprintf(conn,
		"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: %s\r\n\r\n",
		tunnel.UpgradeProtocol)
	if err != nil {
		_ = conn.Close()
		return
	}
	select {
	case u.conns <- conn:
	case <-u.over:
		_ = conn.Close()
	}
}
