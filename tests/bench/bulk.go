package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

// bulk is a load of endless transfers. What counts is what has arrived between two times, at the end at which it arrives.
type bulk struct {
	connections int
	upload      bool
	settle      time.Duration // since the start, and not counted: connections are opened in it, and TCP finds out what the way has
	duration    time.Duration // that is counted
}

// arrived is what one end of some transfers says about them.
type arrived struct {
	Seconds float64 `json:"seconds"`
	Counted float64 `json:"counted"` // bytes in this time
	All     float64 `json:"all"`     // with those before
}

func (a arrived) sample() sample { return sample{rate: a.Counted / 1e6 / a.Seconds, done: a.All / 1e6} }

// transfer has a process on the machine from which the load comes make the transfers with the server of serveBulk at the other end.
func (b *bench) transfer(ctx context.Context, w way, l bulk) (sample, error) {
	self, err := os.Executable()
	if err != nil {
		return sample{}, err
	}
	kind := "download"
	if l.upload {
		kind = "upload"
	}
	what := fmt.Sprintf("%s=%d,%s,%s,%s", kind, l.connections, w.url("/"), l.settle, l.duration)
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

// runBulkLoad is the process from which the load comes.
func runBulkLoad(ctx context.Context, what string, out io.Writer) error {
	fields := strings.Split(what, ",")
	if len(fields) != 4 {
		return fmt.Errorf("-bulk-load %q: not KIND=N,URL,SETTLE,DURATION", what)
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

// run makes the transfers, each on a connection of its own, and tells what has arrived, at whichever end that is.
func (l bulk) run(ctx context.Context, dial dialer, url string) (a arrived, err error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	// Not one that closes its connections: a server resets those, and the answer with them.
	client := &http.Client{Transport: &http.Transport{DialContext: dial, DisableCompression: true}}
	defer client.CloseIdleConnections()
	var mu sync.Mutex
	var work sync.WaitGroup
	var received meter
	for range l.connections {
		work.Go(func() {
			one, failed := l.transfer(ctx, client, url, &received)
			mu.Lock()
			defer mu.Unlock()
			if failed != nil && ctx.Err() == nil {
				err = failed
				cancel()
			}
			a.Counted, a.All, a.Seconds = a.Counted+one.Counted, a.All+one.All, max(a.Seconds, one.Seconds)
		})
	}
	if !l.upload {
		a = received.watch(ctx, l.settle, l.duration)
		cancel()
	}
	work.Wait()
	return a, err
}

type dialer = func(ctx context.Context, network, address string) (net.Conn, error)

// transfer is one. An upload returns what the other end says of it, a download nothing.
func (l bulk) transfer(ctx context.Context, client *http.Client, url string, received *meter) (a arrived, err error) {
	method, body := http.MethodGet, io.Reader(nil)
	if l.upload {
		method, body = http.MethodPut, zeros{}
	}
	request, err := http.NewRequestWithContext(ctx, method, fmt.Sprintf("%s?settle=%s&duration=%s", url, l.settle, l.duration), body)
	if err != nil {
		return a, err
	}
	if l.upload {
		request.ContentLength = endless
	}
	response, err := client.Do(request)
	if err != nil {
		return a, err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		return a, errors.New(response.Status)
	}
	if l.upload {
		return a, json.NewDecoder(response.Body).Decode(&a)
	}
	_, err = io.CopyBuffer(received, response.Body, make([]byte, piece))
	return a, err
}

const (
	endless = 1 << 50 // bytes
	piece   = 256 << 10
)

// zeros is a body without an end.
type zeros struct{}

func (zeros) Read(into []byte) (int, error) {
	clear(into)
	return len(into), nil
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

// serveBulk answers a GET with a body without an end, and a PUT when its time is over, with what has arrived of its body.
func serveBulk(w http.ResponseWriter, r *http.Request) {
	if r.Method != http.MethodPut {
		w.Header().Set("Content-Length", fmt.Sprint(endless))
		buffer := make([]byte, piece)
		for {
			if _, err := w.Write(buffer); err != nil {
				return
			}
		}
	}
	settle, err := time.ParseDuration(r.URL.Query().Get("settle"))
	duration, err2 := time.ParseDuration(r.URL.Query().Get("duration"))
	if err := errors.Join(err, err2); err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	var m meter
	var copying sync.WaitGroup
	copying.Go(func() { _, _ = io.CopyBuffer(&m, r.Body, make([]byte, piece)) })
	a := m.watch(r.Context(), settle, duration)
	_ = http.NewResponseController(w).SetReadDeadline(time.Now()) // ends the copying
	copying.Wait()
	_ = json.NewEncoder(w).Encode(a)
}

// runBulkServer is the process at the other end.
func runBulkServer(ctx context.Context, address string) error {
	listener, err := net.Listen("tcp", address)
	if err != nil {
		return err
	}
	server := &http.Server{Handler: http.HandlerFunc(serveBulk)}
	defer context.AfterFunc(ctx, func() { _ = server.Close() })()
	if err := server.Serve(listener); !errors.Is(err, http.ErrServerClosed) {
		return err
	}
	return nil
}
