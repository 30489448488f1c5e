// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"slices"
	"strings"
	"time"

	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"sidestep.dev/sidestep/tests/cluster/internal/fabric"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/render"
)

// api talks to the API server from inside of the control plane's network namespace, so it needs no
// link to it.
type api struct{ client kubernetes.Interface }

func (c *Cluster) api(p plan.Plan) (api, error) {
	config, err := clientcmd.BuildConfigFromFlags("", c.Kubeconfig())
	if err != nil {
		return api{}, fmt.Errorf("read kubeconfig: %w", err)
	}
	config.Dial = dialer(fabric.Path(p, plan.ControlPlane))
	config.Timeout = 10 * time.Second
	config.QPS = -1
	client, err := kubernetes.NewForConfig(config)
	if err != nil {
		return api{}, fmt.Errorf("make API client: %w", err)
	}
	return api{client}, nil
}

// dialer makes connections in a network namespace. A socket stays in the one it was made in.
func dialer(netns string) func(ctx context.Context, network, address string) (net.Conn, error) {
	return func(ctx context.Context, network, address string) (conn net.Conn, err error) {
		err = machine.InNetns(netns, func() (err error) {
			conn, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return conn, err
	}
}

// probe asks a health endpoint in a network namespace.
func probe(ctx context.Context, netns, url string) error {
	client := http.Client{
		Transport: &http.Transport{DialContext: dialer(netns), DisableKeepAlives: true},
		Timeout:   2 * time.Second,
	}
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, url, nil)
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		text, _ := io.ReadAll(io.LimitReader(response.Body, 1024))
		return fmt.Errorf("%s answers %s: %s", url, response.Status, strings.TrimSpace(string(text)))
	}
	return nil
}

func (a api) ready(ctx context.Context) error {
	return a.client.Discovery().RESTClient().Get().AbsPath("/readyz").Do(ctx).Error()
}

// settled tells what the cluster still lacks.
func (a api) settled(ctx context.Context, p plan.Plan) error {
	for _, node := range p.AllNodes() {
		if err := a.nodeReady(ctx, node.Name, time.Time{}); err != nil {
			return err
		}
	}
	if _, err := a.client.CoreV1().ServiceAccounts("default").Get(ctx, "default",
		metav1.GetOptions{}); err != nil {
		return fmt.Errorf("default service account: %w", err)
	}
	return a.dnsReady(ctx)
}

// nodeReady fails unless kubelet has said, at or after a time, that the node is ready. Times in the
// API are whole seconds.
func (a api) nodeReady(ctx context.Context, name string, since time.Time) error {
	node, err := a.client.CoreV1().Nodes().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("node %s: %w", name, err)
	}
	for _, condition := range node.Status.Conditions {
		switch {
		case condition.Type != corev1.NodeReady:
		case condition.LastHeartbeatTime.Unix() < since.Unix():
			return fmt.Errorf("node %s has not reported since its start", name)
		case condition.Status != corev1.ConditionTrue:
			return fmt.Errorf("node %s is not ready: %s", name, condition.Message)
		case len(node.Spec.Taints) > 0:
			return fmt.Errorf("node %s is tainted: %s", name, node.Spec.Taints[0].ToString())
		default:
			return nil
		}
	}
	return fmt.Errorf("node %s has not reported yet", name)
}

func (a api) dnsReady(ctx context.Context) error {
	deployment, err := a.client.AppsV1().Deployments(metav1.NamespaceSystem).Get(ctx, "coredns",
		metav1.GetOptions{})
	if err != nil {
		return fmt.Errorf("CoreDNS: %w", err)
	}
	available := func(c appsv1.DeploymentCondition) bool {
		return c.Type == appsv1.DeploymentAvailable && c.Status == corev1.ConditionTrue
	}
	status := deployment.Status
	if status.ObservedGeneration < deployment.Generation ||
		status.AvailableReplicas < *deployment.Spec.Replicas ||
		!slices.ContainsFunc(status.Conditions, available) {
		return fmt.Errorf("CoreDNS: %d of %d pods are available", status.AvailableReplicas,
			*deployment.Spec.Replicas)
	}
	return nil
}

// apply makes objects as the manifest says, whatever they were before.
func (c *Cluster) apply(ctx context.Context, m machine.Machine, manifest []byte) error {
	file, err := os.CreateTemp("", "cluster-manifest-*")
	if err != nil {
		return fmt.Errorf("apply manifest: %w", err)
	}
	defer file.Close()
	defer os.Remove(file.Name())
	if _, err := file.Write(manifest); err != nil {
		return fmt.Errorf("apply manifest: %w", err)
	}
	return await(ctx, "kubectl apply", c.Wait, nil, func(context.Context) error {
		if _, err := file.Seek(0, io.SeekStart); err != nil {
			return err
		}
		output, err := c.capture(m, file, "kubectl", "--kubeconfig", render.In(render.AdminKubeconfig),
			"apply", "--server-side", "--force-conflicts", "--filename", "-")
		if err != nil {
			return errors.New(output)
		}
		return nil
	})
}

func hasLine(text, line string) bool { return slices.Contains(strings.Split(text, "\n"), line) }
