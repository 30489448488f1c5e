// SPDX-License-Identifier: Apache-2.0

package tap

import (
	"sync"

	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// requests is HTTP/1: one request after the other, each when the one before was answered.
type requests struct {
	*line
	answers chan bool // whether the connection persists

	mu       sync.Mutex
	kind     http1.RequestKind
	expected bool
}

func newRequests(l *line) *requests { return &requests{line: l, answers: make(chan bool, 1)} }

func (r *requests) send(c *Copy) (again bool) {
	r.mu.Lock()
	r.kind, r.expected = c.Kind, true
	r.mu.Unlock()
	if !r.pass(c) {
		return false
	}
	again = r.answered(r.answers)
	c.complete()
	return again && !c.Last
}

// read finds the ends of answers. It ends where that cannot be found, or the laptop closes.
func (r *requests) read() {
	d := stream.Of(r.tunnel, func() {})
	var b stream.Buffer
	defer b.Free()
	for {
		kind, ok := r.awaited(d, &b)
		if !ok {
			return
		}
		persists, ok := finalAnswer(d, &b, kind)
		if !ok {
			discard(r.tunnel)
			return
		}
		r.mu.Lock()
		r.expected = false
		r.mu.Unlock()
		r.answers <- persists
		if !persists {
			discard(r.tunnel)
			return
		}
	}
}

// awaited waits for the first bytes of an answer, and tells to what kind of request it is.
func (r *requests) awaited(d stream.Duplex, b *stream.Buffer) (http1.RequestKind, bool) {
	if b.Len() == 0 && d.Fill(b) != nil {
		return 0, false
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.kind, r.expected
}

// finalAnswer reads an answer to its end. ok is false if that is the connection's.
func finalAnswer(d stream.Duplex, b *stream.Buffer, kind http1.RequestKind) (persists, ok bool) {
	var resp http1.Response
	for {
		resp.Reset()
		n := 0
		for {
			var err error
			if n, err = resp.Parse(b.Bytes()); err != nil {
				return false, false
			}
			if n > 0 {
				break
			}
			if d.Fill(b) != nil {
				return false, false
			}
		}
		body, err := resp.Body(kind)
		interim := resp.Interim()
		persists = resp.Persists()
		b.Drop(n)
		switch {
		case err != nil, body.Kind == http1.UntilClose:
			return false, false
		case body.Kind == http1.Tunnelled:
			return false, true
		case interim:
			if b.Len() == 0 && d.Fill(b) != nil {
				return false, false
			}
			continue
		}
		rest := body.Start()
		for !rest.Done() {
			if b.Len() == 0 && d.Fill(b) != nil {
				return false, false
			}
			k, _, err := rest.Scan(b.Bytes())
			if err != nil {
				return false, false
			}
			b.Drop(k)
		}
		return persists, true
	}
}
