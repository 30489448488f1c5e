// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"bytes"
	"context"

	"golang.org/x/net/http2/hpack"

	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/nodeagent/http1"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
	"sidestep.dev/sidestep/nodeagent/proxy/tap"
)

// tapFor gives the wiretap's tap; nil once it has ended.
func (in *intercept) tapFor(p *Proxy, name string) *tap.Tap {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.tap == nil && !in.ended {
		in.tap = tap.New(tap.Config{Name: name, Budget: &p.copies, OpenTimeout: p.cfg.OpenTimeout,
			Log: p.cfg.Log})
	}
	return in.tap
}

func (in *intercept) copies() tap.Counts {
	in.mu.Lock()
	defer in.mu.Unlock()
	if in.tap == nil {
		return tap.Counts{}
	}
	return in.tap.Counts()
}

// begin begins a copy for a wiretap; nil if there is no room for one.
func (c *connection) begin(rule *activeRule, r tap.Request) *tap.Copy {
	t := rule.tapFor(c.proxy, rule.Namespace+"/"+rule.Name)
	if t == nil {
		return nil
	}
	r.Open = func(ctx context.Context) (tap.Tunnel, error) {
		tunnel, err := c.proxy.cfg.Tunnels.Open(ctx, c.openMessage(rule))
		if err != nil {
			return nil, err
		}
		return tunnel, nil
	}
	return t.Begin(r)
}

// Copy implements http1.Target.
func (c *connection) Copy(head *http1.Request) (copies tap.Copies) {
	for _, rule := range c.tapping(head) {
		if one := c.begin(rule, tap.Request{Protocol: tap.HTTP1, Kind: head.Kind(),
			Last: !head.Persists()}); one != nil {
			copies = append(copies, one)
		}
	}
	return copies
}

// Copy implements http2.Target.
func (c streams) Copy(head match.Head, fields func() []hpack.HeaderField) (copies tap.Copies) {
	rules := c.tapping(head)
	if len(rules) == 0 || c.target.rules.Load().kubelet.probesHealth(head, c.remote.Addr()) {
		return nil
	}
	request := tap.Request{Protocol: tap.HTTP2, Fields: fields()}
	for _, rule := range rules {
		if one := c.begin(rule, request); one != nil {
			copies = append(copies, one)
		}
	}
	return copies
}

// tapping gives the wiretaps that are to get a copy of a request.
func (c *connection) tapping(head match.Head) (wanted []*activeRule) {
	now := c.target.rules.Load()
	for i := range now.taps {
		if rule := &now.taps[i]; !rule.TCP && rule.Connected && rule.HTTP.Match(head) {
			wanted = append(wanted, rule)
		}
	}
	if len(wanted) > 0 && isKubelet(head) {
		return nil
	}
	return wanted
}

// Dial implements http1.Target. It begins to connect to the app, with a copy of what the app is sent for each wiretap of whole
// connections.
func (c *connection) Dial(soon bool) (stream.Duplex, func(context.Context) error, error) {
	app, wait, err := c.dial(soon)
	if err != nil {
		return nil, nil, err
	}
	for _, rule := range c.target.rules.Load().taps {
		if rule.TCP && rule.Connected {
			return &stream.Tee{TCP: app, Copy: &wholeCopy{connection: c}}, wait, nil
		}
	}
	return app, wait, nil
}

// connect is Dial, with the waiting.
func (c *connection) connect(ctx context.Context) (stream.Duplex, error) {
	app, wait, err := c.Dial(false)
	if err != nil {
		return nil, err
	}
	if wait != nil {
		if err := wait(ctx); err != nil {
			app.Reset()
			return nil, err
		}
	}
	return app, nil
}

// wholeCopy is the copy of a connection. It begins with the first bytes, so that connections on
// which nothing is said, as the kubelet makes them, are not copied.
type wholeCopy struct {
	*connection
	begun  bool
	copies tap.Copies
}

// Write implements stream.Copier. One goroutine calls it at a time.
func (w *wholeCopy) Write(p []byte) {
	if !w.begun && len(p) > 0 {
		w.start(p)
	}
	w.copies.Write(p)
}

func (w *wholeCopy) start(p []byte) {
	w.begun = true
	now := w.target.rules.Load()
	if k := &now.kubelet; k.mayProbe(w.remote.Addr()) &&
		(namesKubelet(p) || k.GRPC && bytes.HasPrefix(p, http2Preface)) {
		return
	}
	for i := range now.taps {
		if rule := &now.taps[i]; rule.TCP && rule.Connected {
			if one := w.begin(rule, tap.Request{Protocol: tap.Raw}); one != nil {
				w.copies = append(w.copies, one)
			}
		}
	}
}

// namesKubelet reports whether p begins with a request of the kubelet's.
func namesKubelet(p []byte) bool {
	if !http1.MayBeRequest(p) {
		return false
	}
	var head http1.Request
	head.Reset()
	n, err := head.Parse(p)
	return err == nil && n > 0 && isKubelet(&head)
}

func (w *wholeCopy) End()       { w.copies.End() }
func (w *wholeCopy) Cut()       { w.copies.Cut() }
func (w *wholeCopy) Over() bool { return w.begun && w.copies.Over() }
