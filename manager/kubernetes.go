// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"

	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	authv1 "k8s.io/api/authentication/v1"
	authzv1 "k8s.io/api/authorization/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	utilruntime "k8s.io/apimachinery/pkg/util/runtime"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/rollout"
	"sidestep.dev/sidestep/internal/version"
)

// Scheme returns the kinds with which the manager works.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme,
		authv1.AddToScheme, authzv1.AddToScheme, admissionv1.AddToScheme, v1alpha1.AddToScheme} {
		utilruntime.Must(add(s)) // it fails only if two packages register one kind
	}
	return s
}

// NewClient returns a client of the API server. It knows the resources of all kinds. So it needs no
// discovery, and works as soon as the kinds exist.
func NewClient(config *rest.Config) (client.WithWatch, error) {
	config = rest.CopyConfig(config)
	config.QPS = -1 // the API server has its own priority and fairness; a limit here would only add delay
	config.UserAgent = "sidestep-manager/" + version.Version
	mapper := meta.NewDefaultRESTMapper(nil)
	for gv, kinds := range map[schema.GroupVersion][]string{
		corev1.SchemeGroupVersion:  {"Pod", "Service", "Event", "Secret", "ConfigMap"},
		appsv1.SchemeGroupVersion:  {"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"},
		batchv1.SchemeGroupVersion: {"Job", "CronJob"},
		v1alpha1.GroupVersion:      {"Intercept", "Login"},
		rollout.GroupVersion:       {rollout.Kind},
	} {
		for _, kind := range kinds {
			mapper.Add(gv.WithKind(kind), meta.RESTScopeNamespace)
		}
	}
	mapper.Add(schema.GroupVersionKind{Group: "apiextensions.k8s.io", Version: "v1",
		Kind: "CustomResourceDefinition"}, meta.RESTScopeRoot)
	mapper.Add(authv1.SchemeGroupVersion.WithKind("TokenReview"), meta.RESTScopeRoot)
	mapper.Add(authzv1.SchemeGroupVersion.WithKind("SubjectAccessReview"), meta.RESTScopeRoot)
	for _, kind := range []string{"ValidatingAdmissionPolicy", "ValidatingAdmissionPolicyBinding"} {
		mapper.Add(admissionv1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeRoot)
	}
	c, err := client.NewWithWatch(config, client.Options{Scheme: Scheme(), Mapper: mapper})
	if err != nil {
		return nil, fmt.Errorf("make a client of the Kubernetes API: %w", err)
	}
	return c, nil
}
