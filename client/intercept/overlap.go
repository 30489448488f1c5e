// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"errors"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sidestep.dev/sidestep/internal/reason"
)

// overlapPolicy is the ValidatingAdmissionPolicy with which the API server refuses an intercept
// that overlaps with an accepted one.
const overlapPolicy = "'sidestep-overlap'"

// overlapPauses are the pauses before a refusal is believed. An API server learns with a delay that
// the holder has just left.
var overlapPauses = []time.Duration{100 * time.Millisecond, 300 * time.Millisecond}

// unlessOverlap makes a call that creates or moves an intercept, and retries it after
// overlapPauses.
func unlessOverlap(call func() error) error {
	err := call()
	for _, pause := range overlapPauses {
		if _, overlaps := overlap(err); !overlaps {
			return err
		}
		time.Sleep(pause)
		err = call()
	}
	return err
}

// overlap returns the policy's message if the error comes from the policy.
func overlap(err error) (message string, overlaps bool) {
	var answer apierrors.APIStatus
	if !apierrors.IsInvalid(err) && !apierrors.IsForbidden(err) || !errors.As(err, &answer) {
		return "", false
	}
	before, message, found := strings.Cut(answer.Status().Message, "denied request: ")
	return message, found && strings.Contains(before, overlapPolicy)
}

// explainOverlap returns the conflict that the policy reports, nil for other errors.
func explainOverlap(err error) error {
	if message, overlaps := overlap(err); overlaps {
		return reason.New(codes.AlreadyExists, reason.Conflict, "%s", message)
	}
	return nil
}
