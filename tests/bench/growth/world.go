// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/go-logr/logr"
	"golang.org/x/sync/errgroup"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authentication/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/util/intstr"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"
	"sigs.k8s.io/controller-runtime/pkg/log"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/manager"
)

const (
	installation = "sidestep" // its namespace
	workloads    = 1000       // of one pod each, whatever else grows
	eachOf       = 50         // workloads of a namespace
	atOnce       = 48         // requests to the API server while objects are made
)

// world is an API server of its own with the objects of a cluster, but without the programs that
// would move them: its pods are where and what the measurement says.
type world struct {
	env        *envtest.Environment
	admin      client.WithWatch
	kubeconfig string // of the manager's service account
	dir        string
	sets       []*appsv1.ReplicaSet
	pods       []*corev1.Pod
	binding    *unstructured.Unstructured // of the policy against overlaps
}

// newWorld starts an API server with the chart's kinds, rights and policies, and the workloads.
func newWorld(ctx context.Context, programs, root, dir string) (w *world, err error) {
	log.SetLogger(logr.Discard()) // what envtest logs is of no use here
	chart := filepath.Join(root, "deploy/chart")
	w = &world{dir: dir, env: &envtest.Environment{
		CRDDirectoryPaths: []string{filepath.Join(chart, "crds")}, ErrorIfCRDPathMissing: true,
		BinaryAssetsDirectory: programs,
	}}
	config, err := w.env.Start()
	if err != nil {
		return nil, fmt.Errorf("start an API server: %w", err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, w.stop())
		}
	}()
	config.QPS = -1
	if w.admin, err = client.NewWithWatch(config, client.Options{Scheme: manager.Scheme()}); err != nil {
		return nil, err
	}
	if err = w.install(ctx, chart); err != nil {
		return nil, err
	}
	w.kubeconfig = filepath.Join(dir, "manager.kubeconfig")
	if err = writeKubeconfig(w.kubeconfig, config, "system:serviceaccount:"+installation+
		":sidestep-manager"); err != nil {
		return nil, err
	}
	return w, w.populate(ctx)
}

func (w *world) stop() error { return w.env.Stop() }

// install makes what the chart has for the API server.
func (w *world) install(ctx context.Context, path string) error {
	c, err := loader.Load(path)
	if err != nil {
		return err
	}
	values, err := chartutil.ToRenderValues(c, nil,
		chartutil.ReleaseOptions{Name: installation, Namespace: installation}, chartutil.DefaultCapabilities)
	if err != nil {
		return err
	}
	rendered, err := engine.Render(c, values)
	if err != nil {
		return err
	}
	for _, o := range []client.Object{
		&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: installation}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: installation,
			Name: "sidestep-manager"}},
		&corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: installation,
			Name: "sidestep-nodeagent"}},
	} {
		if err := w.admin.Create(ctx, o); err != nil {
			return err
		}
	}
	for _, file := range []string{"manager-rbac.yaml", "overlap.yaml", "environment.yaml"} {
		for document := range strings.SplitSeq(rendered["sidestep/templates/"+file], "\n---\n") {
			u := &unstructured.Unstructured{}
			if err := yaml.Unmarshal([]byte(document), &u.Object); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
			if u.GetKind() == "" {
				continue
			}
			if u.GetKind() == "ValidatingAdmissionPolicyBinding" && file == "overlap.yaml" {
				w.binding = u
				continue
			}
			if err := w.admin.Create(ctx, u); err != nil {
				return fmt.Errorf("%s: %w", file, err)
			}
		}
	}
	return nil
}

// writeKubeconfig writes a kubeconfig for a user, with their rights and their share of the API
// server's time.
func writeKubeconfig(path string, c *rest.Config, user string) error {
	cluster := clientcmdapi.NewCluster()
	cluster.Server, cluster.CertificateAuthorityData = c.Host, c.CAData
	if !strings.Contains(cluster.Server, "://") {
		cluster.Server = "https://" + cluster.Server
	}
	who := clientcmdapi.NewAuthInfo()
	who.ClientCertificateData, who.ClientKeyData = c.CertData, c.KeyData
	who.Impersonate, who.ImpersonateGroups = user, []string{"system:serviceaccounts", "system:authenticated"}
	use := clientcmdapi.NewContext()
	use.Cluster, use.AuthInfo = "c", "u"
	config := clientcmdapi.NewConfig()
	config.Clusters["c"], config.AuthInfos["u"], config.Contexts["x"], config.CurrentContext = cluster,
		who, use, "x"
	return clientcmd.WriteToFile(*config, path)
}

func namespaceOf(workload int) string { return fmt.Sprintf("team-%d", workload/eachOf) }
func nameOf(workload int) string      { return fmt.Sprintf("app-%d", workload) }
func nodeName(n int) string           { return fmt.Sprintf("node-%d", n) }

