// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// bulk is a load of endless transfers. It counts what arrives between two times, at the receiving
// end.
type bulk struct {
	connections int
	upload      bool
	// since the start, and not counted: connections are opened in it, and TCP finds out what the
	// way has
	settle   time.Duration
	duration time.Duration // that is counted
}

// arrived is what one end of some transfers reports.
type arrived struct {
	Seconds float64 `json:"seconds"`
	Counted float64 `json:"counted"` // bytes in this time
	All     float64 `json:"all"`     // with those before
}

func (a arrived) sample() sample { return sample{rate: a.Counted / 1e6 / a.Seconds, done: a.All / 1e6} }

// transfer makes a process on the load's machine run the transfers with the server of runBulkServer
// at the other end.
func (b *bench) transfer(ctx context.Context, w way, l bulk) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	kind := "download"
	if l.upload {
		kind = "upload"
	}
	what := fmt.Sprintf("%s=%d,%s,%s,%s", kind, l.connections, w.address, l.settle, l.duration)
	out, err := lab.Output(b.OnNode(ctx, w.machine(), self, "-bulk-load", what))
	if err != nil {
		return sample{}, err
	}
	var a arrived
	if err := json.Unmarshal([]byte(out), &a); err != nil || a.Counted == 0 {
		return sample{}, errors.Join(fmt.Errorf("nothing has arrived: %q", out), err)
	}
	return a.sample(), nil
}

// runBulkLoad is the process that makes the load.
func runBulkLoad(ctx context.Context, what string, out io.Writer) error {
	fields := strings.Split(what, ",")
	if len(fields) != 4 {
		return fmt.Errorf("-bulk-load %q: not KIND=N,ADDRESS,SETTLE,DURATION", what)
	}
	kind, count, _ := strings.Cut(fields[0], "=")
	l := bulk{upload: kind == "upload"}
	var err error
	if l.connections, err = strconv.Atoi(count); err != nil {
		return err
	}
	if l.settle, err = time.ParseDuration(fields[2]); err != nil {
		return err
	}
	if l.duration, err = time.ParseDuration(fields[3]); err != nil {
		return err
	}
	a, err := l.run(ctx, new(net.Dialer).DialContext, fields[1])
	if err != nil {
		return err
	}
	return json.NewEncoder(out).Encode(a)
}

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// order is the first message on a connection.
type order struct {
	Upload           bool
	Settle, Duration time.Duration
}

// run makes the transfers, each on a connection of its own, and tells what has arrived, at
// whichever end that is.
func (l bulk) run(ctx context.Context, dial dialer, address string) (a arrived, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var mu sync.Mutex
	var work sync.WaitGroup
	var received meter
	for range l.connections {
		work.Go(func() {
			one, failed := l.transfer(ctx, dial, address, &received)
			mu.Lock()
			defer mu.Unlock()
			if failed != nil && ctx.Err() == nil {
				err = failed
				cancel()
			}
			a.Counted, a.All, a.Seconds = a.Counted+one.Counted, a.All+one.All, max(a.Seconds, one.Seconds)
		})
	}
	if l.upload {
		work.Wait()
		return a, err
	}
	seen := received.watch(ctx, l.settle, l.duration)
	cancel()
	work.Wait()
	return seen, err
}

// transfer is one. An upload returns what the other end says of it, a download nothing.
func (l bulk) transfer(ctx context.Context, dial dialer, address string, received *meter) (a arrived,
	err error) {
	c, err := dial(ctx, "tcp", address)
	if err != nil {
		return a, err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Now()) })()
	if err := binary.Write(c, binary.BigEndian, order{l.upload, l.settle, l.duration}); err != nil {
		return a, err
	}
	if !l.upload {
		_, err = io.CopyBuffer(received, struct{ io.Reader }{c}, make([]byte, piece))
		return a, errors.Join(err, io.ErrUnexpectedEOF) // it matters only if the time is not over
	}
	var sending sync.WaitGroup
	sending.Go(func() { send(c) })
	err = json.NewDecoder(c).Decode(&a)
	_ = c.SetWriteDeadline(time.Now())
	sending.Wait()
	return a, err
}

const piece = 256 << 10

// send writes zeros until that fails.
func send(c net.Conn) {
	for zeros := make([]byte, piece); ; {
		if _, err := c.Write(zeros); err != nil {
			return
		}
	}
}

// meter counts the bytes that are written to it.
type meter struct{ bytes atomic.Int64 }

func (m *meter) Write(p []byte) (int, error) {
	m.bytes.Add(int64(len(p)))
	return len(p), nil
}

// watch waits for both times, and tells what has come in the second.
func (m *meter) watch(ctx context.Context, settle, duration time.Duration) (a arrived) {
	wait(ctx, settle)
	before, began := m.bytes.Load(), time.Now()
	wait(ctx, duration)
	all := m.bytes.Load()
	return arrived{Seconds: time.Since(began).Seconds(), Counted: float64(all - before), All: float64(all)}
}

func wait(ctx context.Context, d time.Duration) {
	select {
	case <-ctx.Done():
	case <-time.After(d):
	}
}

// serveBulk is the other end of one transfer.
func serveBulk(ctx context.Context, c net.Conn) {
	defer c.Close()
	defer context.AfterFunc(ctx, func() { _ = c.Close() })()
	var o order
	if binary.Read(c, binary.BigEndian, &o) != nil {
		return
	}
	if !o.Upload {
		send(c)
		return
	}
	var m meter
	var receiving sync.WaitGroup
	receiving.Go(func() { _, _ = io.CopyBuffer(&m, struct{ io.Reader }{c}, make([]byte, piece)) })
	_ = json.NewEncoder(c).Encode(m.watch(ctx, o.Settle, o.Duration))
	// until the sender closes: kubectl ends all of a port-forward when one connection is reset
	receiving.Wait()
}

// serveBulks is the other end of all.
func serveBulks(ctx context.Context, listener net.Listener) error {
	defer context.AfterFunc(ctx, func() { _ = listener.Close() })()
	for {
		c, err := listener.Accept()
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		go serveBulk(ctx, c)
	}
}

// runBulkServer is the process at the other end.
func runBulkServer(ctx context.Context, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	return serveBulks(ctx, listener)
}
