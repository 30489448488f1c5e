// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"strings"

	"github.com/spf13/cobra"
	"golang.org/x/sync/errgroup"

	"sidestep.dev/sidestep/tests/apps/greeter"
	"sidestep.dev/sidestep/tests/apps/lines"
	"sidestep.dev/sidestep/tests/apps/shop"
	"sidestep.dev/sidestep/tests/apps/sidecar"
)

func newServeCommand(e env) *cobra.Command {
	var (
		who           identity
		service       shop.Service
		listen, admin string
		log           bool
	)
	command := &cobra.Command{
		Use:   "serve",
		Short: "An HTTP service of a chain, in a pod or, in the app's place, on a laptop",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			service.Name, service.Pod = who.name, who.pod
			if log {
				service.Log = slog.New(slog.NewTextHandler(e.stderr, nil))
			}
			group, ctx := errgroup.WithContext(command.Context())
			serve := func(address string, service shop.Service) error {
				listener, err := listenOn(ctx, e, address, service.Name)
				if err != nil {
					return err
				}
				group.Go(func() error { return shop.Serve(ctx, listener, service.Handler(), who.linger) })
				return nil
			}
			if err := serve(listen, service); err != nil {
				return err
			}
			if admin != "" {
				second := service
				second.Name, second.Upstream = service.Name+"-admin", ""
				if err := serve(admin, second); err != nil {
					return err
				}
			}
			return group.Wait()
		},
	}
	who.addFlags(command, e, "laptop")
	flags := command.Flags()
	flags.StringVar(&listen, "listen", ":8080", "address to listen on")
	flags.StringVar(&admin, "admin", "", "second address to listen on, where NAME-admin answers")
	flags.StringVar(&service.Upstream, "upstream", e.getenv("UPSTREAM"),
		"base URL of the next service, or $UPSTREAM")
	flags.StringSliceVar(&service.Forward, "forward-header", list(e.getenv("FORWARD_HEADERS")),
		"header to send on to upstream, besides "+strings.ToLower(shop.InterceptHeader)+
			"; or $FORWARD_HEADERS, with commas")
	flags.BoolVar(&service.KeepAlive, "upstream-keep-alive", e.getenv("UPSTREAM_KEEP_ALIVE") == "true",
		"let connections to upstream live on between requests, or $UPSTREAM_KEEP_ALIVE=true")
	flags.BoolVar(&log, "log", false, "log every request")
	return command
}

func newLinesCommand(e env) *cobra.Command {
	var (
		who      identity
		listen   string
		greeting string
	)
	command := &cobra.Command{
		Use:   "lines",
		Short: "A TCP service that answers each line with its name and the line",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			listener, err := listenOn(command.Context(), e, listen, who.name)
			if err != nil {
				return err
			}
			return lines.Server{Name: who.name, Greeting: greeting}.Serve(command.Context(), listener)
		},
	}
	who.addFlags(command, e, "laptop")
	command.Flags().StringVar(&listen, "listen", ":7777", "address to listen on")
	command.Flags().StringVar(&greeting, "greeting", e.getenv("GREETING"),
		"line to send before the client says anything, or $GREETING")
	return command
}

func newGreeterCommand(e env) *cobra.Command {
	var (
		who    identity
		listen string
	)
	command := &cobra.Command{
		Use:   "greeter",
		Short: "A gRPC service: gRPC's own test service, and health",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			listener, err := listenOn(command.Context(), e, listen, who.name)
			if err != nil {
				return err
			}
			return greeter.Serve(command.Context(), greeter.New(who.name, who.pod), listener)
		},
	}
	who.addFlags(command, e, "laptop")
	command.Flags().StringVar(&listen, "listen", ":9000", "address to listen on")
	return command
}

func newSidecarCommand(e env) *cobra.Command {
	var listen, app string
	var whole bool
	command := &cobra.Command{
		Use:   "sidecar",
		Short: "A plain reverse proxy in front of an app, for comparison",
		Args:  cobra.NoArgs,
		RunE: func(command *cobra.Command, _ []string) error {
			listener, err := listenOn(command.Context(), e, listen, "sidecar")
			if err != nil {
				return err
			}
			if whole {
				return sidecar.ServeTCP(command.Context(), listener, app)
			}
			return sidecar.ServeHTTP(command.Context(), listener, app)
		},
	}
	command.Flags().StringVar(&listen, "listen", ":8081", "address to listen on")
	command.Flags().StringVar(&app, "app", "127.0.0.1:8080", "address of the app")
	command.Flags().BoolVar(&whole, "tcp", false, "pass connections on without looking into them")
	return command
}

func listenOn(ctx context.Context, e env, address, name string) (net.Listener, error) {
	listener, err := new(net.ListenConfig).Listen(ctx, "tcp", address)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", name, err)
	}
	// With port 0, the caller reads the port here.
	fmt.Fprintf(e.stderr, "%s listens on %s\n", name, listener.Addr())
	return listener, nil
}

func list(text string) []string {
	if text == "" {
		return nil
	}
	return strings.Split(text, ",")
}
