// SPDX-License-Identifier: Apache-2.0

// Command sidestep sends one service's requests to a developer's laptop.
package main

import (
	"os"

	"sidestep.dev/sidestep/client/cli"
)

func main() { os.Exit(cli.Main()) }
