// SPDX-License-Identifier: Apache-2.0

// Command images packs the programs in bin/ into container images that hold nothing else.
//
//	go run ./deploy/images --out build/images --tag v1.2.3 [--apps] [--push registry.example]
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
	if err := newCommand(os.Stdout).ExecuteContext(ctx); err != nil {
		fmt.Fprintln(os.Stderr, "images: error:", err)
		os.Exit(1)
	}
}
