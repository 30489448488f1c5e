// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"fmt"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

func newWiretapCmd(e *env, g *global) *cobra.Command {
	f := &interceptFlags{wiretap: true}
	cmd := &cobra.Command{
		Use:     "wiretap NAME [flags] [-- COMMAND [ARGUMENT...]]",
		Short:   "Send copies of a workload's requests to this laptop",
		GroupID: groupTraffic,
		Long: `Send copies of the requests of a workload to a port of this laptop, while the pods answer as always: of all connections,
or of the HTTP requests that match. What this laptop answers is read and thrown away. Wiretaps get in nobody's way: anybody
may have any number of them, beside any intercepts.

A wiretap gets what reaches the pods. Requests that an intercept sends to somebody's laptop are not among that, but those
that such a laptop could not take are. The kubelet's probes are left out.

Copies never hold up what is copied. What this laptop, or the way to it, does not take in time is dropped: whole requests, or the
rest of one that has begun; ` + "`" + `status --wide` + "`" + ` says how many. Copies of requests can arrive in another order. Of a request that turns its
connection into something else, as WebSockets do, only the request itself is copied. Connections that clients had open before
stay as they are, and are not copied.

Without --http-* flags the bytes that clients send are copied, connection by connection. Any of them means --mechanism http;
without --http-header, the requests of everybody match. NAME, --namespace, --workload and a command after -- mean what they mean
with intercept, and so does the command's environment. leave ends a wiretap.`,
		Example: fmt.Sprintf(`  # A copy of every HTTP request of orders, to port 9000
  %[1]s wiretap orders --port 9000 --http-header all

  # Of those below a path
  %[1]s wiretap orders --port 9000 --http-path-prefix /api

  # Of one user's, under another name, beside an intercept of the same workload
  %[1]s wiretap listen --workload orders --port 9001 --http-header x-user=ann

  # Of every connection, as long as the program runs
  %[1]s wiretap orders --port 9000 -- ./record --listen :9000

  # And stop
  %[1]s leave orders`, e.name),
		Args:              interceptArgs,
		ValidArgsFunction: completeInterceptable(e, g),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := f.refuseUnavailable(cmd.Flags()); err != nil {
				return err
			}
			req, err := f.request(args[0], g.namespace, cmd.Flags())
			if err != nil {
				return err
			}
			return e.runIntercept(cmd, g, f, req, args[1:])
		},
	}
	f.add(cmd.Flags())
	describeCopies(cmd.Flags())
	completeInterceptFlags(e, g, cmd)
	return cmd
}

// describeCopies gives the flags of an intercept the words of a wiretap.
func describeCopies(flags *pflag.FlagSet) {
	for name, usage := range map[string]string{
		"port":      "Local port, as `LOCAL[:ID]` with the service port's name or number if there are several (default: the container's port)",
		"address":   "Local `IP` address to which the copies are sent",
		"workload":  "Workload, as `[KIND/]NAME`, if the wiretap is to have another name",
		"mechanism": "`MECHANISM`: tcp copies what clients send on all connections, http the requests that match (default tcp, or http with --http flags)",
		"http-header": "Copy requests with this `HEADER`, NAME=VALUE or 'NAME: VALUE'; can be repeated. A VALUE with regexp characters is an RE2 expression " +
			"for the whole value. \"auto\" is a header of your own; \"all\" copies every request, and is the default with any other --http flag",
		"http-path-equal":  "Copy requests for this `PATH`",
		"http-path-prefix": "Copy requests whose path begins with this `PREFIX`",
		"http-path-regex":  "Copy requests whose whole path matches this RE2 `EXPRESSION`",
		"timeout":          "How long to wait until all pods send their copies here (default 30s)",
	} {
		flags.Lookup(name).Usage = usage
	}
	_ = flags.MarkHidden("to-pod") // which is refused
}
