// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"sidestep.dev/sidestep/tests/apps/load"
	"sidestep.dev/sidestep/tests/apps/manifests"
	"sidestep.dev/sidestep/tests/apps/shop"
)

// Namespace is the shop's namespace.
const Namespace = manifests.DefaultNamespace

// upShop applies the sample workloads and waits until all of them are ready.
func (l *Lab) upShop(ctx context.Context) error {
	image, pullPolicy := l.AppsImage()
	yaml, err := manifests.Render(manifests.Options{Image: image, PullPolicy: pullPolicy})
	if err != nil {
		return err
	}
	fmt.Fprintln(l.out, "applying the shop")
	if err := l.Apply(ctx, yaml); err != nil {
		return err
	}
	for _, workload := range []string{"deployment/frontend", "deployment/orders", "statefulset/stock",
		"deployment/twoports", "deployment/echo", "deployment/greeter", "daemonset/client"} {
		if _, err := l.Kubectl(ctx, "-n", Namespace, "rollout", "status", workload,
			"--timeout=120s"); err != nil {
			return fmt.Errorf("the shop is not ready: %w", err)
		}
	}
	return nil
}

// AppsImage returns the image of the sample workloads and its pull policy.
func (l *Lab) AppsImage() (image, pullPolicy string) {
	if registry := os.Getenv("IMAGE_REGISTRY"); registry != "" {
		return registry + "/sidestep/apps:" + l.tag, "IfNotPresent"
	}
	return "docker.io/sidestep/apps:" + l.tag, "Never"
}

// Apply makes the cluster's objects as the YAML says, with the administrator's rights.
func (l *Lab) Apply(ctx context.Context, yaml string) error {
	apply := l.kubectl(ctx, "apply", "--server-side", "--force-conflicts", "-f", "-")
	apply.Stdin = strings.NewReader(yaml)
	_, err := Output(apply)
	return err
}

// kubectl returns a command with the administrator's rights.
func (l *Lab) kubectl(ctx context.Context, args ...string) *exec.Cmd {
	if l.local {
		return exec.CommandContext(ctx, l.bin("cluster"), append([]string{"kubectl"}, args...)...)
	}
	return exec.CommandContext(ctx, "kubectl", args...)
}

// Kubectl runs kubectl with the administrator's rights and returns what it prints.
func (l *Lab) Kubectl(ctx context.Context, args ...string) (string, error) {
	return Output(l.kubectl(ctx, args...))
}

// Pod is what the lab knows of a pod.
type Pod struct {
	Name, Node, IP, UID string
	Restarts            int
	Ready               bool
}

// Pods lists the pods that a label selector selects and that are there to stay, by name.
func (l *Lab) Pods(ctx context.Context, namespace, selector string) ([]Pod, error) {
	text, err := l.Kubectl(ctx, "-n", namespace, "get", "pods", "-l", selector, "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name, UID         string
				DeletionTimestamp *time.Time
			}
			Spec   struct{ NodeName string }
			Status struct {
				PodIP             string
				Conditions        []struct{ Type, Status string }
				ContainerStatuses []struct{ RestartCount int }
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	var pods []Pod
	for _, item := range list.Items {
		if item.Metadata.DeletionTimestamp != nil {
			continue
		}
		pod := Pod{Name: item.Metadata.Name, UID: item.Metadata.UID, Node: item.Spec.NodeName,
			IP: item.Status.PodIP}
		for _, c := range item.Status.ContainerStatuses {
			pod.Restarts += c.RestartCount
		}
		for _, c := range item.Status.Conditions {
			pod.Ready = pod.Ready || c.Type == "Ready" && c.Status == "True"
		}
		pods = append(pods, pod)
	}
	slices.SortFunc(pods, func(a, b Pod) int { return strings.Compare(a.Name, b.Name) })
	return pods, nil
}

// clients are the pods to call the shop from, one a node.
func (l *Lab) clients(ctx context.Context) ([]Pod, error) {
	pods, err := l.Pods(ctx, Namespace, "app=client")
	if err == nil && len(pods) == 0 {
		err = fmt.Errorf("no client pods in namespace %s", Namespace)
	}
	return pods, err
}

// Call sends one HTTP request from a pod of the cluster and returns who answered.
func (l *Lab) Call(ctx context.Context, url string, headers ...string) (*shop.Answer, error) {
	clients, err := l.clients(ctx)
	if err != nil {
		return nil, err
	}
	args := []string{"-n", Namespace, "exec", clients[0].Name, "--", "/apps", "call", url}
	for _, h := range headers {
		args = append(args, "-H", h)
	}
	text, err := l.Kubectl(ctx, args...)
	if err != nil {
		return nil, err
	}
	answer := new(shop.Answer)
	if err := json.Unmarshal([]byte(text), answer); err != nil {
		return nil, fmt.Errorf("answer of %s: %w: %q", url, err, text)
	}
	return answer, nil
}

// Load runs `apps load` with the given arguments in a client pod; the pod is chosen by node number,
// from 0.
func (l *Lab) Load(ctx context.Context, node int, args ...string) (*load.Summary, error) {
	clients, err := l.clients(ctx)
	if err != nil {
		return nil, err
	}
	pod := clients[node%len(clients)]
	text, err := l.Kubectl(ctx,
		append([]string{"-n", Namespace, "exec", pod.Name, "--", "/apps", "load"}, args...)...)
	if err != nil {
		return nil, err
	}
	summary := new(load.Summary)
	if err := json.Unmarshal([]byte(text), summary); err != nil {
		return nil, fmt.Errorf("summary of the load: %w: %q", err, text)
	}
	return summary, nil
}

// Snapshot returns what an intercept must not change in the shop's workloads: every spec, and each
// pod's identity and restarts.
func (l *Lab) Snapshot(ctx context.Context) (map[string]string, error) {
	text, err := l.Kubectl(ctx, "-n", Namespace, "get",
		"deployments,replicasets,statefulsets,daemonsets,pods,services", "-o", "json")
	if err != nil {
		return nil, err
	}
	var list struct {
		Items []struct {
			Kind     string
			Metadata struct {
				Name, UID           string
				Generation          int64
				Labels, Annotations map[string]string
			}
			Spec   json.RawMessage
			Status struct {
				ContainerStatuses []struct {
					ContainerID  string
					RestartCount int
				}
			}
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, err
	}
	seen := map[string]string{}
	for _, item := range list.Items {
		all, err := json.Marshal(item)
		if err != nil {
			return nil, err
		}
		seen[item.Kind+"/"+item.Metadata.Name] = string(all)
	}
	return seen, nil
}

// Eventually tries f every 50 ms until it succeeds or the time is over; then it returns f's last
// error.
func Eventually(ctx context.Context, within time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	var last error
	for {
		if err := f(ctx); err == nil {
			return nil
		} else if ctx.Err() == nil || last == nil {
			last = err
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("not within %s: %w", within, last)
		case <-time.After(50 * time.Millisecond):
		}
	}
}
