// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// waitReady waits until manager and node agents are all of the new version and ready. When they are
// not in time, the error says what keeps them.
func (c *Cluster) waitReady(ctx context.Context, s Settings) error {
	var missing []string
	err := c.until(ctx, s.Timeout, func(ctx context.Context) (bool, error) {
		now, err := c.notReady(ctx)
		if err != nil {
			return false, err
		}
		missing = now
		if len(missing) > 0 {
			s.step("waiting for %s", strings.Join(missing, ", "))
		}
		return len(missing) == 0, nil
	})
	if !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil {
		return err
	}
	text := fmt.Sprintf("installed, and after %s still waiting for %s", s.Timeout, strings.Join(missing, ", "))
	if reasons := c.whyNot(ctx); len(reasons) > 0 {
		text += ":\n    " + strings.Join(reasons, "\n    ") + "\n"
	} else {
		text += " "
	}
	return fmt.Errorf("%s— see `kubectl get pods --namespace %s`; `%s helm uninstall` removes what was installed", text, c.namespace, c.program)
}

// notReady describes each workload that is not yet as it should be.
func (c *Cluster) notReady(ctx context.Context) ([]string, error) {
	options := metav1.ListOptions{LabelSelector: selector}
	deployments, err := c.kube.AppsV1().Deployments(c.namespace).List(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("look at the deployments in namespace %s: %w", c.namespace, err)
	}
	daemonSets, err := c.kube.AppsV1().DaemonSets(c.namespace).List(ctx, options)
	if err != nil {
		return nil, fmt.Errorf("look at the daemon sets in namespace %s: %w", c.namespace, err)
	}
	var missing []string
	for _, d := range deployments.Items {
		if ready, of := deploymentReady(d); ready < of || d.Status.ObservedGeneration < d.Generation {
			missing = append(missing, fmt.Sprintf("%s %d/%d", d.Name, ready, of))
		}
	}
	for _, d := range daemonSets.Items {
		of := d.Status.DesiredNumberScheduled
		ready := min(d.Status.NumberAvailable, d.Status.UpdatedNumberScheduled)
		if ready < of || d.Status.ObservedGeneration < d.Generation {
			missing = append(missing, fmt.Sprintf("%s %d/%d", d.Name, ready, of))
		}
	}
	return missing, nil
}

func deploymentReady(d appsv1.Deployment) (ready, of int32) {
	of = 1
	if d.Spec.Replicas != nil {
		of = *d.Spec.Replicas
	}
	ready = min(d.Status.AvailableReplicas, d.Status.UpdatedReplicas)
	if d.Status.Replicas > d.Status.UpdatedReplicas {
		ready = min(ready, of-1) // pods of the version before are still there
	}
	return max(ready, 0), of
}

// whyNot tells what is wrong with pods that are not ready, and what kept pods from being made.
func (c *Cluster) whyNot(ctx context.Context) []string {
	var reasons []string
	pods, err := c.kube.CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil
	}
	for _, pod := range pods.Items {
		if reason := podTrouble(pod); reason != "" {
			reasons = append(reasons, fmt.Sprintf("pod %s: %s", pod.Name, reason))
		}
	}
	events, err := c.kube.CoreV1().Events(c.namespace).List(ctx,
		metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
	if err != nil {
		return reasons
	}
	for _, event := range events.Items {
		reason := fmt.Sprintf("%s %s: %s", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Message)
		if event.Reason == "FailedCreate" && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	return reasons
}

func podTrouble(pod corev1.Pod) string {
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		waiting := status.State.Waiting
		if waiting != nil && waiting.Reason == "ContainerCreating" {
			return fmt.Sprintf("node %s is still creating it, or pulling its image %s",
				pod.Spec.NodeName, status.Image)
		}
		if waiting != nil && waiting.Reason != "PodInitializing" {
			text := waiting.Reason
			if waiting.Message != "" {
				text += ": " + waiting.Message
			}
			if last := status.LastTerminationState.Terminated; last != nil && last.Message != "" {
				text += ": " + strings.TrimSpace(last.Message)
			}
			return text
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Status == corev1.ConditionFalse && condition.Type == corev1.PodScheduled {
			return condition.Reason + ": " + condition.Message
		}
	}
	for _, condition := range pod.Status.Conditions {
		if condition.Status == corev1.ConditionFalse && condition.Type == corev1.PodReady {
			return fmt.Sprintf("not ready on node %s: %s", pod.Spec.NodeName, condition.Message)
		}
	}
	return ""
}
