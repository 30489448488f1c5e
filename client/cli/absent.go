// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/client/cli/output"
)

// absentCommands returns the commands of Telepresence that this version knows but does not have.
func absentCommands() []*cobra.Command {
	var commands []*cobra.Command
	for name, instead := range map[string]string{
		"login":              "there is nothing to log in to: what you may do is decided by the cluster's RBAC",
		"logout":             "there is nothing to log out of",
		"license":            "there is nothing to license",
		"dashboard":          "`status` and `kubectl get intercepts -A` show what there is",
		"preview":            "use `intercept --http-header auto` and send the header",
		"replace":            "use `intercept`; the container keeps running beside it",
		"ingest":             "use `intercept --env-file`; volumes cannot be imported",
		"revoke":             "delete the Intercept object with kubectl",
		"curl":               "nothing of the cluster's network is on this laptop; use `kubectl port-forward`",
		"docker-run":         "run the container by yourself and use `intercept`",
		"current-cluster-id": "use `kubectl get namespace default -o jsonpath={.metadata.uid}`",
		"genyaml":            "there are no sidecars and nothing needs to be generated",
		"test-vpn":           "nothing of the cluster's network is on this laptop",
	} {
		commands = append(commands, &cobra.Command{
			Use: name, Hidden: true, DisableFlagParsing: true, Short: "Not available in this version",
			ValidArgsFunction: cobra.NoFileCompletions,
			PersistentPreRunE: func(*cobra.Command, []string) error { return nil },
			RunE: func(cmd *cobra.Command, _ []string) error {
				return output.Unavailable(cmd.Name()+" is", instead)
			},
		})
	}
	return commands
}
