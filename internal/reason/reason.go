// SPDX-License-Identifier: Apache-2.0

// Package reason defines errors that programs tell apart, with what happened and what to do about it
// as two fields. They cross processes as google.rpc.ErrorInfo details of the gRPC status, whose
// message is for people.
package reason

import (
	"errors"
	"fmt"
	"maps"
	"strings"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// Domain is the domain of every ErrorInfo that daemon and manager send.
const Domain = "sidestep.dev"

// The reasons.
const (
	// ManagerNotInstalled: the cluster has no traffic manager in the namespace; metadata
	// "namespace" names it.
	ManagerNotInstalled = "MANAGER_NOT_INSTALLED"
	// ManagerNotReady: it is installed, and none of its pods is ready.
	ManagerNotReady = "MANAGER_NOT_READY"
	// NoCluster: the API server cannot be reached, or there is no kubeconfig.
	NoCluster = "NO_CLUSTER"
	// Unauthorized: the API server does not accept the credentials.
	Unauthorized = "UNAUTHORIZED"
	// Forbidden: a right is missing; metadata "verb", "resource" and "namespace" say which when it
	// is known.
	Forbidden = "FORBIDDEN"
	// OtherCluster: the daemon has a session with another cluster.
	OtherCluster = "OTHER_CLUSTER"
	// NoSession: the call needs a session and there is none.
	NoSession = "NO_SESSION"
	// VersionSkew: client and manager do not speak the same protocol.
	VersionSkew = "VERSION_SKEW"
	// NotProven: the API server does not vouch to the manager for the user of the session.
	NotProven = "NOT_PROVEN"
	// WorkloadNotFound: no workload has that name; metadata "similar" lists names like it,
	// separated by commas.
	WorkloadNotFound = "WORKLOAD_NOT_FOUND"
	// WorkloadAmbiguous: workloads of several kinds have that name.
	WorkloadAmbiguous = "WORKLOAD_AMBIGUOUS"
	// InterceptNotFound: this client has no intercept of that name.
	InterceptNotFound = "INTERCEPT_NOT_FOUND"
	// InterceptExists: the name is in use by this client.
	InterceptExists = "INTERCEPT_EXISTS"
	// LocalPortTaken: another intercept of this client delivers to that port.
	LocalPortTaken = "LOCAL_PORT_TAKEN"
	// Conflict: somebody else's intercept holds the same requests.
	Conflict = "CONFLICT"
	// Invalid: the intercept cannot be as asked.
	Invalid = "INVALID"
	// NotSteering: pods could not be steered, or not in time.
	NotSteering = "NOT_STEERING"
	// NoEnvironment: the environment of the container was wanted and cannot be had, for another
	// reason than a missing right.
	NoEnvironment = "NO_ENVIRONMENT"
	// InterceptsLeft: disconnected, and some intercepts could not be deleted; the manager deletes
	// them after its grace period.
	InterceptsLeft = "INTERCEPTS_LEFT"
)

// adviceKey is the key of the advice in an ErrorInfo's metadata.
const adviceKey = "advice"

// Dash stands between what happened and what to do in a text for people. Older peers have no other
// field for the advice.
const Dash = " — "

// Error is an error with a reason. Wrapping it keeps the reason.
type Error struct {
	Code     codes.Code
	Reason   string
	Message  string // what happened
	Advice   string // what to do about it; may be empty
	Metadata map[string]string
}

// New returns an error that says what happened, which programs tell apart by its reason.
func New(code codes.Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// Advise returns the error with what to do about it.
func (e *Error) Advise(format string, args ...any) *Error {
	advised := *e
	advised.Advice = fmt.Sprintf(format, args...)
	return &advised
}

// Advised is an error that says what to do about it and that no program tells apart.
type Advised struct {
	Err    error
	Advice string
}

// Advise returns err with what to do about it.
func Advise(err error, format string, args ...any) error {
	return Advised{err, fmt.Sprintf(format, args...)}
}

// Error returns what happened and, after a dash, what to do about it.
func (a Advised) Error() string { return a.Err.Error() + Dash + a.Advice }

// Unwrap returns the error without the advice.
func (a Advised) Unwrap() error { return a.Err }

// With returns the error with one more entry of metadata.
func (e *Error) With(key, value string) *Error {
	more := *e
	more.Metadata = with(e.Metadata, key, value)
	return &more
}

func with(m map[string]string, key, value string) map[string]string {
	m = maps.Clone(m)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return m
}

// Error returns what happened and, after a dash, what to do about it.
func (e *Error) Error() string {
	if e.Advice == "" {
		return e.Message
	}
	return e.Message + Dash + e.Advice
}

// GRPCStatus returns the error as it crosses processes. Its message is the whole text, for peers that
// know no advice.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(e.Code, e.Error())
	metadata := e.Metadata
	if e.Advice != "" {
		metadata = with(metadata, adviceKey, e.Advice)
	}
	detailed, err := s.WithDetails(protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: e.Reason,
		Domain: Domain, Metadata: metadata}))
	if err != nil {
		return s
	}
	return detailed
}

// Of returns the reason of an error, in either process, and "" if it has none.
func Of(err error) string {
	return info(err).GetReason()
}

// Metadata returns what the reason says besides, in either process.
func Metadata(err error) map[string]string {
	m := maps.Clone(info(err).GetMetadata())
	delete(m, adviceKey)
	return m
}

// Advice returns what to do about an error, in either process, and "" if it does not say.
func Advice(err error) string {
	if advised := (Advised{}); errors.As(err, &advised) {
		return advised.Advice
	}
	return info(err).GetMetadata()[adviceKey]
}

// Message returns what happened, without the advice, in either process. For an error without a reason
// it returns the message of its gRPC status, or its text.
func Message(err error) string {
	s, ok := status.FromError(err)
	if !ok {
		return strings.TrimSuffix(err.Error(), Dash+Advice(err))
	}
	if advice := Advice(err); advice != "" {
		return strings.TrimSuffix(s.Message(), Dash+advice)
	}
	return s.Message()
}

func info(err error) *errdetails.ErrorInfo {
	s, ok := status.FromError(err)
	if !ok || s == nil {
		return nil
	}
	for _, detail := range s.Details() {
		if i, ok := detail.(*errdetails.ErrorInfo); ok && i.GetDomain() == Domain {
			return i
		}
	}
	return nil
}
