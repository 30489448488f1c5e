// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"fmt"
	"io"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/internal/names"
)

// Bounds on the log of one container. Its newest lines are taken.
const (
	maxLogLines = 100_000
	maxLogBytes = 64 << 20
)

// LogOptions say which logs are wanted and where they go.
type LogOptions struct {
	Wanted   func(component, pod string) bool // component is manager or nodeagent
	PodYAML  bool                             // the pods too
	Progress func(string)
	Write    func(name string, content io.Reader)
	Problem  func(doing string, err error) // called with what could not be gathered
}

// Logs reads the logs of the installation's pods, including those of containers before their
// restart.
func (c *Cluster) Logs(ctx context.Context, o LogOptions) error {
	pods, err := c.kube.CoreV1().Pods(c.namespace).List(ctx, metav1.ListOptions{LabelSelector: selector})
	if err != nil {
		return fmt.Errorf("list the pods in namespace %s: %w", c.namespace, err)
	}
	found := false
	for i := range pods.Items {
		pod := &pods.Items[i]
		if !o.Wanted(pod.Labels[names.LabelComponent], pod.Name) {
			continue
		}
		found = true
		o.Progress("gathering the logs of " + pod.Name)
		for _, container := range pod.Spec.Containers {
			c.podLog(ctx, o, pod, container.Name, false)
			if restarted(pod, container.Name) {
				c.podLog(ctx, o, pod, container.Name, true)
			}
		}
		if o.PodYAML {
			pod.ManagedFields = nil
			text, err := yaml.Marshal(pod)
			if err != nil {
				o.Problem("write pod "+pod.Name, err)
				continue
			}
			o.Write("cluster/"+pod.Name+".yaml", bytes.NewReader(text))
		}
	}
	if !found && ctx.Err() == nil {
		o.Problem("get logs from the cluster", fmt.Errorf("no such pod in namespace %s", c.namespace))
	}
	return ctx.Err()
}

func (c *Cluster) podLog(ctx context.Context, o LogOptions, pod *corev1.Pod, container string, previous bool) {
	name := fmt.Sprintf("cluster/%s.%s.log", pod.Name, container)
	if previous {
		name = fmt.Sprintf("cluster/%s.%s.previous.log", pod.Name, container)
	}
	lines, limit := int64(maxLogLines), int64(maxLogBytes)
	text, err := c.kube.CoreV1().Pods(c.namespace).GetLogs(pod.Name, &corev1.PodLogOptions{
		Container: container, Previous: previous, TailLines: &lines, LimitBytes: &limit, Timestamps: true,
	}).DoRaw(ctx)
	if err != nil {
		o.Problem("read the log of pod "+pod.Name, err)
		return
	}
	o.Write(name, bytes.NewReader(text))
}

func restarted(pod *corev1.Pod, container string) bool {
	for _, s := range pod.Status.ContainerStatuses {
		if s.Name == container {
			return s.RestartCount > 0
		}
	}
	return false
}
