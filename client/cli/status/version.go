// SPDX-License-Identifier: Apache-2.0

package status

import (
	"cmp"
	"fmt"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
)

// versions is the record of the versions of all components.
type versions struct {
	Client         string `json:"client"`
	UserDaemon     string `json:"user_daemon,omitempty"`
	TrafficManager string `json:"traffic_manager,omitempty"`
}

// NewVersion returns the command version.
func NewVersion(e *env.Env, g *env.Global) *cobra.Command {
	return &cobra.Command{
		Use:   "version",
		Short: "Show the versions of client, daemon and traffic manager",
		Example: fmt.Sprintf(
			"  %[1]s version\n\n  # For a program\n  %[1]s version --output json", e.Name),
		Args:              env.Exactly(0, ""),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			v := versions{Client: e.Version}
			// This does not start a daemon that has died.
			if s, err := e.Reach(cmd.Context(), g); err == nil {
				defer s.Close()
				st, err := s.Status(cmd.Context(), &daemonpb.Empty{})
				if err != nil {
					return err
				}
				v.UserDaemon = st.GetDaemon().GetVersion()
				if st.GetConnected() {
					v.TrafficManager = st.GetManagerVersion()
				}
			}
			if format := output.OutputOf(cmd); format != output.FormatText {
				return e.Write(format, v)
			}
			b := &layout.Block{}
			b.Add("Client", v.Client)
			b.Add("Root Daemon", "not running")
			b.Add("User Daemon", cmp.Or(v.UserDaemon, "not running"))
			b.Add("Traffic Manager", cmp.Or(v.TrafficManager, "not connected"))
			_, err := b.WriteTo(e.Stdout)
			return err
		},
	}
}
