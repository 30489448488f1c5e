// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"
	"slices"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/backoff"
	"sidestep.dev/sidestep/internal/tunnel"
)

// parkedToPod is how many streams are parked for laptops' connections to pods. A stream that is
// taken is replaced within a round trip between node and manager.
const parkedToPod = 4

// ToPod serves one connection of a laptop to a port of a pod.
type ToPod func(open *tunnelpb.Open, conn *tunnel.Conn)

// leadsToPods reports whether laptops may connect to ports of any pod.
func leadsToPods(a *agentpb.Assignment) bool {
	return slices.ContainsFunc(a.GetPods(), func(p *agentpb.Pod) bool {
		return slices.ContainsFunc(p.GetTargets(), func(t *agentpb.Target) bool {
			return slices.ContainsFunc(t.GetRules(),
				func(r *agentpb.Rule) bool { return len(r.GetToPod()) > 0 })
		})
	})
}

// waitForLaptops keeps one stream parked until ctx ends. A manager that does not implement the call
// gets none.
func (u *Uplink) waitForLaptops(ctx context.Context) {
	for retry := newRetry(); ctx.Err() == nil; {
		open, conn, err := u.acceptLaptop(ctx)
		switch {
		case err == nil:
			retry.Reset()
			u.cfg.ToPod(open, conn)
			continue
		case status.Code(err) == codes.Unimplemented:
			return
		case ctx.Err() == nil:
			u.cfg.Log.Debug("cannot wait for laptops' connections to pods", "error", err)
		}
		backoff.Sleep(ctx, retry.Next(), nil)
	}
}

// acceptLaptop waits for one connection, which outlives ctx.
func (u *Uplink) acceptLaptop(ctx context.Context) (*tunnelpb.Open, *tunnel.Conn, error) {
	streamCtx, cancel := context.WithCancel(context.WithoutCancel(ctx))
	abandon := context.AfterFunc(ctx, cancel)
	stream, err := u.client.AcceptToPod(streamCtx)
	if err != nil {
		abandon()
		cancel()
		return nil, nil, err
	}
	open, conn, err := tunnel.Accept(stream, tunnel.OnClose(cancel))
	if !abandon() && err == nil {
		conn.Reset("the node agent has left the manager")
		err = context.Cause(ctx)
	}
	if err != nil {
		cancel()
		return nil, nil, err
	}
	return open, conn, nil
}
