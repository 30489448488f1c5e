// SPDX-License-Identifier: Apache-2.0

package uplink

import (
	"context"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/internal/backoff"
)

// Environment returns the environment of a container's first process, as NAME=VALUE.
type Environment func(ctx context.Context, podUID, containerID string) ([][]byte, error)

// answerEnvironments answers the manager's requests for environments until ctx ends. It returns at
// once if the manager does not implement the call.
func (u *Uplink) answerEnvironments(ctx context.Context) {
	for retry := newRetry(); ctx.Err() == nil; {
		err := u.answerStream(ctx)
		if status.Code(err) == codes.Unimplemented {
			return
		}
		if ctx.Err() == nil {
			u.cfg.Log.Debug("stream for environments ended", "error", err)
		}
		backoff.Sleep(ctx, retry.Next(), nil)
	}
}

func (u *Uplink) answerStream(ctx context.Context) error {
	stream, err := u.client.Environments(ctx, grpc.MaxCallRecvMsgSize(64<<10))
	if err != nil {
		return err
	}
	for {
		question, err := stream.Recv()
		if err != nil {
			return err
		}
		answer := &agentpb.EnvironmentAnswer{Id: question.GetId()}
		answer.Variables, err = u.cfg.Environment(stream.Context(), question.GetPodUid(), question.GetContainerId())
		if err != nil {
			answer.Problem = err.Error()
		}
		u.cfg.Log.Info("answered a request for an environment", "pod", question.GetPodUid(), "container",
			question.GetContainerId(), "error", err)
		if err := stream.Send(answer); err != nil {
			return err
		}
	}
}
