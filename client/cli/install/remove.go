// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/action"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/internal/reason"
)

// Uninstall removes the release and waits until its pods are gone: by then the node agents have
// removed everything from their nodes. The definition of intercepts stays, and so do the
// intercepts, for the next installation.
func (c *Cluster) Uninstall(ctx context.Context, s Settings) error {
	if err := c.answer(ctx); err != nil {
		return err
	}
	helm, err := c.helm()
	if err != nil {
		return err
	}
	last, err := c.lastRelease(ctx, helm)
	if err != nil {
		return err
	}
	if last == nil {
		return c.notInstalled()
	}
	return c.uninstallRelease(ctx, helm, s)
}

func (c *Cluster) uninstallRelease(ctx context.Context, helm *action.Configuration, s Settings) error {
	s.step("uninstalling the traffic manager")
	uninstall := action.NewUninstall(helm)
	uninstall.DisableHooks, uninstall.Timeout, uninstall.IgnoreNotFound = s.NoHooks, s.Timeout, true
	uninstall.DeletionPropagation = "foreground"
	if _, err := uninstall.Run(releaseName); err != nil {
		return rights(fmt.Errorf("uninstall the chart: %w", err))
	}
	if s.background {
		return nil
	}
	return c.waitPodsGone(ctx, s)
}

func (c *Cluster) waitPodsGone(ctx context.Context, s Settings) error {
	left := 0
	err := c.until(ctx, s.Timeout, func(ctx context.Context) (bool, error) {
		pods, err := c.kube.CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
		if err != nil {
			return false, fmt.Errorf("look at the pods in namespace %s: %w", c.namespace, err)
		}
		left = len(pods.Items)
		if left > 0 {
			s.step("waiting for %d pods to end", left)
		}
		return left == 0, nil
	})
	if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
		return reason.Advise(fmt.Errorf("%d pods have not ended after %s", left, s.Timeout),
			"see `kubectl get pods --namespace %s`; a node that is down keeps its pods", c.namespace)
	}
	return err
}

// RemoveEverything removes everybody's intercepts, the release, the definition of intercepts and,
// if Install created it, the namespace. What is missing is no error, so it can be run again.
func (c *Cluster) RemoveEverything(ctx context.Context, s Settings) error {
	if err := c.answer(ctx); err != nil {
		return err
	}
	helm, err := c.helm()
	if err != nil {
		return err
	}
	ended, err := c.removeIntercepts(ctx, s)
	if err != nil {
		return err
	}
	if ended > 0 {
		// The node agents remove everything from their nodes when they end in any case. Here they
		// have time for it.
		s.step("waiting for the node agents to let go")
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-time.After(c.settle):
		}
	}
	last, err := c.lastRelease(ctx, helm)
	if err != nil {
		return err
	}
	if last != nil {
		if err := c.uninstallRelease(ctx, helm, s); err != nil {
			return err
		}
	}
	for _, name := range []string{interceptCRD, loginCRD} {
		if err := c.removeCRD(ctx, s, name); err != nil {
			return err
		}
	}
	return rights(c.removeNamespace(ctx, s))
}

// removeIntercepts deletes all intercepts and waits until they are gone.
func (c *Cluster) removeIntercepts(ctx context.Context, s Settings) (int, error) {
	intercepts := c.dynamic.Resource(interceptResource)
	count := 0
	list, err := intercepts.List(ctx, metav1.ListOptions{})
	if apierrors.IsNotFound(err) {
		return 0, nil // no definition, no intercepts
	}
	if err != nil {
		return 0, rights(fmt.Errorf("list the intercepts: %w", err))
	}
	for _, i := range list.Items {
		s.step("deleting intercept %s in namespace %s", i.GetName(), i.GetNamespace())
		err := intercepts.Namespace(i.GetNamespace()).Delete(ctx, i.GetName(), metav1.DeleteOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return count, rights(fmt.Errorf("delete intercept %s in namespace %s: %w", i.GetName(),
				i.GetNamespace(), err))
		}
		count++
	}
	err = c.until(ctx, s.Timeout, func(ctx context.Context) (bool, error) {
		list, err := intercepts.List(ctx, metav1.ListOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		if err != nil {
			return false, err
		}
		return len(list.Items) == 0, nil
	})
	if err != nil {
		return count, fmt.Errorf("wait until the intercepts are gone: %w", err)
	}
	return count, nil
}

func (c *Cluster) removeCRD(ctx context.Context, s Settings, name string) error {
	s.step("deleting the definition %s", name)
	crds := c.dynamic.Resource(crdResource)
	if err := crds.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
		return rights(fmt.Errorf("delete the definition %s: %w", name, err))
	}
	if s.background {
		return nil
	}
	err := c.until(ctx, s.Timeout, func(ctx context.Context) (bool, error) {
		_, err := crds.Get(ctx, name, metav1.GetOptions{})
		if apierrors.IsNotFound(err) {
			return true, nil
		}
		return false, err
	})
	if err != nil {
		return fmt.Errorf("wait until the definition %s is gone: %w", name, err)
	}
	return nil
}
