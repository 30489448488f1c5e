// SPDX-License-Identifier: Apache-2.0

// Package version holds the version that the programs report to people and to each other.
package version

// Version is set at link time: -ldflags "-X sidestep.dev/sidestep/internal/version.Version=v1.2.3".
var Version = "v0.0.0-dev"

// Protocol is the number of the wire protocol between the programs. It grows only when an old and a
// new program could not work together.
const Protocol = 1
