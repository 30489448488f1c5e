// SPDX-License-Identifier: Apache-2.0

// Package clientpb is the protocol between laptops and the manager. All but this file is generated from the .proto file.
package clientpb
