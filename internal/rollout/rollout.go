// SPDX-License-Identifier: Apache-2.0

// Package rollout reads Rollouts of Argo Rollouts, which take the place of Deployments: their pods
// belong to ReplicaSets, and those to them. Neither their types nor their controller are needed for
// it.
package rollout

import (
	"fmt"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
)

// Kind is the kind's name.
const Kind = "Rollout"

// Definition is the name of the CustomResourceDefinition.
const Definition = "rollouts.argoproj.io"

// GroupVersion is the version that is read here, the only one that there is.
var GroupVersion = schema.GroupVersion{Group: "argoproj.io", Version: "v1alpha1"}

// Rollout is what matters of one.
type Rollout struct {
	metav1.ObjectMeta
	// Template is nil where the pods are those of another workload, FromKind FromName, in the same
	// namespace.
	Template           *corev1.PodTemplateSpec
	FromKind, FromName string
	// Broken is why the template cannot be read.
	Broken string
}

// From reads the object as it is in the API.
func From(u *unstructured.Unstructured) *Rollout {
	r := &Rollout{ObjectMeta: metav1.ObjectMeta{
		Namespace: u.GetNamespace(), Name: u.GetName(), UID: u.GetUID(),
		ResourceVersion: u.GetResourceVersion(), Generation: u.GetGeneration(),
		Labels: u.GetLabels(), OwnerReferences: u.GetOwnerReferences(),
	}}
	r.FromKind, _, _ = unstructured.NestedString(u.Object, "spec", "workloadRef", "kind")
	r.FromName, _, _ = unstructured.NestedString(u.Object, "spec", "workloadRef", "name")
	template, found, err := unstructured.NestedMap(u.Object, "spec", "template")
	if err == nil && found {
		r.Template = &corev1.PodTemplateSpec{}
		err = runtime.DefaultUnstructuredConverter.FromUnstructured(template, r.Template)
	}
	if err != nil {
		r.Template, r.Broken = nil, fmt.Sprintf("its pod template cannot be read: %v", err)
	}
	return r
}

// ListOf gives an empty list of the API's objects.
func ListOf() *unstructured.UnstructuredList {
	list := &unstructured.UnstructuredList{}
	list.SetGroupVersionKind(GroupVersion.WithKind(Kind + "List"))
	return list
}

// Object gives an empty object of the API.
func Object() *unstructured.Unstructured {
	object := &unstructured.Unstructured{}
	object.SetGroupVersionKind(GroupVersion.WithKind(Kind))
	return object
}
