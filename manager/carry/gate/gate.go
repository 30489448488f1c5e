// SPDX-License-Identifier: Apache-2.0

// Package gate bounds what a peer can make the manager hold before it is proven: before the API
// server vouches for its user, it holds an Intercept, or it has shown a node agent's token. A gate
// stands before listeners.
package gate

import (
	"net"
	"sync"
	"sync/atomic"
	"time"
)

// Limits bound the connections of a gate that are not proven. Zero means no limit.
type Limits struct {
	// Unproven connections. Ungreeted ones have not begun a session or shown a token; Address bounds
	// them for each peer address. Beyond a bound one connection ends: see makeRoom.
	Unproven, Ungreeted, Address int
	// Greeting is how long a connection may stay without a greeting.
	Greeting time.Duration
	// Hasty is how long a connection without a greeting may stay when there is no room.
	Hasty time.Duration
	// Socket is SO_RCVBUF.
	Socket int
	// Silent is TCP_USER_TIMEOUT. grpc-go sets it for connections without a gate alone.
	Silent time.Duration
	// A connection may send Burst bytes at once and Rate bytes a second. It is not read beyond that.
	Burst, Rate int64
	// Held bounds the bytes of all together since their calls were last ended. Beyond it, the calls of
	// the connection that has sent the most are ended, and with them what they hold.
	Held int64
	// Calls are those of one connection at a time, and CallsInAll those of all. Beyond it, the calls of
	// the connection that has the most are ended.
	Calls, CallsInAll int
	// Slow is how long a peer may take in nothing of what it is sent.
	Slow time.Duration
	// Memory bounds what the calls of all connections hold, proven or not: themselves, what came and they
	// have not read, and what they have sent and the connection has not taken. Beyond it, calls end of
	// the peer that holds the most.
	Memory int64
}

// Laptops are the limits of ports on which laptops and node agents connect. A laptop that is not proven
// sends about 60 bytes a second, and has a session and eight parked streams on up to four
// connections. What a node agent sends beyond Burst waits for the review of its token.
//
// The bounds add up to less than 240 MiB in the worst case: a connection takes 75 KiB, a call 16 KiB,
// and a byte in frames of one byte each takes 10. The kernel's share comes to 60 MiB.
func Laptops() Limits {
	return Limits{Unproven: 1536, Ungreeted: 1024, Address: 192,
		Hasty: 2 * time.Second, Greeting: time.Minute, Slow: 10 * time.Second, Silent: 5 * time.Second,
		Socket: 16 << 10, Burst: 16 << 10, Rate: 192, Held: 6 << 20, Calls: 256, CallsInAll: 4000, Memory: budget()}
}

// HTTP are the limits of a port for HTTP, whose server has timeouts of its own. A request takes
// milliseconds, so a probe has had its answer before a thousand peers have made it the oldest
// connection. One takes 60 KiB at most, its head and the kernel's
// share included.
func HTTP() Limits { return Limits{Unproven: 1024, Address: 512, Socket: 16 << 10} }

const (
	// A connection gives way to another only when it has had its time: Limits.Hasty, in which a busy
	// manager shakes hands, or calm for a laptop that has come. Else nobody would get in when all come
	// at once, after the manager's restart.
	calm = time.Minute
	// sessionCalls bounds the calls of one connection that are not ended in favour of others: the
	// sessions. The one before may still be about to end.
	sessionCalls = 2
	// refusals are how many calls may be refused on a connection before it ends. grpc-go keeps a
	// context of each.
	refusals = 64
)

// Gate is safe for concurrent use.
type Gate struct {
	limits  Limits
	known   *Known
	metrics *Metrics
	now     func() time.Time

	mu        sync.Mutex
	conns     map[*Conn]struct{} // those that are not proven
	last      uint64
	ungreeted int
	calls     int
	held      int64
	addresses map[string]*address
	open      map[*Conn]struct{} // all, where there is a limit of memory
	holders   map[string]*holder // those that are proven

	relief    sync.Mutex // held while calls are chosen that are to end
	heldInAll atomic.Int64
}

// address is what a peer address has of connections that are not proven.
type address struct{ unproven, ungreeted int }

// New returns a gate that nothing has passed yet.
func New(limits Limits, known *Known, metrics *Metrics) *Gate {
	g := &Gate{limits: limits, known: known, metrics: metrics, now: time.Now, conns: map[*Conn]struct{}{},
		addresses: map[string]*address{}, open: map[*Conn]struct{}{}, holders: map[string]*holder{}}
	metrics.add(g)
	return g
}

// Listener returns the listener with the gate before it.
func (g *Gate) Listener(l net.Listener) net.Listener { return &listener{l, g} }

type listener struct {
	net.Listener
	gate *Gate
}

