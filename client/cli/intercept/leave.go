// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"fmt"

	"github.com/spf13/cobra"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/client/cli/env"
	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/reason"
)

// NewLeave returns the command leave.
func NewLeave(e *env.Env, g *env.Global) *cobra.Command {
	cmd := &cobra.Command{
		Use:     "leave NAME",
		Aliases: []string{"detach"},
		Short:   "Remove an intercept or a wiretap",
		Long: `Remove the intercept of that name: its requests reach the pods again. Requests that this laptop is answering are
answered to their end. A wiretap's copies end.`,
		Example: fmt.Sprintf(`  %[1]s leave orders

  # An intercept that was made with --namespace shop and without --workload
  %[1]s leave orders-shop`, e.Name),
		Args:              env.Exactly(1, "the intercept's name"),
		ValidArgsFunction: completeIntercepts(e, g),
		RunE: func(cmd *cobra.Command, args []string) error {
			s, err := e.Running(cmd.Context(), g)
			if err != nil {
				return err
			}
			if s == nil {
				return reason.Advise(
					fmt.Errorf("intercept named %q not found: there is no session", args[0]),
					"`%s list --intercepts` shows what is intercepted", e.Name)
			}
			defer s.Close()
			e.News(cmd.Context(), s)
			s.Line.Set("leaving " + args[0])
			reply, err := s.Leave(cmd.Context(), &daemonpb.LeaveRequest{Name: args[0]})
			s.Line.Close()
			if err != nil {
				return err
			}
			left := reply.GetLeft()
			if format := output.OutputOf(cmd); format != output.FormatText {
				return e.Write(format, layout.InterceptRecord(left))
			}
			kind := "intercept"
			if left.GetWiretap() {
				kind = "wiretap"
			}
			e.Say(g, "Left %s %s of %s %s in namespace %s", kind, left.GetName(),
				left.GetWorkloadKind(), left.GetWorkload(), left.GetNamespace())
			return nil
		},
	}
	return cmd
}
