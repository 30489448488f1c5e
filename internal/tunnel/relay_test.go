// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"context"
	"io"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// script is a stream that gives frames and then an error, and notes what is sent to it.
type script struct {
	ctx    context.Context
	frames []tunnelpb.Frame_Kind
	end    error // nil: nothing more comes until ctx ends
	sent   chan *tunnelpb.Frame
}

func newScript(ctx context.Context, end error, frames ...tunnelpb.Frame_Kind) *script {
	return &script{ctx: ctx, frames: frames, end: end, sent: make(chan *tunnelpb.Frame, 10)}
}

func (s *script) Context() context.Context { return s.ctx }

func (s *script) RecvMsg(m any) error {
	if len(s.frames) > 0 {
		*m.(*tunnel.Frame) = tunnel.Frame{Kind: s.frames[0]}
		s.frames = s.frames[1:]
		return nil
	}
	if s.end != nil {
		return s.end
	}
	<-s.ctx.Done()
	return s.ctx.Err()
}

func (s *script) SendMsg(m any) error {
	f := m.(*tunnel.Frame)
	s.sent <- &tunnelpb.Frame{Kind: f.Kind, Data: f.Data.Materialize(), Gone: f.Gone}
	return nil
}

func TestARelayTellsOneEndWhyTheOtherIsGone(t *testing.T) {
	for name, c := range map[string]struct {
		frames []tunnelpb.Frame_Kind
		end    error
		data   string
		gone   bool
	}{
		"its network is": {nil, status.Error(codes.Unavailable, "connection lost"), "the other end is gone: connection lost", true},
		"after FIN": {[]tunnelpb.Frame_Kind{tunnelpb.Frame_FIN}, status.Error(codes.Canceled, "canceled"),
			"the other end is gone: canceled", true},
		"it ended its stream": {nil, io.EOF, "the other end ended it early", false},
	} {
		for _, swapped := range []bool{false, true} {
			t.Run(name, func(t *testing.T) {
				ends, there := newScript(t.Context(), c.end, c.frames...), newScript(t.Context(), nil)
				a, b := ends, there
				if swapped {
					a, b = there, ends
				}
				require.Error(t, tunnel.Relay(a, b))
				require.Len(t, there.sent, len(c.frames)+1)
				for range c.frames {
					<-there.sent
				}
				got := <-there.sent
				assert.Equal(t, tunnelpb.Frame_RESET, got.Kind)
				assert.Equal(t, c.data, string(got.Data))
				assert.Equal(t, c.gone, got.Gone)
			})
		}
	}
}
