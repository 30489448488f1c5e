// SPDX-License-Identifier: Apache-2.0

// Package daemonpb is the protocol between the command line and the user daemon. All but this file is generated from the .proto file.
package daemonpb
