// SPDX-License-Identifier: Apache-2.0

package tunnel

// How a laptop asks the manager's HTTP port, as a rule through the API server's proxy to pods, for
// a connection on which to speak TLS and gRPC: by a GET of UpgradePath that upgrades to
// UpgradeProtocol.
const (
	UpgradePath     = "/connect"
	UpgradeProtocol = "sidestep"
)
