// SPDX-License-Identifier: Apache-2.0

package nodeagent_test

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"syscall"
	"testing"
	"time"

	"sidestep.dev/sidestep/internal/testnet"
)

// patience is how long a client waits for anything: longer than any fault lasts.
const patience = 20 * time.Second

// kind is how a client uses connections.
type kind string

const (
	fresh  kind = "one request on each connection"
	busy   kind = "request after request on one connection"
	idle   kind = "a request now and then on one connection"
	stream kind = "an answer without end"
)

// pauses lie between a client's requests; fresh ones do not wait for the answer to the one before.
var pauses = map[kind]time.Duration{fresh: 20 * time.Millisecond, busy: 10 * time.Millisecond,
	idle: 700 * time.Millisecond}

// stalled is a request that took longer than any that nothing has befallen.
const stalled = time.Second

// failure is a request that came to nothing, on a connection that was begun then.
type failure struct {
	begun time.Time
	err   error
}

// tally is what the clients of one kind have met.
type tally struct {
	mu               sync.Mutex
	asked            int
	byApp, byLaptop  int
	failed           []failure
	broken           int // connections that ended while they were used
	slowest          time.Duration
	stalled          int
	missed, answered time.Time // when the app, and the laptop, last answered
}

func (t *tally) answer(begun time.Time, by string) {
	now := time.Now()
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked++
	t.slowest = max(t.slowest, now.Sub(begun))
	if now.Sub(begun) > stalled {
		t.stalled++
	}
	if by == "laptop" {
		t.byLaptop++
		t.answered = now
	} else {
		t.byApp++
		t.missed = now
	}
}

func (t *tally) fail(begun time.Time, err error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.asked++
	t.failed = append(t.failed, failure{begun, err})
}

// since counts the failures of connections that were begun later than a moment.
func (t *tally) since(moment time.Time) (n int, first error) {
	for _, f := range t.failed {
		if f.begun.After(moment) {
			if n++; n == 1 {
				first = fmt.Errorf("begun %s after: %w", f.begun.Sub(moment), f.err)
			}
		}
	}
	return n, first
}

// straddled says whether the first failure of a connection that was begun later than a moment is
// what may befall the developer: it came to the app before connections were steered again, and its
// request afterwards, which was taken over.
func (t *tally) straddled(moment time.Time) bool {
	for _, f := range t.failed {
		if f.begun.After(moment) {
			return errors.Is(f.err, syscall.ECONNRESET) && f.begun.Before(t.missed.Add(10*pauses[fresh]))
		}
	}
	return false
}

// crowd is clients of all kinds, with and without the header of the intercept.
type crowd struct {
	world   *world
	quit    context.Context
	leave   context.CancelFunc
	running sync.WaitGroup
	users   map[kind]*tally
	matched map[kind]*tally
}

func newCrowd(t *testing.T, w *world) *crowd {
	c := &crowd{world: w, users: map[kind]*tally{}, matched: map[kind]*tally{}}
	c.quit, c.leave = context.WithCancel(t.Context())
	for _, k := range []kind{fresh, busy, idle, stream} {
		c.users[k], c.matched[k] = &tally{}, &tally{}
		for n := range 6 {
			who, into := "", c.users[k]
			if n >= 4 {
				who, into = "me", c.matched[k]
			}
			to := netip.AddrPortFrom([]netip.Addr{w.pod.IP4, w.pod.IP6}[n%2], appPort)
			c.running.Go(func() {
				for c.quit.Err() == nil {
					if k != fresh {
						c.use(k, to, who, into)
						continue
					}
					c.running.Go(func() { c.use(k, to, who, into) })
					time.Sleep(pauses[fresh])
				}
			})
		}
	}
	t.Cleanup(c.stop)
	return c
}

// stop ends the clients, and waits for the answers to what they have asked.
func (c *crowd) stop() {
	c.leave()
	c.running.Wait()
}

// use is the life of one connection.
func (c *crowd) use(k kind, to netip.AddrPort, who string, into *tally) {
	begun := time.Now()
	conn, err := c.dial(to)
	if err != nil {
		into.fail(begun, err)
		time.Sleep(pauses[busy])
		return
	}
	defer conn.Close()
	if k == stream {
		err = c.listen(conn, who, into)
	} else {
		err = c.converse(k, conn, who, into, begun)
	}
	if err != nil {
		into.fail(begun, err)
		into.mu.Lock()
		into.broken++
		into.mu.Unlock()
	}
}

func (c *crowd) dial(to netip.AddrPort) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	return testnet.Dial(ctx, c.world.node.Namespace, to)
}

func request(conn net.Conn, path, who string) error {
	head := "GET " + path + " HTTP/1.1\r\nHost: orders\r\n"
	if who != "" {
		head += header + ": " + who + "\r\n"
	}
	_, err := io.WriteString(conn, head+"\r\n")
	return err
}

// converse makes requests until the connection breaks or there are enough.
func (c *crowd) converse(k kind, conn net.Conn, who string, into *tally, begun time.Time) error {
	answers := bufio.NewReader(conn)
	for {
		_ = conn.SetDeadline(time.Now().Add(patience))
		by, err := exchange(conn, answers, who)
		if err != nil {
			return err
		}
		into.answer(begun, by)
		if k == fresh {
			return nil
		}
		select {
		case <-c.quit.Done():
			return nil
		case <-time.After(pauses[k]):
		}
		if endedInOrder(conn, answers) {
			return nil // as a client with a pool sees before it uses a connection
		}
		begun = time.Now()
	}
}

// endedInOrder says whether the other side has closed the connection between two answers.
func endedInOrder(conn net.Conn, answers *bufio.Reader) bool {
	_ = conn.SetReadDeadline(time.Now().Add(time.Millisecond))
	_, err := answers.Peek(1)
	return err == io.EOF
}

func exchange(conn net.Conn, answers *bufio.Reader, who string) (string, error) {
	if err := request(conn, "/", who); err != nil {
		return "", err
	}
	resp, err := http.ReadResponse(answers, nil)
	if err != nil {
		return "", err
	}
	body, err := io.ReadAll(resp.Body)
	return string(body), err
}

// listen reads an endless answer. Each piece counts as an answer to a request that was made when
// the one before came.
func (c *crowd) listen(conn net.Conn, who string, into *tally) error {
	defer context.AfterFunc(c.quit, func() { _ = conn.SetDeadline(time.Unix(1, 0)) })()
	begun := time.Now()
	err := request(conn, streamPath, who)
	var resp *http.Response
	if err == nil {
		resp, err = http.ReadResponse(bufio.NewReader(conn), nil)
	}
	piece := make([]byte, 64)
	for err == nil {
		var n int
		if n, err = resp.Body.Read(piece); n > 0 {
			by := "app"
			if piece[0] == 'l' {
				by = "laptop"
			}
			into.answer(begun, by)
			begun = time.Now()
		}
	}
	if c.quit.Err() != nil {
		return nil
	}
	return err
}
