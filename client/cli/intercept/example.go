// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"fmt"
	"regexp"
	"time"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/cli/env"
)

// examplePatience is how long a new intercept may wait for its example.
const examplePatience = 2 * time.Second

// example returns a URL for which a request from inside the cluster is intercepted. It returns ""
// if it is sure of none: the intercept is not of HTTP requests, it takes a whole port, which needs
// no example, something is wrong with it, or the service's port is unknown.
func example(ctx context.Context, e *env.Env, g *env.Global, made *daemonpb.InterceptInfo,
	req *daemonpb.InterceptRequest) string {
	path, ok := examplePath(conditions(req).Path)
	if made.GetMechanism() != mechanismHTTP || len(made.GetConditions()) == 0 || made.GetMessage() != "" ||
		made.GetService() == "" || !ok || !coversHeaders(made, req) {
		return ""
	}
	c, err := e.Cluster(e.ClusterOptions(g))
	if err != nil {
		return ""
	}
	ctx, cancel := context.WithTimeout(ctx, examplePatience)
	defer cancel()
	port, err := c.ServicePort(ctx, made.GetNamespace(), made.GetService(), made.GetServicePort())
	if err != nil {
		return ""
	}
	url := fmt.Sprintf("http://%s.%s", made.GetService(), made.GetNamespace())
	if port != 80 {
		url += fmt.Sprintf(":%d", port)
	}
	return url + path
}

// coversHeaders reports whether a request with the daemon's example headers matches. The daemon has
// none for an expression, because it does not know what a client would send.
func coversHeaders(made *daemonpb.InterceptInfo, req *daemonpb.InterceptRequest) bool {
	wanted := len(conditions(req).Headers)
	if req.GetAutoHeader() {
		wanted++
	}
	return len(made.GetCurlHeaders()) >= wanted
}

// examplePath returns a path that meets the condition. ok is false for an expression that is more
// than text.
func examplePath(p *v1alpha1.PathMatch) (path string, ok bool) {
	switch {
	case p == nil:
		return "/", true
	case p.Equal != nil:
		return *p.Equal, true
	case p.Prefix != nil:
		return *p.Prefix, true
	}
	if p.Regex == nil {
		return "/", true
	}
	expr, err := regexp.Compile(*p.Regex)
	if err != nil {
		return "", false
	}
	text, whole := expr.LiteralPrefix()
	return text, whole
}
