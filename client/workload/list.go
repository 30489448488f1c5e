// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"cmp"
	"context"
	"slices"
	"sync"

	"golang.org/x/sync/errgroup"
	"google.golang.org/grpc/codes"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/rollout"
)

// Workload is one of a kind that can be intercepted, with its intercepts.
type Workload struct {
	Kind, Name, Namespace string
	// NotInterceptable is why this one cannot be intercepted. It is empty if it can.
	NotInterceptable string
	Intercepts       []*v1alpha1.Intercept
}

// Listing is what the API server has in one namespace, or in all, at one time.
type Listing struct {
	Workloads []Workload
	// Services by namespace and name.
	Services map[client.ObjectKey]*corev1.Service
}

// key of a workload.
type key struct{ kind, namespace, name string }

// List returns the workloads of a namespace, or of all if it is "", ordered by name. installation
// is the namespace of the manager, whose ConfigMap tells what is allowed. Apart from that it needs
// no right outside of what it lists.
func List(ctx context.Context, cluster *kube.Cluster, namespace, installation string) (*Listing, error) {
	api, err := cluster.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	var f findings
	g, gctx := errgroup.WithContext(ctx)
	f.ask(g, &asker{ctx: gctx, api: api, namespace: namespace})
	if err := g.Wait(); apierrors.IsNotFound(err) {
		return nil, reason.New(codes.FailedPrecondition, reason.ManagerNotInstalled,
			"the cluster does not know Intercepts: sidestep is not installed").
			Advise("run `sidestep helm install`")
	} else if err != nil {
		return nil, cluster.Explain(err)
	}
	pods, err := f.listedPods(ctx, api, namespace)
	if err != nil {
		return nil, cluster.Explain(err)
	}
	b := newBuilder(f.services, f.intercepts)
	b.hostNetworkAllowed = sync.OnceValue(func() bool { return hostNetworkAllowed(ctx, api, installation) })
	b.addAll(&f, pods)
	slices.SortFunc(b.listing.Workloads, func(x, y Workload) int {
		return cmp.Or(cmp.Compare(x.Namespace, y.Namespace), cmp.Compare(x.Name, y.Name),
			cmp.Compare(x.Kind, y.Kind))
	})
	return b.listing, nil
}

// builder builds a Listing.
type builder struct {
	listing    *Listing
	services   map[string][]*corev1.Service // by namespace
	intercepts map[key][]*v1alpha1.Intercept

	hostNetworkAllowed func() bool
}

// hostNetworkAllowed reports whether the installation lets pods with host networking be
// intercepted. Without an answer it does not. In installations of the version before, ConfigMap
// sidestep-ca has it.
func hostNetworkAllowed(ctx context.Context, api client.Client, installation string) bool {
	for _, name := range []string{names.Config, names.CA} {
		var config corev1.ConfigMap
		err := api.Get(ctx, client.ObjectKey{Namespace: installation, Name: name}, &config)
		if answer := config.Data[names.HostNetwork]; err == nil && answer != "" {
			return answer == names.Allowed
		}
	}
	return false
}

func newBuilder(services []corev1.Service, intercepts []v1alpha1.Intercept) *builder {
	b := &builder{
		listing:    &Listing{Services: map[client.ObjectKey]*corev1.Service{}},
		services:   map[string][]*corev1.Service{},
		intercepts: map[key][]*v1alpha1.Intercept{},
	}
	for i := range services {
		s := &services[i]
		b.services[s.Namespace] = append(b.services[s.Namespace], s)
		b.listing.Services[client.ObjectKeyFromObject(s)] = s
	}
	for i := range intercepts {
		k := key{intercepts[i].Spec.Workload.Kind, intercepts[i].Namespace, intercepts[i].Spec.Workload.Name}
		b.intercepts[k] = append(b.intercepts[k], &intercepts[i])
	}
	return b
}

func (b *builder) add(kind string, object metav1.Object, template *corev1.PodTemplateSpec) {
	intercepts := b.intercepts[key{kind, object.GetNamespace(), object.GetName()}]
	slices.SortFunc(intercepts, func(x, y *v1alpha1.Intercept) int { return cmp.Compare(x.Name, y.Name) })
	b.listing.Workloads = append(b.listing.Workloads, Workload{
		Kind: kind, Name: object.GetName(), Namespace: object.GetNamespace(), Intercepts: intercepts,
		NotInterceptable: obstacle(template, b.services[object.GetNamespace()], b.hostNetworkAllowed),
	})
}

