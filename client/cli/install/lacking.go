// SPDX-License-Identifier: Apache-2.0

package install

import (
	"cmp"
	"context"
	"fmt"
	"slices"
	"strings"

	authzv1 "k8s.io/api/authorization/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/names"
)

const (
	// userRole is the chart's name for a Role in its own namespace and a ClusterRole for others.
	userRole = names.User
	// maxAsked bounds how many subjects the API server is asked about, and maxSaid how many are named.
	maxAsked, maxSaid = 500, 20
)

// holder is somebody who may create Intercepts, in a namespace or, if that is empty, in all.
type holder struct {
	rbacv1.Subject
	in string
}

func (h holder) String() string {
	name := h.Name
	if h.Kind == rbacv1.ServiceAccountKind {
		name = h.Namespace + "/" + h.Name
	}
	return fmt.Sprintf("%s %q", strings.ToLower(h.Kind), name)
}

// warnLacking names those who cannot use the installation any more as they could. Whoever upgrades it
// may lack the right to find that out, which is no failure.
func (c *Cluster) warnLacking(ctx context.Context, s Settings) {
	if s.Warn == nil {
		return
	}
	s.step("looking for users who lack new rights")
	lines, err := c.lacking(ctx)
	switch {
	case err != nil:
		s.Warn(fmt.Sprintf("cannot find out who lacks rights that this version needs: %v", err))
	case len(lines) > 0:
		s.Warn("some cannot use sidestep as before, until you bind them to the roles named here")
		for _, line := range lines {
			s.Warn(line)
		}
	}
}

// lacking names those who could use the installation before it was upgraded, and lack rights that it
// asks for now. What they have as members of groups, the API server is not asked.
func (c *Cluster) lacking(ctx context.Context) ([]string, error) {
	holders, rights, err := c.holders(ctx)
	if err != nil {
		return nil, err
	}
	var lines []string
	for i, h := range holders {
		if i == maxAsked {
			lines = append(lines, fmt.Sprintf("%d more users and groups were not looked at", len(holders)-i))
			break
		}
		connects, err := c.may(ctx, h, authzv1.ResourceAttributes{Namespace: c.namespace, Verb: "get",
			Resource: "configmaps", Name: names.CA})
		if err != nil {
			return nil, err
		}
		if !connects { // nor could they before
			continue
		}
		line, err := c.lacks(ctx, h, rights)
		if err != nil {
			return nil, err
		}
		if line != "" {
			lines = append(lines, line)
		}
	}
	if n := len(lines) - maxSaid; n > 0 {
		lines = append(lines[:maxSaid], fmt.Sprintf("and %d more", n))
	}
	return lines, nil
}

// lacks returns a sentence about what somebody lacks, or "".
func (c *Cluster) lacks(ctx context.Context, h holder, rights []string) (string, error) {
	var missing []string
	allowed, err := c.may(ctx, h, authzv1.ResourceAttributes{Namespace: c.namespace, Verb: "create",
		Group: v1alpha1.GroupVersion.Group, Resource: "logins"})
	if err != nil {
		return "", err
	}
	if !allowed {
		missing = append(missing, fmt.Sprintf("create on logins in namespace %s (Role %s)", c.namespace, userRole))
	}
	var subresources []string
	for _, right := range rights {
		allowed, err := c.may(ctx, h, authzv1.ResourceAttributes{Namespace: h.in, Verb: "get",
			Group: v1alpha1.GroupVersion.Group, Resource: "intercepts", Subresource: right})
		if err != nil {
			return "", err
		}
		if !allowed {
			subresources = append(subresources, "intercepts/"+right)
		}
	}
	if len(subresources) > 0 {
		where := "in namespace " + h.in
		if h.in == "" {
			where = "in all namespaces"
		}
		missing = append(missing, fmt.Sprintf("get on %s %s (ClusterRole %s)",
			strings.Join(subresources, ", "), where, userRole))
	}
	if len(missing) == 0 {
		return "", nil
	}
	return fmt.Sprintf("%s lacks %s", h, strings.Join(missing, ", and ")), nil
}

