// SPDX-License-Identifier: Apache-2.0

// Command sidestep-nodeagent steers the connections of intercepted pods on one Kubernetes node.
package main

import (
	"os"

	"sidestep.dev/sidestep/nodeagent"
)

func main() { os.Exit(nodeagent.Main(nodeagent.OSEnv())) }
