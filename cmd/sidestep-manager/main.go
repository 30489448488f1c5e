// SPDX-License-Identifier: Apache-2.0

// Command sidestep-manager is the manager.
package main

import (
	"os"

	"sidestep.dev/sidestep/manager"
)

func main() { os.Exit(manager.Main(manager.OSEnv())) }