func (b *builder) addAll(f *findings, pods []corev1.Pod) {
	templates := map[key]*corev1.PodTemplateSpec{} // to which Rollouts may refer
	for i := range f.deployments {
		d := &f.deployments[i]
		templates[key{"Deployment", d.Namespace, d.Name}] = &d.Spec.Template
		b.add("Deployment", d, &d.Spec.Template)
	}
	for i := range f.statefulSets {
		b.add("StatefulSet", &f.statefulSets[i], &f.statefulSets[i].Spec.Template)
	}
	for i := range f.daemonSets {
		b.add("DaemonSet", &f.daemonSets[i], &f.daemonSets[i].Spec.Template)
	}
	for i := range f.replicaSets {
		r := &f.replicaSets[i]
		templates[key{"ReplicaSet", r.Namespace, r.Name}] = &r.Spec.Template
		b.addReplicaSet(r)
	}
	for i := range f.rollouts {
		r := rollout.From(&f.rollouts[i])
		if r.Template == nil {
			r.Template = templates[key{r.FromKind, r.Namespace, r.FromName}]
		}
		b.add(rollout.Kind, r, r.Template)
	}
	b.addBatch(f)
	for i := range pods {
		p := &pods[i]
		b.add("Pod", p, &corev1.PodTemplateSpec{ObjectMeta: metav1.ObjectMeta{Labels: p.Labels}, Spec: p.Spec})
	}
}

// addBatch leaves out most Jobs and CronJobs: those that nothing can connect to, those that are over,
// and Jobs of a CronJob. An intercept makes any of them appear.
func (b *builder) addBatch(f *findings) {
	add := func(kind string, object metav1.Object, template *corev1.PodTemplateSpec, over bool) {
		intercepted := len(b.intercepts[key{kind, object.GetNamespace(), object.GetName()}]) > 0
		hidden := over || obstacle(template, b.services[object.GetNamespace()], b.hostNetworkAllowed) != ""
		if intercepted || !hidden {
			b.add(kind, object, template)
		}
	}
	for i := range f.jobs {
		j := &f.jobs[i]
		over := slices.ContainsFunc(j.Status.Conditions, func(c batchv1.JobCondition) bool {
			return (c.Type == batchv1.JobComplete || c.Type == batchv1.JobFailed) && c.Status == corev1.ConditionTrue
		})
		add("Job", j, &j.Spec.Template, over || hasOwner("Job", j))
	}
	for i := range f.cronJobs {
		add("CronJob", &f.cronJobs[i], &f.cronJobs[i].Spec.JobTemplate.Spec.Template, false)
	}
}

// addReplicaSet leaves out those that belong to another workload: a Deployment's, and revisions of
// something else that are scaled down.
func (b *builder) addReplicaSet(r *appsv1.ReplicaSet) {
	owner := ownerKind(r)
	superseded := owner != "" && r.Spec.Replicas != nil && *r.Spec.Replicas == 0
	intercepted := len(b.intercepts[key{"ReplicaSet", r.Namespace, r.Name}]) > 0
	if (owner == "Deployment" || superseded) && !intercepted {
		return
	}
	b.add("ReplicaSet", r, &r.Spec.Template)
}

// obstacle returns why pods of a template cannot be intercepted, "" if they can.
func obstacle(template *corev1.PodTemplateSpec, services []*corev1.Service,
	hostNetworkAllowed func() bool) string {
	if template == nil {
		return "it has no pod template of its own, nor that of a Deployment or a ReplicaSet"
	}
	spec := &template.Spec
	switch {
	case isOurs(template.Labels):
		return ours
	case spec.HostNetwork && !hostNetworkAllowed():
		return "its pods use the network of their node"
	case spec.OS != nil && spec.OS.Name == corev1.Windows:
		return "its pods run on Windows"
	}
	selected := false
	for _, s := range services {
		if len(s.Spec.Selector) == 0 || s.Spec.Type == corev1.ServiceTypeExternalName ||
			!labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(template.Labels)) {
			continue
		}
		selected = true
		for _, port := range s.Spec.Ports {
			if isInterceptable(port.Protocol) {
				return ""
			}
		}
	}
	containers := slices.Clone(spec.Containers)
	for _, c := range spec.InitContainers {
		if c.RestartPolicy != nil && *c.RestartPolicy == corev1.ContainerRestartPolicyAlways {
			containers = append(containers, c)
		}
	}
	for _, c := range containers {
		for _, port := range c.Ports {
			if isInterceptable(port.Protocol) {
				return ""
			}
		}
	}
	if selected {
		return "its services have no TCP or UDP port"
	}
	return "no service and no container port"
}

// ours is why sidestep's own workloads cannot be intercepted: it would have to relay its own
// connections to itself.
const ours = "it is a part of sidestep itself"

func isOurs(labels map[string]string) bool {
	component := labels[names.LabelComponent]
	return labels[names.LabelName] == names.Sidestep &&
		(component == names.ComponentManager || component == names.ComponentNodeAgent)
}

func isInterceptable(p corev1.Protocol) bool {
	return p == "" || p == corev1.ProtocolTCP || p == corev1.ProtocolUDP
}

// SeveralPorts reports whether a service has more than one port that can be intercepted, so that it
// matters which one is meant.
func SeveralPorts(s *corev1.Service) bool {
	n := 0
	for _, port := range s.Spec.Ports {
		if isInterceptable(port.Protocol) {
			n++
		}
	}
	return n > 1
}