// holders returns the subjects whose bindings let them create Intercepts, and the subresources that
// ClusterRole sidestep-user lets its subjects create.
func (c *Cluster) holders(ctx context.Context) (all []holder, rights []string, err error) {
	rbac := c.kube.RbacV1()
	clusterRoles, err := rbac.ClusterRoles().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list ClusterRoles: %w", err)
	}
	roles, err := rbac.Roles(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list Roles: %w", err)
	}
	bindings, err := rbac.RoleBindings(metav1.NamespaceAll).List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list RoleBindings: %w", err)
	}
	clusterBindings, err := rbac.ClusterRoleBindings().List(ctx, metav1.ListOptions{})
	if err != nil {
		return nil, nil, fmt.Errorf("list ClusterRoleBindings: %w", err)
	}
	grants := map[string]bool{} // by kind, namespace and name
	for _, r := range clusterRoles.Items {
		grants["ClusterRole//"+r.Name] = slices.ContainsFunc(r.Rules, createsIntercepts)
		if r.Name == userRole {
			rights = subresources(r.Rules)
		}
	}
	for _, r := range roles.Items {
		grants["Role/"+r.Namespace+"/"+r.Name] = slices.ContainsFunc(r.Rules, createsIntercepts)
	}
	add := func(ref rbacv1.RoleRef, in string, subjects []rbacv1.Subject) {
		of := in
		if ref.Kind == "ClusterRole" {
			of = ""
		}
		if !grants[ref.Kind+"/"+of+"/"+ref.Name] {
			return
		}
		for _, s := range subjects {
			all = append(all, holder{s, in})
		}
	}
	for _, b := range bindings.Items {
		add(b.RoleRef, b.Namespace, b.Subjects)
	}
	for _, b := range clusterBindings.Items {
		add(b.RoleRef, "", b.Subjects)
	}
	slices.SortFunc(all, func(a, b holder) int {
		return cmp.Or(cmp.Compare(a.Kind, b.Kind), cmp.Compare(a.Namespace, b.Namespace),
			cmp.Compare(a.Name, b.Name), cmp.Compare(a.in, b.in))
	})
	return slices.Compact(all), rights, nil
}

func createsIntercepts(r rbacv1.PolicyRule) bool {
	has := func(list []string, wanted string) bool {
		return slices.Contains(list, wanted) || slices.Contains(list, "*")
	}
	return has(r.APIGroups, v1alpha1.GroupVersion.Group) && has(r.Resources, "intercepts") &&
		has(r.Verbs, "create")
}

// subresources lists those of Intercepts that rules name.
func subresources(rules []rbacv1.PolicyRule) (all []string) {
	for _, r := range rules {
		for _, resource := range r.Resources {
			if name, ok := strings.CutPrefix(resource, "intercepts/"); ok {
				all = append(all, name)
			}
		}
	}
	slices.Sort(all)
	return slices.Compact(all)
}

// may asks the API server whether somebody may do something.
func (c *Cluster) may(ctx context.Context, h holder, what authzv1.ResourceAttributes) (bool, error) {
	spec := authzv1.SubjectAccessReviewSpec{ResourceAttributes: &what, Groups: []string{"system:authenticated"}}
	switch h.Kind {
	case rbacv1.ServiceAccountKind:
		spec.User = "system:serviceaccount:" + h.Namespace + ":" + h.Name
		spec.Groups = append(spec.Groups, "system:serviceaccounts", "system:serviceaccounts:"+h.Namespace)
	case rbacv1.GroupKind:
		spec.User, spec.Groups = "a member of "+h.Name, append(spec.Groups, h.Name)
	default:
		spec.User = h.Name
	}
	review, err := c.kube.AuthorizationV1().SubjectAccessReviews().Create(ctx,
		&authzv1.SubjectAccessReview{Spec: spec}, metav1.CreateOptions{})
	if err != nil {
		return false, fmt.Errorf("ask what %s may do: %w", h, err)
	}
	return review.Status.Allowed, nil
}
