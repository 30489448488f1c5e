// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"time"

	authnv1 "k8s.io/api/authentication/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
)

// userFor is how long an answer of the API server about the user is cached.
const userFor = time.Minute

// User is the account that the API server takes this laptop for. Name is empty if the API server
// does not tell, as before Kubernetes 1.28.
type User struct {
	Name   string
	Groups []string
}

// User asks the API server, with a SelfSubjectReview, for the account of this kubeconfig.
func (c *Cluster) User(ctx context.Context) (User, error) {
	c.userMu.Lock()
	defer c.userMu.Unlock()
	if time.Since(c.userAsked) < userFor {
		return c.user, nil
	}
	api, err := c.Client()
	if err != nil {
		return User{}, err
	}
	ctx, cancel := c.Call(ctx)
	defer cancel()
	review := &authnv1.SelfSubjectReview{}
	err = api.Create(ctx, review)
	switch {
	case apierrors.IsNotFound(err), apierrors.IsForbidden(err), apierrors.IsMethodNotSupported(err):
	case err != nil:
		return User{}, fmt.Errorf("ask the API server who this user is: %w", err)
	}
	c.user = User{Name: review.Status.UserInfo.Username, Groups: review.Status.UserInfo.Groups}
	c.userAsked = time.Now()
	return c.user, nil
}
