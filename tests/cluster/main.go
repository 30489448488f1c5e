// SPDX-License-Identifier: Apache-2.0

// Command cluster runs a real, strict, two-node Kubernetes on one Linux machine, for sidestep's
// tests and demo.
package main

import (
	"os"

	"sidestep.dev/sidestep/tests/cluster/internal/cli"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
)

func main() {
	machine.Reexec() // does not return in a process that is to become part of a machine
	os.Exit(cli.Main(os.Args[1:], cli.RealEnv()))
}
