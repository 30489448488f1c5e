// SPDX-License-Identifier: Apache-2.0

package env

import (
	"strings"

	"sidestep.dev/sidestep/client/cli/layout"
	"sidestep.dev/sidestep/client/cli/output"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// Advise adds to the text of an error what to do about its reason, unless the error has advice.
func (e *Env) Advise(text string, err error) string {
	why := reason.Of(err)
	if why == "" || output.HasAdvice(err) {
		return text
	}
	what, ok := map[string]string{
		reason.ManagerNotInstalled: "run `" + e.Name + " helm install`, or ask who runs the cluster to",
		reason.ManagerNotReady: "see `kubectl get pods --namespace " + DefaultManagerNamespace +
			"` and try again",
		reason.NoCluster:    "check --kubeconfig and --context, or `kubectl config view`",
		reason.Unauthorized: "log in to the cluster again",
		reason.Forbidden:    "ask who runs the cluster for ClusterRole " + names.User + " in that namespace",
		reason.OtherCluster: "run `" + e.Name + " quit` first",
		reason.NoSession:    "run `" + e.Name + " connect`",
		reason.VersionSkew: "get the version that the cluster has, or run `" + e.Name +
			" helm upgrade`",
		reason.NotProven: "ask who runs the cluster for Role sidestep-user in the namespace of the " +
			"traffic manager",
		reason.WorkloadNotFound:  "`" + e.Name + " list` shows what there is",
		reason.WorkloadAmbiguous: "choose with --workload KIND/NAME",
		reason.InterceptNotFound: "`" + e.Name + " list --intercepts --wiretaps` shows yours",
		reason.InterceptExists:   "leave it first, or choose another name with --workload",
		reason.LocalPortTaken:    "choose another with --port",
		reason.Conflict:          "ask its holder to leave, or intercept requests that differ by a header",
		reason.NotSteering:       "see `kubectl get intercepts --all-namespaces` and try again",
	}[why]
	if !ok {
		what = "see `" + e.Name + " intercept --help`"
	}
	return text + reason.Dash + what
}

// Renamed returns a text with the commands in it under e.Name. The daemon and the packages below do
// not know that name, and write sidestep.
func (e *Env) Renamed(text string) string {
	return strings.ReplaceAll(text, "`sidestep ", "`"+e.Name+" ")
}

// Text returns text as it is printed for people: with the name of this program, and without control
// characters.
func (e *Env) Text(text string) string { return layout.SafeLines(e.Renamed(text)) }
