// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

const (
	// managedBy marks a namespace that Install created, and that is removed with everything else.
	managedBy      = "app.kubernetes.io/managed-by"
	managedByValue = names.Sidestep
)

// ensureNamespace creates the traffic manager's namespace if it is missing. helm's own would lack
// the Pod Security level that node agents need, and the mark of who created it.
func (c *Cluster) ensureNamespace(ctx context.Context, create bool) (created bool, err error) {
	there, err := c.kube.CoreV1().Namespaces().Get(ctx, c.namespace, metav1.GetOptions{})
	if err == nil && there.DeletionTimestamp != nil { // as after an interrupted installation
		err = c.until(ctx, undoPatience, func(ctx context.Context) (bool, error) {
			_, err := c.kube.CoreV1().Namespaces().Get(ctx, c.namespace, metav1.GetOptions{})
			return apierrors.IsNotFound(err), nil
		})
		if err != nil {
			return false, reason.Advise(fmt.Errorf("namespace %s is being deleted", c.namespace), "try again when it is gone")
		}
		err = apierrors.NewNotFound(corev1.Resource("namespaces"), c.namespace)
	}
	switch {
	case err == nil:
		return false, nil
	case !apierrors.IsNotFound(err):
		return false, fmt.Errorf("look for namespace %s: %w", c.namespace, err)
	case !create:
		return false, reason.Advise(fmt.Errorf("there is no namespace %s", c.namespace),
			"create it, or use --create-namespace")
	}
	namespace := &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{
		Name: c.namespace,
		Labels: map[string]string{
			names.LabelName:                      names.Sidestep,
			managedBy:                            managedByValue,
			"pod-security.kubernetes.io/enforce": "privileged",
			"pod-security.kubernetes.io/audit":   "privileged",
			"pod-security.kubernetes.io/warn":    "privileged",
		},
	}}
	_, err = c.kube.CoreV1().Namespaces().Create(ctx, namespace, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		return false, fmt.Errorf("create namespace %s: %w", c.namespace, err)
	}
	return err == nil, nil
}

// removeNamespace deletes the namespace if Install created it, and waits until it is gone.
func (c *Cluster) removeNamespace(ctx context.Context, s Settings) error {
	namespaces := c.kube.CoreV1().Namespaces()
	there, err := namespaces.Get(ctx, c.namespace, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for namespace %s: %w", c.namespace, err)
	}
	if there.Labels[managedBy] != managedByValue {
		return nil
	}
	s.step("deleting namespace %s", c.namespace)
	if err := namespaces.Delete(ctx, c.namespace, metav1.DeleteOptions{}); err != nil &&
		!apierrors.IsNotFound(err) {
		return fmt.Errorf("delete namespace %s: %w", c.namespace, err)
	}
	if s.background {
		return nil
	}
	err = c.until(ctx, s.Timeout, func(ctx context.Context) (bool, error) {
		_, err := namespaces.Get(ctx, c.namespace, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait until namespace %s is gone: %w", c.namespace, err)
	}
	return nil
}
