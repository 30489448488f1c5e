// SPDX-License-Identifier: Apache-2.0

package workload

import (
	"context"
	"slices"
	"strconv"
	"strings"

	"google.golang.org/grpc/codes"
	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/reason"
)

// CheckPort returns an error if a workload certainly has no port of that name or number: neither the
// services that select its pods nor its containers do. The traffic manager decides about all others,
// and when something cannot be read.
func CheckPort(ctx context.Context, cluster *kube.Cluster, namespace, kind, name, port string) error {
	api, err := cluster.Client()
	if err != nil {
		return nil
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	object := newObject(kind)
	services := &corev1.ServiceList{}
	if api.Get(ctx, client.ObjectKey{Namespace: namespace, Name: name}, object) != nil ||
		api.List(ctx, services, client.InNamespace(namespace)) != nil {
		return nil
	}
	template := templateOf(object)
	if template == nil {
		return nil
	}
	known, shown := portsOf(template, services.Items)
	if len(known) == 0 || slices.Contains(known, port) {
		return nil
	}
	return reason.New(codes.InvalidArgument, reason.Invalid, "%s %s has no port %s; it has: %s", kind, name, port,
		strings.Join(shown, ", ")).
		Advise("choose one of these with --port LOCAL:PORT")
}

// portsOf returns all names and numbers of a workload's ports, and each port as people read it.
func portsOf(template *corev1.PodTemplateSpec, services []corev1.Service) (known, shown []string) {
	add := func(name string, number int32) {
		text := strconv.Itoa(int(number))
		known = append(known, name, text)
		if name != "" {
			text = name + "/" + text
		}
		if !slices.Contains(shown, text) {
			shown = append(shown, text)
		}
	}
	for _, s := range services {
		if len(s.Spec.Selector) == 0 || !labels.SelectorFromSet(s.Spec.Selector).Matches(labels.Set(template.Labels)) {
			continue
		}
		for _, p := range s.Spec.Ports {
			add(p.Name, p.Port)
			known = append(known, p.TargetPort.String())
		}
	}
	for _, c := range slices.Concat(template.Spec.Containers, template.Spec.InitContainers) {
		for _, p := range c.Ports {
			add(p.Name, p.ContainerPort)
		}
	}
	return known, shown
}

// templateOf returns the template of a workload's pods, nil for a Rollout, which may refer to another's.
func templateOf(object client.Object) *corev1.PodTemplateSpec {
	switch o := object.(type) {
	case *appsv1.Deployment:
		return &o.Spec.Template
	case *appsv1.StatefulSet:
		return &o.Spec.Template
	case *appsv1.DaemonSet:
		return &o.Spec.Template
	case *appsv1.ReplicaSet:
		return &o.Spec.Template
	case *batchv1.Job:
		return &o.Spec.Template
	case *batchv1.CronJob:
		return &o.Spec.JobTemplate.Spec.Template
	case *corev1.Pod:
		template := &corev1.PodTemplateSpec{Spec: o.Spec}
		template.Labels = o.Labels
		return template
	}
	return nil
}
