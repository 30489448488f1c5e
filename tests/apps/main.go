// SPDX-License-Identifier: Apache-2.0

// Command apps is the sample workloads in one static program: an HTTP chain, a line server, a gRPC
// service, the stand-in for a process on a laptop, and clients for all of them.
package main

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"syscall"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	env := env{stdout: os.Stdout, stderr: os.Stderr, getenv: os.Getenv, hostname: os.Hostname}
	if err := newCommand(env).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "apps: error:", err)
		os.Exit(1)
	}
}
