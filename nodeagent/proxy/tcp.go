// SPDX-License-Identifier: Apache-2.0

package proxy

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"sidestep.dev/sidestep/internal/tunnel"
	"sidestep.dev/sidestep/nodeagent/proxy/divert"
	"sidestep.dev/sidestep/nodeagent/proxy/stream"
)

// serveWhole gives a connection to the laptop of a tcp rule, or to the app if the laptop cannot
// take it.
func (c *connection) serveWhole(ctx context.Context, rule *activeRule) {
	var in stream.Buffer
	defer in.Free()
	kubelet := &c.target.rules.Load().kubelet
	if kubelet.mayProbe(c.remote.Addr()) && kubelet.probes(c.client, &in) {
		c.joinApp(ctx, &in)
		return
	}
	t, err := c.openWhole(ctx, rule, &in)
	if errors.Is(err, errClientGone) {
		return
	}
	if err != nil {
		rule.fallbacks.Add(1)
		rule.unanswered[divert.ReasonOf(err)].Add(1)
		c.proxy.metrics.wholeFellBack.Inc()
		c.fellBack(rule, err)
		c.joinApp(ctx, &in)
		return
	}
	in.Free()
	rule.matched.Add(1)
	rule.answered.Add(1)
	c.proxy.metrics.wholeConns.Inc()
	c.proxy.metrics.tunnels.Inc()
	defer c.proxy.metrics.tunnels.Dec()
	abort := func() {
		t.Reset("intercept ended")
		c.client.Reset()
	}
	defer rule.track(abort)()
	defer context.AfterFunc(ctx, abort)()
	tunnel.Copy(c.conn, t)
}

var errClientGone = errors.New("client reset the connection")

// openWhole opens the tunnel. Until the laptop has answered, what the client sends is sent on and
// kept in b, which bounds it.
func (c *connection) openWhole(ctx context.Context, rule *activeRule, b *stream.Buffer) (*tunnel.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, c.proxy.cfg.OpenTimeout)
	defer cancel()
	t, err := c.proxy.cfg.Tunnels.Open(ctx, c.openMessage(rule))
	if err != nil {
		return nil, divert.Opening(fmt.Errorf("open tunnel: %w", err))
	}
	// a write may be held back
	stop := context.AfterFunc(ctx, func() { t.Reset("laptop did not answer in time") })
	answer := make(chan error, 1)
	go func() {
		opened, err := t.Opened(ctx)
		if err == nil {
			err = divert.NotOpened(opened)
		}
		c.client.SetReadDeadline(time.Unix(1, 0))
		answer <- err
	}()
	gone := c.speculate(t, b)
	if gone {
		t.Reset("client is gone")
	}
	err = <-answer
	c.client.SetReadDeadline(time.Time{})
	switch {
	case gone:
		return nil, errClientGone
	case !stop() && err == nil:
		err = ctx.Err()
	}
	if err = divert.NoAnswer(ctx, err); err != nil {
		t.Reset("the connection went to the app")
		return nil, err
	}
	return t, nil
}

// speculate sends what the client sends, until it is interrupted, and reports whether the client is
// gone.
func (c *connection) speculate(t *tunnel.Conn, b *stream.Buffer) (gone bool) {
	sent := 0
	for {
		if p := b.Bytes()[sent:]; len(p) > 0 {
			t.Write(p) // an error shows in the answer
			sent += len(p)
		}
		switch err := c.client.Fill(b); {
		case err == nil:
		case stream.Interrupted(err), err == io.EOF, err == stream.ErrFull:
			return false
		default:
			return true
		}
	}
}

// joinApp gives the whole connection to the app, first what was read already.
func (c *connection) joinApp(ctx context.Context, in *stream.Buffer) {
	app, err := c.connect(ctx)
	if err != nil {
		c.proxy.cfg.Log.Debug("app takes no connection", "pod", c.target.pod, "error", err)
		c.client.Reset()
		return
	}
	defer context.AfterFunc(ctx, func() {
		app.Reset()
		c.client.Reset()
	})()
	stream.Join(c.client, app, in)
}
