// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/url"
	"regexp"
	"strings"
	"syscall"

	"google.golang.org/grpc/codes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

// EnvironmentResource is the resource that may be read by those who may read environments.
const EnvironmentResource = "intercepts/environment.sidestep.dev"

// subresources says what to do about a missing right that an Intercept may need besides the right
// to create it.
var subresources = map[string]string{
	EnvironmentResource: "environments of containers may not be read by everybody; ask who runs the cluster for the ClusterRole " +
		names.Environment + " there",
	"intercepts/topod.sidestep.dev": "leave --to-pod out, or ask who runs the cluster for the ClusterRole " +
		names.ToPod + " there",
	"intercepts/wiretap.sidestep.dev": "not everybody may have copies of requests; ask who runs the cluster for the ClusterRole " +
		names.Wiretap + " there",
	"intercepts/wholeport.sidestep.dev": "take only requests that match, with --http-header, or ask who runs the cluster for the " +
		"ClusterRole " + names.WholePort + " there",
}

// denied matches the API server's RBAC message.
var denied = regexp.MustCompile(
	`User "([^"]*)" cannot (\S+) resource "([^"]*)" in API group "([^"]*)"(?: in the namespace "([^"]*)")?`)

// Explain turns an error of a call to the API server into one for users: what is wrong and what to
// do about it. It returns errors about the object of the call (not found, invalid, conflict) as
// they are, for the caller to explain.
func (c *Cluster) Explain(err error) error {
	var has *reason.Error
	switch {
	case err == nil, errors.As(err, &has), errors.Is(err, context.Canceled):
		return err
	case apierrors.IsUnauthorized(err):
		return c.unauthorized()
	case apierrors.IsForbidden(err):
		return forbidden(err)
	case apierrors.IsTooManyRequests(err), apierrors.IsServiceUnavailable(err),
		apierrors.IsInternalError(err), apierrors.IsServerTimeout(err):
		return reason.New(codes.Unavailable, reason.NoCluster,
			"the Kubernetes API server %s is in trouble: %v", c.Server, err).
			Advise("try again in a moment")
	}
	var answer apierrors.APIStatus
	if errors.As(err, &answer) {
		return err
	}
	return c.unreachable(err)
}

func (c *Cluster) unauthorized() error {
	who := "your credentials"
	if c.Context != "" {
		who = fmt.Sprintf("the credentials of context %q", c.Context)
	}
	return reason.New(codes.Unauthenticated, reason.Unauthorized,
		"the Kubernetes API server %s does not accept %s", c.Server, who).
		Advise("log in again, or check the kubeconfig")
}

func forbidden(err error) error {
	m := denied.FindStringSubmatch(err.Error())
	if m == nil {
		// It is not RBAC but an admission policy or a quota, whose own message is the best.
		var answer apierrors.APIStatus
		message := err.Error()
		if errors.As(err, &answer) {
			message = answer.Status().Message
		}
		return reason.New(codes.PermissionDenied, reason.Forbidden, "the cluster does not allow it: %s",
			message)
	}
	user, verb, resource, group, namespace := m[1], m[2], m[3], m[4], m[5]
	if group != "" {
		resource += "." + group
	}
	where := "in all namespaces"
	if namespace != "" {
		where = "in namespace " + namespace
	}
	ask := fmt.Sprintf("ask for the ClusterRole %s there (and, for connecting, the Role %s in the manager's namespace)",
		names.User, names.User)
	if why, ok := subresources[resource]; ok {
		ask = why
	}
	return reason.New(codes.PermissionDenied, reason.Forbidden, "%s may not %s %s %s", user, verb,
		resource, where).
		Advise("%s", ask).
		With("verb", verb).With("resource", resource).With("namespace", namespace).With("user", user)
}

func (c *Cluster) unreachable(err error) error {
	what := Cause(err)
	if strings.Contains(err.Error(), "getting credentials") {
		return reason.New(codes.Unauthenticated, reason.Unauthorized,
			"cannot get credentials for the Kubernetes API server %s: %s", c.Server, what).
			Advise("check that `kubectl version` works")
	}
	return reason.New(codes.Unavailable, reason.NoCluster,
		"cannot reach the Kubernetes API server %s: %s", c.Server, what).
		Advise("check your kubeconfig or VPN")
}

// Cause returns the innermost part of a network error that means something to users.
func Cause(err error) string {
	var errno syscall.Errno
	var dns *net.DNSError
	var unknown x509.UnknownAuthorityError
	var hostname x509.HostnameError
	var invalid x509.CertificateInvalidError
	var timeout interface{ Timeout() bool }
	switch {
	case errors.As(err, &errno):
		return errno.Error()
	case errors.As(err, &dns):
		if dns.IsNotFound {
			return "no such host " + dns.Name
		}
		return dns.Error()
	case errors.As(err, &unknown):
		return "its certificate is signed by an authority that the kubeconfig does not trust"
	case errors.As(err, &hostname):
		return "its certificate is " + strings.TrimPrefix(hostname.Error(), "x509: certificate is ")
	case errors.As(err, &invalid):
		return "its certificate is not valid: " + strings.TrimPrefix(invalid.Error(), "x509: ")
	case errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		return "no answer in time"
	case errors.Is(err, http.ErrSchemeMismatch):
		return "it speaks HTTP, not HTTPS"
	}
	var address *url.Error
	if errors.As(err, &address) {
		return address.Err.Error()
	}
	return err.Error()
}
