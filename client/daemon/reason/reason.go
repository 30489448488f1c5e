// SPDX-License-Identifier: Apache-2.0

// Package reason holds the errors of the daemon that programs tell apart. They cross the socket as
// google.rpc.ErrorInfo details of the gRPC status, whose message is for people.
package reason

import (
	"fmt"
	"maps"

	"google.golang.org/genproto/googleapis/rpc/errdetails"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/protoadapt"
)

// Domain is the domain of every ErrorInfo that the daemon sends.
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

// Error is an error with a reason. Wrapping it keeps the reason.
type Error struct {
	Code     codes.Code
	Reason   string
	Message  string
	Metadata map[string]string
}

// New makes an error for people that programs can tell by its reason.
func New(code codes.Code, reason, format string, args ...any) *Error {
	return &Error{Code: code, Reason: reason, Message: fmt.Sprintf(format, args...)}
}

// With adds one entry of metadata.
func (e *Error) With(key, value string) *Error {
	m := maps.Clone(e.Metadata)
	if m == nil {
		m = map[string]string{}
	}
	m[key] = value
	return &Error{Code: e.Code, Reason: e.Reason, Message: e.Message, Metadata: m}
}

func (e *Error) Error() string { return e.Message }

// GRPCStatus is how the error crosses the socket.
func (e *Error) GRPCStatus() *status.Status {
	s := status.New(e.Code, e.Message)
	detailed, err := s.WithDetails(protoadapt.MessageV1Of(&errdetails.ErrorInfo{Reason: e.Reason,
		Domain: Domain, Metadata: e.Metadata}))
	if err != nil {
		return s
	}
	return detailed
}

// Of is the reason of an error, on either side of the socket, and "" if it has none.
func Of(err error) string {
	return info(err).GetReason()
}

// Metadata is what the reason says besides, on either side of the socket.
func Metadata(err error) map[string]string {
	return info(err).GetMetadata()
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
