// SPDX-License-Identifier: Apache-2.0

// Package names holds what an installation calls its objects, labels, keys and ports. The chart
// writes the same names; a test of package deploy compares them. Others rely on each of them, so
// none changes without an alias for one minor version.
package names

// Sidestep is the Helm release, the default namespace of an installation, the field manager of its
// CustomResourceDefinitions and the value of LabelName.
const Sidestep = "sidestep"

// Objects of an installation.
const (
	// Manager is the manager's Deployment, Service and ServiceAccount, the name in its certificate,
	// and the audience of the node agents' tokens.
	Manager = "sidestep-manager"
	// NodeAgent is the node agents' DaemonSet and ServiceAccount.
	NodeAgent = "sidestep-nodeagent"
	// CA is the ConfigMap by which laptops and node agents verify the manager. It also tells laptops
	// what the installation allows, for those of the version before.
	CA = "sidestep-ca"
	// Config is the ConfigMap that tells laptops what the installation allows.
	Config = "sidestep-config"
)

// Keys of ConfigMap CA; of Config, HostNetwork.
const (
	CACert      = "ca.crt"
	HostNetwork = "host-network" // has the value Allowed if such pods can be intercepted
	Allowed     = "allowed"
)

// Labels of objects and pods, and their values.
const (
	LabelName      = "app.kubernetes.io/name"
	LabelComponent = "app.kubernetes.io/component"

	ComponentManager   = "manager"
	ComponentNodeAgent = "nodeagent"

	// LabelSession is on each Intercept: the ID of the laptop's session.
	LabelSession = "sidestep.dev/session"
)

// Roles for developers, and the policies that look for the rights in them.
const (
	// User is the ClusterRole with the rights that a developer needs, and the Role in the manager's
	// namespace with those for connecting.
	User = "sidestep-user"
	// Environment is the ClusterRole with the right to read environments, and the
	// ValidatingAdmissionPolicy that requires it.
	Environment = "sidestep-environment"
	// ToPod, Wiretap and WholePort are ClusterRoles with one right each.
	ToPod     = "sidestep-topod"
	Wiretap   = "sidestep-wiretap"
	WholePort = "sidestep-wholeport"
)

// Ports of pods.
const (
	GRPCPort = 8443 // node agents and laptops, over TLS
	HTTPPort = 8080 // health and metrics, of the manager and of node agents
	// ConnectPort takes requests that the API server upgrades for a laptop. Its container port is
	// called Connect.
	ConnectPort = 8444
	Connect     = "connect"
)

// SessionKeyMetadata is the gRPC metadata under which a laptop shows its session key.
const SessionKeyMetadata = "sidestep-session-key"
