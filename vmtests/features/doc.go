// SPDX-License-Identifier: Apache-2.0

// Package features probes the kernel for the features of the datapath. It has only tests: a feature
// that a kernel of that version must have, and has not, is a failure.
package features
