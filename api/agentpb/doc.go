// SPDX-License-Identifier: Apache-2.0

// Package agentpb is the protocol between node agents and the manager. All but this file is generated from the .proto file.
package agentpb
