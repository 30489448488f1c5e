// SPDX-License-Identifier: Apache-2.0

// Package v1alpha1 holds the Kubernetes API of sidestep: the Intercept, which is the one record of
// who receives which traffic of which workload, and the Login, by which the API server vouches for
// who that is.
//
// +kubebuilder:object:generate=true
// +groupName=sidestep.dev
package v1alpha1

//go:generate go tool controller-gen object paths=.
//go:generate go tool controller-gen crd paths=. output:crd:dir=../../deploy/chart/crds