// populate makes the workloads, still without pods.
func (w *world) populate(ctx context.Context) error {
	for n := range workloads / eachOf {
		if err := w.admin.Create(ctx,
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: namespaceOf(n * eachOf)}}); err != nil {
			return err
		}
	}
	w.sets = make([]*appsv1.ReplicaSet, workloads)
	w.pods = make([]*corev1.Pod, workloads)
	return each(ctx, workloads, func(ctx context.Context, n int) error {
		meta := func(name string) metav1.ObjectMeta {
			return metav1.ObjectMeta{Namespace: namespaceOf(
				n), Name: name}
		}
		selector := &metav1.LabelSelector{MatchLabels: map[string]string{"app": nameOf(n)}}
		d := &appsv1.Deployment{ObjectMeta: meta(nameOf(n)),
			Spec: appsv1.DeploymentSpec{Selector: selector, Template: template(n)}}
		if err := w.admin.Create(ctx, d); err != nil {
			return err
		}
		rs := &appsv1.ReplicaSet{ObjectMeta: meta(nameOf(n) + "-7d9f"),
			Spec: appsv1.ReplicaSetSpec{Selector: selector, Template: template(n)}}
		rs.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(d,
			appsv1.SchemeGroupVersion.WithKind("Deployment"))}
		if err := w.admin.Create(ctx, rs); err != nil {
			return err
		}
		w.sets[n] = rs
		return w.admin.Create(ctx, &corev1.Service{ObjectMeta: meta(nameOf(n)), Spec: corev1.ServiceSpec{
			ClusterIP: corev1.ClusterIPNone, Selector: selector.MatchLabels, Ports: []corev1.ServicePort{
				{Name: "http", Port: 80, TargetPort: intstr.FromString("web")},
				{Name: "admin", Port: 9090, TargetPort: intstr.FromInt32(otherPort)},
			},
		}})
	})
}

// Ports of each pod.
const (
	firstPort = 8080
	otherPort = 9090
)

func template(workload int) corev1.PodTemplateSpec {
	return corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: map[string]string{"app": nameOf(
		workload)}}, Spec: corev1.PodSpec{
		Containers: []corev1.Container{{
			Name: "app", Image: "app",
			Ports: []corev1.ContainerPort{{Name: "web", ContainerPort: firstPort},
				{Name: "admin", ContainerPort: otherPort}},
			Env: []corev1.EnvVar{{Name: "DATABASE", Value: "postgres://db.example/app?sslmode=require"},
				{Name: "LOG_LEVEL", Value: "info"}},
		}},
	}}
}

// police puts the policy against overlaps into force. It is not while thousands of intercepts are
// made: the API server compares each new one with all of its namespace.
func (w *world) police(ctx context.Context) (undo func(context.Context) error, err error) {
	b := w.binding.DeepCopy()
	if err := w.admin.Create(ctx, b); err != nil {
		return nil, err
	}
	return func(ctx context.Context) error { return w.admin.Delete(ctx, b) }, nil
}

// spread replaces all pods by others that are spread over so many nodes.
func (w *world) spread(ctx context.Context, nodes int) error {
	return each(ctx, workloads, func(ctx context.Context, n int) error {
		if p := w.pods[n]; p != nil {
			if err := w.admin.Delete(ctx, p, client.GracePeriodSeconds(0)); err != nil {
				return err
			}
		}
		p, err := w.addPod(ctx, n, nodeName(n%nodes))
		if err == nil {
			w.pods[n], err = p, w.runPod(ctx, p)
		}
		return err
	})
}

// addPod makes a pod that has a node, and does not run yet.
func (w *world) addPod(ctx context.Context, workload int, node string) (*corev1.Pod, error) {
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(workload),
		GenerateName: nameOf(workload) + "-7d9f-"}, Spec: template(workload).Spec}
	p.Labels = template(workload).Labels
	p.Spec.NodeName = node
	p.OwnerReferences = []metav1.OwnerReference{*metav1.NewControllerRef(w.sets[workload],
		appsv1.SchemeGroupVersion.WithKind("ReplicaSet"))}
	return p, w.admin.Create(ctx, p)
}

// runPod makes a pod ready, as a kubelet would.
func (w *world) runPod(ctx context.Context, p *corev1.Pod) error {
	p.Status = corev1.PodStatus{
		Phase: corev1.PodRunning, PodIP: "198.18.0.1", PodIPs: []corev1.PodIP{{IP: "198.18.0.1"}},
		HostIP: "192.0.2.1", HostIPs: []corev1.HostIP{{IP: "192.0.2.1"}},
		Conditions: []corev1.PodCondition{{Type: corev1.PodReady, Status: corev1.ConditionTrue}},
	}
	return w.admin.Status().Update(ctx, p)
}

// token creates a token as the kubelet projects it into the node agent of a node, and returns its
// file.
func (w *world) token(ctx context.Context, node string) (string, error) {
	file := filepath.Join(w.dir, node+".token")
	if _, err := os.Stat(file); err == nil {
		return file, nil
	}
	if err := w.admin.Create(ctx, &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: node}}); err != nil {
		return "", err
	}
	p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: installation,
		Name: "sidestep-nodeagent-" + node}, Spec: corev1.PodSpec{
		NodeName: node, ServiceAccountName: "sidestep-nodeagent",
		Containers: []corev1.Container{{Name: "nodeagent", Image: "nodeagent"}},
	}}
	if err := w.admin.Create(ctx, p); err != nil {
		return "", err
	}
	request := &authv1.TokenRequest{Spec: authv1.TokenRequestSpec{
		Audiences: []string{"sidestep-manager"},
		BoundObjectRef: &authv1.BoundObjectReference{Kind: "Pod", APIVersion: "v1", Name: p.Name,
			UID: p.UID},
	}}
	account := &corev1.ServiceAccount{ObjectMeta: metav1.ObjectMeta{Namespace: installation,
		Name: "sidestep-nodeagent"}}
	if err := w.admin.SubResource("token").Create(ctx, account, request); err != nil {
		return "", err
	}
	return file, os.WriteFile(file, []byte(request.Status.Token), 0o600)
}

// each does something for every number below n, several at once.
func each(ctx context.Context, n int, do func(ctx context.Context, i int) error) error {
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(atOnce)
	for i := range n {
		group.Go(func() error { return do(ctx, i) })
	}
	return group.Wait()
}
