// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"strings"

	"sidestep.dev/sidestep/internal/reason"
)

// dash stands between what happened and what to do.
const dash = " — "

// advise adds what to do to an error that says only what happened.
func (e *env) advise(text string, err error) string {
	text = e.renamed(text)
	if strings.Contains(text, dash) {
		return text
	}
	if before, after, ok := strings.Cut(text, "; use "); ok {
		return before + dash + "use " + after
	}
	why := reason.Of(err)
	if why == "" {
		return text
	}
	what, ok := map[string]string{
		reason.ManagerNotInstalled: "run `" + e.name + " helm install`, or ask who runs the cluster to",
		reason.ManagerNotReady: "see `kubectl get pods --namespace " + defaultManagerNamespace +
			"` and try again",
		reason.NoCluster:    "check --kubeconfig and --context, or `kubectl config view`",
		reason.Unauthorized: "log in to the cluster again",
		reason.Forbidden:    "ask who runs the cluster for ClusterRole sidestep-user in that namespace",
		reason.OtherCluster: "run `" + e.name + " quit` first",
		reason.NoSession:    "run `" + e.name + " connect`",
		reason.VersionSkew: "get the version that the cluster has, or run `" + e.name +
			" helm upgrade`",
		reason.WorkloadNotFound:  "`" + e.name + " list` shows what there is",
		reason.WorkloadAmbiguous: "choose with --workload KIND/NAME",
		reason.InterceptNotFound: "`" + e.name + " list --intercepts --wiretaps` shows yours",
		reason.InterceptExists:   "leave it first, or choose another name with --workload",
		reason.LocalPortTaken:    "choose another with --port",
		reason.Conflict:          "ask its holder to leave, or intercept requests that differ by a header",
		reason.NotSteering:       "see `kubectl get intercepts --all-namespaces` and try again",
	}[why]
	if !ok {
		what = "see `" + e.name + " intercept --help`"
	}
	return text + dash + what
}

// renamed puts the name by which this program was called into the commands that the daemon, which
// does not know it, advises.
func (e *env) renamed(text string) string {
	return strings.ReplaceAll(text, "`sidestep ", "`"+e.name+" ")
}