func (l *listener) Accept() (net.Conn, error) {
	for {
		raw, err := l.Listener.Accept()
		if err != nil {
			return nil, err
		}
		if c := l.gate.admit(raw); c != nil {
			return c, nil
		}
	}
}

// admit admits a connection, in place of another if necessary, or closes it and returns nil.
func (g *Gate) admit(raw net.Conn) *Conn {
	host, _, _ := net.SplitHostPort(raw.RemoteAddr().String())
	c := &Conn{Conn: raw, gate: g, host: host, began: g.now(), may: g.limits.Burst,
		lifted: make(chan struct{}), closed: make(chan struct{})}
	c.filled = c.began
	c.account = account{gate: g, holder: &holder{}, streams: map[uint32]*held{}}
	if g.limits.Silent > 0 {
		endWhenSilent(raw, g.limits.Silent)
	}
	if g.limits.Socket > 0 {
		narrow(raw, g.limits.Socket)
	}
	g.mu.Lock()
	if g.limits.Memory > 0 {
		g.open[c] = struct{}{}
	}
	victim := g.enter(c)
	if g.limits.Greeting > 0 && victim != c {
		c.timer = time.AfterFunc(g.limits.Greeting, c.overdue)
	}
	g.mu.Unlock()
	if victim != nil {
		g.metrics.refused(boundConnections)
		_ = victim.Close()
	}
	if victim == c {
		return nil
	}
	return c
}

// enter counts a connection, and returns the one that has to end for it, which may be itself. It is
// called with mu held.
func (g *Gate) enter(c *Conn) (victim *Conn) {
	g.last++
	c.number = g.last
	g.conns[c] = struct{}{}
	at := g.addresses[c.host]
	if at == nil {
		at = &address{}
		g.addresses[c.host] = at
	}
	at.unproven++
	at.ungreeted++
	g.ungreeted++
	beyond := func(n, limit int) bool { return limit > 0 && n > limit }
	switch {
	case beyond(at.ungreeted, g.limits.Address):
		return g.makeRoom(c, func(other *Conn) bool { return !other.greeted && other.host == c.host })
	case beyond(g.ungreeted, g.limits.Ungreeted):
		return g.makeRoom(c, func(other *Conn) bool { return !other.greeted })
	case beyond(len(g.conns), g.limits.Unproven):
		return g.makeRoom(c, func(*Conn) bool { return true })
	}
	return nil
}

// makeRoom returns which connection among some is to end for a new one: a stranger's rather than one
// of a known address, of the address that has the most, one without a greeting, else one without a
// session, and of equals the oldest. If none of them may end, it is the new one: its peer comes again
// later. It is called with mu held.
func (g *Gate) makeRoom(newest *Conn, among func(*Conn) bool) *Conn {
	now, known := g.now(), g.known.has(newest.host)
	var found *Conn
	var most int
	var foundKnown bool
	for c := range g.conns {
		cKnown := g.known.has(c.host)
		if c == newest || !among(c) || !g.givesWay(c, newest, cKnown, known, now) {
			continue
		}
		n := g.addresses[c.host].unproven
		better := found == nil || n > most || n == most && c.before(found)
		if found != nil && cKnown != foundKnown {
			better = foundKnown
		}
		if better {
			found, most, foundKnown = c, n, cKnown
		}
	}
	if found == nil {
		return newest
	}
	return found
}

// givesWay reports whether a connection may end for a new one. It is called with mu held.
func (g *Gate) givesWay(c, newest *Conn, known, newestKnown bool, now time.Time) bool {
	if known != newestKnown {
		return newestKnown
	}
	patience := g.limits.Hasty
	if c.greeted {
		patience = calm
	}
	return g.addresses[c.host].unproven > g.addresses[newest.host].unproven || now.Sub(c.began) >= patience
}

// before reports whether a connection is to end rather than another.
func (c *Conn) before(other *Conn) bool {
	if a, b := c.worth(), other.worth(); a != b {
		return a < b
	}
	return c.number < other.number
}

func (c *Conn) worth() int {
	switch {
	case !c.greeted:
		return 0
	case c.sessions == 0: // a further connection, which nobody misses
		return 1
	}
	return 2
}

// leave forgets a connection that has ended or is proven. It is called with mu held.
func (g *Gate) leave(c *Conn) {
	if _, present := g.conns[c]; !present {
		return
	}
	delete(g.conns, c)
	g.greet(c)
	g.calls -= c.calls
	g.held -= c.read
	c.calls, c.read, c.cancels = 0, 0, nil
	at := g.addresses[c.host]
	if at.unproven--; at.unproven == 0 {
		delete(g.addresses, c.host)
	}
	if c.timer != nil {
		c.timer.Stop()
	}
}

// greet is called with mu held.
func (g *Gate) greet(c *Conn) {
	if !c.greeted {
		c.greeted = true
		g.ungreeted--
		g.addresses[c.host].ungreeted--
	}
}
