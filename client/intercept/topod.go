// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"net"
	"slices"
	"strconv"

	"google.golang.org/grpc/codes"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/reason"
)

// mostPodPorts is the API's limit.
const mostPodPorts = 16

// checkPodPorts checks spec.toPod on its own.
func (a *Ask) checkPodPorts() error {
	s := &a.Spec
	slices.Sort(s.ToPod)
	s.ToPod = slices.Compact(s.ToPod)
	if s.Wiretap && len(s.ToPod) > 0 {
		return invalid("a wiretap cannot open ports of pods").
			Advise("leave --to-pod out, or use it with an intercept")
	}
	if len(s.ToPod) > mostPodPorts {
		return invalid("--to-pod is given for %d ports, and an intercept has %d at most", len(s.ToPod),
			mostPodPorts)
	}
	for _, port := range s.ToPod {
		switch {
		case port < 1 || port > 65535:
			return invalid("--to-pod %d is not a port", port).
				Advise("use 1 to 65535")
		case port == s.Destination.Port:
			return meetsItself(port)
		}
	}
	return nil
}

func meetsItself(port int32) error {
	return invalid("the intercept's requests go to port %d of this laptop, "+
		"and --to-pod %d would lead from there to the pod",
		port, port).
		Advise("choose another port with --port")
}

// checkToPod checks spec.toPod of an intercept that has been created. raw is the object as the API
// has it.
func (a *Ask) checkToPod(made, raw *v1alpha1.Intercept) error {
	if len(a.Spec.ToPod) == 0 {
		return nil
	}
	if raw != nil && len(raw.Spec.ToPod) == 0 {
		return reason.New(codes.FailedPrecondition, reason.VersionSkew,
			"the cluster's definition of Intercepts is older than this sidestep and does not know --to-pod").
			Advise("run `sidestep helm upgrade`")
	}
	if port := localPort(made); slices.Contains(made.Spec.ToPod, port) {
		return meetsItself(port)
	}
	return nil
}

// leadsToPod reports whether the intercept opens a local address that leads to its pods.
func leadsToPod(i *v1alpha1.Intercept, addr string) bool {
	return slices.ContainsFunc(i.Spec.ToPod, func(port int32) bool {
		return net.JoinHostPort(DefaultAddress, strconv.Itoa(int(port))) == addr
	})
}
