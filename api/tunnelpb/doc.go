// SPDX-License-Identifier: Apache-2.0

// Package tunnelpb is the frames of tunnels. All but this file is generated from the .proto file.
package tunnelpb
