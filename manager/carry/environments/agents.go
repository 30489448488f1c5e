// SPDX-License-Identifier: Apache-2.0

// Package environments asks node agents for the environments of containers, over streams that the
// node agents keep open. manager/access decides who may have an answer.
package environments

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/api/agentpb"
)

// concurrent bounds the open questions at all node agents together, and so the memory that answers
// can take.
const concurrent = 16

// perNode bounds the streams of one node. During an upgrade there are two, and a broken one may
// still be there.
const perNode = 4

// arrival is how long a question waits for a node agent. One that has just attached opens its
// stream a moment later.
const arrival = 2 * time.Second

var errGone = errors.New("the node agent has gone")

// Stream is the stream on which a node agent answers questions.
type Stream = grpc.BidiStreamingServer[agentpb.EnvironmentAnswer, agentpb.EnvironmentQuestion]

// Agents has the streams of the node agents. It is safe for concurrent use.
type Agents struct {
	closing <-chan struct{}
	slots   chan struct{}

	mu    sync.Mutex
	last  uint64
	lines map[string][]*line // by node, the newest last: during an upgrade there are two
	came  chan struct{}      // closed and replaced when a stream is opened
}

// line is one node agent's stream.
type line struct {
	questions chan *agentpb.EnvironmentQuestion
	gone      chan struct{}

	mu      sync.Mutex
	waiting map[uint64]chan *agentpb.EnvironmentAnswer
}

// NewAgents returns Agents that end their streams when closing is closed.
func NewAgents(closing <-chan struct{}) *Agents {
	return &Agents{closing: closing, slots: make(chan struct{}, concurrent),
		lines: map[string][]*line{}, came: make(chan struct{})}
}

// Serve sends questions to the agent on a node as long as it is connected.
func (a *Agents) Serve(node string, stream Stream) error {
	l := &line{
		questions: make(chan *agentpb.EnvironmentQuestion), gone: make(chan struct{}),
		waiting: map[uint64]chan *agentpb.EnvironmentAnswer{},
	}
	a.mu.Lock()
	if len(a.lines[node]) >= perNode {
		a.mu.Unlock()
		return status.Errorf(codes.ResourceExhausted, "node %s has %d streams for environments", node, perNode)
	}
	a.lines[node] = append(a.lines[node], l)
	close(a.came)
	a.came = make(chan struct{})
	a.mu.Unlock()
	defer a.remove(node, l)
	received := make(chan error, 1)
	go func() { received <- l.receive(stream) }()
	for {
		select {
		case q := <-l.questions:
			if err := stream.Send(q); err != nil {
				return err
			}
		case err := <-received:
			return err
		case <-a.closing:
			return status.Error(codes.Unavailable, "the manager is shutting down")
		}
	}
}

func (a *Agents) remove(node string, l *line) {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(l.gone)
	var left []*line
	for _, other := range a.lines[node] {
		if other != l {
			left = append(left, other)
		}
	}
	if a.lines[node] = left; len(left) == 0 {
		delete(a.lines, node)
	}
}

func (l *line) receive(stream Stream) error {
	for {
		answer, err := stream.Recv()
		if err != nil {
			return err
		}
		l.mu.Lock()
		waiting := l.waiting[answer.GetId()]
		delete(l.waiting, answer.GetId())
		l.mu.Unlock()
		if waiting != nil {
			waiting <- answer // has room for one
		}
	}
}

// Ask returns the variables of a container's first process, as NAME=VALUE.
func (a *Agents) Ask(ctx context.Context, node, podUID, containerID string) ([][]byte, error) {
	select {
	case a.slots <- struct{}{}:
		defer func() { <-a.slots }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	for {
		l, id, err := a.newest(ctx, node)
		if err != nil {
			return nil, err
		}
		answer, err := l.ask(ctx,
			&agentpb.EnvironmentQuestion{Id: id, PodUid: podUID, ContainerId: containerID})
		switch {
		case errors.Is(err, errGone):
			continue // there may be another one
		case err != nil:
			return nil, fmt.Errorf("ask the node agent on node %s: %w", node, err)
		case answer.GetProblem() != "":
			return nil, errors.New(answer.GetProblem())
		}
		return answer.GetVariables(), nil
	}
}

// newest returns a node's newest line, and an ID for a question.
func (a *Agents) newest(ctx context.Context, node string) (*line, uint64, error) {
	timer := time.NewTimer(arrival)
	defer timer.Stop()
	for {
		a.mu.Lock()
		a.last++
		id, all, came := a.last, a.lines[node], a.came
		a.mu.Unlock()
		if len(all) > 0 {
			return all[len(all)-1], id, nil
		}
		select {
		case <-came:
		case <-timer.C:
			return nil, 0, fmt.Errorf(
				"no node agent on node %s answers: it is not connected, or older than the traffic manager", node)
		case <-ctx.Done():
			return nil, 0, context.Cause(ctx)
		}
	}
}

func (l *line) ask(ctx context.Context, q *agentpb.EnvironmentQuestion) (*agentpb.EnvironmentAnswer, error) {
	answered := make(chan *agentpb.EnvironmentAnswer, 1)
	l.mu.Lock()
	l.waiting[q.GetId()] = answered
	l.mu.Unlock()
	defer func() {
		l.mu.Lock()
		defer l.mu.Unlock()
		delete(l.waiting, q.GetId())
	}()
	select {
	case l.questions <- q:
	case <-l.gone:
		return nil, errGone
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	select {
	case answer := <-answered:
		return answer, nil
	case <-l.gone:
		return nil, errGone
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}
