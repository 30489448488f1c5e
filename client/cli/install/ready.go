// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// waitReady waits until manager and node agents all have the new version and are ready. If they are
// not in time, or a lasting trouble keeps them, the error says what it is.
func (c *Cluster) waitReady(ctx context.Context, s Settings) error {
	var missing []string
	var stuck stuckness
	err := c.until(ctx, s.Timeout, func(ctx context.Context) (bool, error) {
		now, err := c.notReady(ctx)
		if err != nil || len(now) == 0 {
			return err == nil, err
		}
		missing = now
		text := "waiting for " + strings.Join(missing, ", ")
		reasons, lasting := c.whyNot(ctx)
		if len(reasons) > 0 {
			text += ": " + reasons[0]
		}
		s.step("%s", text)
		if stuck.since(strings.Join(append(missing, reasons...), "\n"), lasting) >= c.stuckAfter {
			return false, errStuck
		}
		return false, nil
	})
	after := "after " + s.Timeout.String() + " still"
	switch {
	case errors.Is(err, errStuck):
		after = "not"
	case !errors.Is(err, context.DeadlineExceeded) || ctx.Err() != nil:
		return err
	}
	return c.notReadyError(ctx, after, missing)
}

// errStuck means that pods have had the same trouble for a while, and that waiting does not help.
var errStuck = errors.New("pods cannot get ready")

// stuckness is how long the same lasting troubles have been seen.
type stuckness struct {
	seen string
	from time.Time
}

func (s *stuckness) since(seen string, lasting bool) time.Duration {
	if !lasting || seen != s.seen {
		s.seen, s.from = seen, time.Now()
	}
	return time.Since(s.from)
}

func (c *Cluster) notReadyError(ctx context.Context, after string, missing []string) error {
	waiting := "waiting for "
	if after == "not" {
		after, waiting = "cannot get ready:", ""
	}
	text := fmt.Sprintf("installed, and %s %s%s", after, waiting, strings.Join(missing, ", "))
	if reasons, _ := c.whyNot(ctx); len(reasons) > 0 {
		text += ":\n    " + strings.Join(reasons, "\n    ") + "\n"
	} else {
		text += " "
	}
	return fmt.Errorf("%s— see `kubectl get pods --namespace %s`; `%s helm uninstall` removes what was "+
		"installed", text,
		c.namespace, c.program)
}

// notReady describes each workload that is not ready yet.
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

// whyNot returns what is wrong with pods that are not ready, and what kept pods from being created.
// lasting is set if it seldom passes by itself.
func (c *Cluster) whyNot(ctx context.Context) (reasons []string, lasting bool) {
	pods, err := c.kube.CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return nil, false
	}
	for _, pod := range pods.Items {
		if reason := podTrouble(pod); reason != "" {
			where := ""
			if pod.Spec.NodeName != "" {
				where = " on node " + pod.Spec.NodeName
			}
			reasons = append(reasons, fmt.Sprintf("pod %s%s: %s", pod.Name, where, reason))
			lasting = lasting || slices.ContainsFunc(lastingReasons, func(r string) bool { return strings.HasPrefix(reason, r) })
		}
	}
	events, err := c.kube.CoreV1().Events(c.namespace).List(ctx,
		metav1.ListOptions{FieldSelector: "reason=FailedCreate"})
	if err != nil {
		return reasons, lasting
	}
	for _, event := range events.Items {
		reason := fmt.Sprintf("%s %s: %s", event.InvolvedObject.Kind, event.InvolvedObject.Name, event.Message)
		if event.Reason == "FailedCreate" && !slices.Contains(reasons, reason) {
			reasons = append(reasons, reason)
		}
	}
	return reasons, lasting
}

// lastingReasons are the kubelet's reasons that waiting does not help.
var lastingReasons = []string{"ErrImagePull", "ImagePullBackOff", "InvalidImageName", "ErrImageNeverPull",
	"CreateContainerConfigError", "CreateContainerError", "CrashLoopBackOff", "RunContainerError"}

func podTrouble(pod corev1.Pod) string {
	for _, status := range slices.Concat(pod.Status.InitContainerStatuses, pod.Status.ContainerStatuses) {
		waiting := status.State.Waiting
		if waiting != nil && waiting.Reason == "ContainerCreating" {
			return fmt.Sprintf("still being created, or pulling its image %s", status.Image)
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
			return "not ready: " + condition.Message
		}
	}
	return ""
}
