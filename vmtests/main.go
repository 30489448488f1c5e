// SPDX-License-Identifier: Apache-2.0

// Command vmtests runs the datapath's tests on other kernels: Debian's, in virtual machines, and on
// the one of this computer. The test binaries are the same everywhere.
package main

import (
	"context"
	"errors"
	"flag"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGINT, syscall.SIGTERM)
	defer stop()
	err := run(ctx, os.Args[1:], os.Stdout)
	if err != nil && !errors.Is(err, flag.ErrHelp) {
		_, _ = os.Stderr.WriteString("vmtests: " + err.Error() + "\n")
		os.Exit(1)
	}
}
