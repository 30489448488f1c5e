// SPDX-License-Identifier: Apache-2.0

// Package features asks the kernel for what the datapath is made of. It has tests only: what a
// kernel must have by its version, and has not, is a failure there.
package features
