// SPDX-License-Identifier: Apache-2.0

// Package api is the root of everything that crosses a wire: the Intercept of the Kubernetes API
// (v1alpha1) and the protocols between the parts (agentpb, clientpb, tunnelpb, daemonpb).
package api

//go:generate go run ./gen
//go:generate go test -run TestWhatWasOnceOnTheWireStays -update .
