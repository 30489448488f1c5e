// SPDX-License-Identifier: Apache-2.0

package reason_test

import (
	"errors"
	"fmt"
	"testing"

	"github.com/stretchr/testify/assert"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"

	"sidestep.dev/sidestep/internal/reason"
)

func TestReasonMessageAndAdviceCrossProcesses(t *testing.T) {
	here := reason.New(codes.NotFound, reason.WorkloadNotFound, "no workload %q", "x").
		Advise("run `%s`", "list").With("similar", "y")
	assert.EqualError(t, here, "no workload \"x\" — run `list`")
	there := status.FromProto(here.GRPCStatus().Proto()).Err()
	for name, err := range map[string]error{"here": here, "there": there} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, reason.WorkloadNotFound, reason.Of(err))
			assert.Equal(t, "no workload \"x\"", reason.Message(err))
			assert.Equal(t, "run `list`", reason.Advice(err))
			assert.Equal(t, map[string]string{"similar": "y"}, reason.Metadata(err))
			assert.Equal(t, codes.NotFound, status.Code(err))
		})
	}
	assert.Equal(t, "no workload \"x\" — run `list`", status.Convert(there).Message(),
		"for peers that know no advice")
	assert.Equal(t, reason.WorkloadNotFound, reason.Of(fmt.Errorf("wrapped: %w", here)))
}

func TestErrorsWithoutAReason(t *testing.T) {
	plain := errors.New("plain")
	assert.Empty(t, reason.Of(plain))
	assert.Empty(t, reason.Advice(plain))
	assert.Empty(t, reason.Metadata(plain))
	assert.Equal(t, "plain", reason.Message(plain))
	old := reason.New(codes.Internal, reason.Invalid, "what — what to do")
	assert.Empty(t, reason.Advice(old), "a peer that knows no advice has it in its message")
	assert.Equal(t, "what — what to do", reason.Message(old))
}

func TestAdviceOfAnErrorThatNoProgramTellsApart(t *testing.T) {
	advised := reason.Advise(errors.New("the disk is full"), "free %s of it", "some")
	for name, err := range map[string]error{"itself": advised, "wrapped": fmt.Errorf("write: %w", advised)} {
		t.Run(name, func(t *testing.T) {
			assert.Equal(t, "free some of it", reason.Advice(err))
			assert.NotContains(t, reason.Message(err), "free some")
			assert.Contains(t, err.Error(), "the disk is full — free some of it")
			assert.Empty(t, reason.Of(err))
		})
	}
}
