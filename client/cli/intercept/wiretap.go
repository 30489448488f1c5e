// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/client/cli/env"
)

// NewWiretap returns the command wiretap.
func NewWiretap(e *env.Env, g *env.Global) *cobra.Command {
	f := &flags{wiretap: true}
	cmd := &cobra.Command{
		Use:   "wiretap NAME [flags] [-- COMMAND [ARGUMENT...]]",
		Short: "Send copies of a workload's requests to this laptop",
		Long: `Send copies of a workload's requests to a port of this laptop, while the pods answer as always: of all connections, or
of the HTTP requests that match. What this laptop answers is discarded. Anybody may have any number of wiretaps, beside
any intercepts.

A wiretap gets what reaches the pods, without the kubelet's probes. Requests that an intercept sends to a laptop are not
copied, unless that laptop could not take them.

Copies never delay what is copied. What this laptop or the network does not take in time is dropped: whole requests, or the
rest of one that has begun. ` + "`" + `status --wide` + "`" + ` shows how many. Copies of requests can arrive in another order. Of a request that
upgrades its connection, such as a WebSocket, only the request itself is copied. Connections that clients opened before the
wiretap are not copied.

Without --http-* flags the bytes that clients send are copied, connection by connection. Any of these flags implies
--mechanism http; without --http-header, everybody's requests match. NAME, --namespace, --workload, the environment and a
command after -- work as they do for intercept. leave ends a wiretap.`,
		Example: fmt.Sprintf(`  # A copy of every HTTP request of orders, to port 9000
  %[1]s wiretap orders --port 9000 --http-header all

  # Of those below a path
  %[1]s wiretap orders --port 9000 --http-path-prefix /api

  # Of one user's, under another name, beside an intercept of the same workload
  %[1]s wiretap listen --workload orders --port 9001 --http-header x-user=ann

  # Of every connection, as long as the program runs
  %[1]s wiretap orders --port 9000 -- ./record --listen :9000

  # And stop
  %[1]s leave orders`, e.Name),
		Args:              arguments,
		ValidArgsFunction: completeInterceptable(e, g),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.refuseUnavailable(cmd.Flags()); err != nil {
				return err
			}
			req, err := f.request(args[0], g.Namespace, cmd.Flags())
			if err != nil {
				return err
			}
			warnings, err := doubts(req)
			if err != nil {
				return err
			}
			for _, warning := range warnings {
				e.Warn(g, warning)
			}
			return run(e, cmd, g, f, req, args[1:])
		},
	}
	f.add(cmd.Flags())
	describeCopies(cmd.Flags())
	completeFlags(e, g, cmd)
	return cmd
}

// describeCopies changes the descriptions of an intercept's flags to those of a wiretap.
func describeCopies(flags *pflag.FlagSet) {
	for name, usage := range map[string]string{
		"port": "Local port, as `LOCAL[:ID]` with the service port's name or number if there are several " +
			"(default: the container's port)",
		"address":  "Local `IP` address to which the copies are sent",
		"workload": "Workload, as `[KIND/]NAME`, if the wiretap is to have another name",
		"mechanism": "`MECHANISM`: tcp copies what clients send on all connections, http the requests that match " +
			"(default tcp, or http with --http flags)",
		"http-header": "Copy requests with this `HEADER`, NAME=VALUE or 'NAME: VALUE'; can be repeated. A VALUE " +
			"with regexp characters is an RE2 expression " +
			"for the whole value. \"auto\" is a header of your own; \"all\" copies every request, and is the " +
			"default with any other --http flag",
		"http-path-equal":  "Copy requests for this `PATH`",
		"http-path-prefix": "Copy requests whose path begins with this `PREFIX`",
		"http-path-regex":  "Copy requests whose whole path matches this RE2 `EXPRESSION`",
		"timeout":          "How long to wait until all pods send their copies here (default 30s)",
	} {
		flags.Lookup(name).Usage = usage
	}
	_ = flags.MarkHidden("to-pod") // it is refused
}
