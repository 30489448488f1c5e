// SPDX-License-Identifier: Apache-2.0

package install

import (
	"context"
	"errors"
	"fmt"
	"time"

	"helm.sh/helm/v3/pkg/chart"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/names"
)

var (
	crdResource = schema.GroupVersionResource{Group: "apiextensions.k8s.io", Version: "v1",
		Resource: "customresourcedefinitions"}
	interceptResource = v1alpha1.GroupVersion.WithResource("intercepts")
)

const (
	interceptCRD   = "intercepts.sidestep.dev"
	loginCRD       = "logins.sidestep.dev"
	crdEstablished = time.Minute
	// fieldManager is the owner of the applied fields in managedFields.
	fieldManager = names.Sidestep
)

// applyCRDs creates or updates the chart's definitions. helm does not update existing ones, neither
// at installation nor at upgrade. It returns the names of those that it created.
func (c *Cluster) applyCRDs(ctx context.Context, chrt *chart.Chart) (created []string, err error) {
	for _, crd := range chrt.CRDObjects() {
		wanted := &unstructured.Unstructured{}
		if err := yaml.Unmarshal(crd.File.Data, &wanted.Object); err != nil {
			return created, fmt.Errorf("read %s of the chart: %w", crd.Filename, err)
		}
		isNew, err := c.applyCRD(ctx, wanted)
		if err != nil {
			return created, fmt.Errorf("create the definition %s: %w", wanted.GetName(), err)
		}
		if isNew {
			created = append(created, wanted.GetName())
		}
		err = c.until(ctx, crdEstablished,
			func(ctx context.Context) (bool, error) { return c.established(ctx, wanted.GetName()) })
		if errors.Is(err, context.DeadlineExceeded) {
			return created, fmt.Errorf("the API server does not serve %s after %s", wanted.GetName(),
				crdEstablished)
		}
		if err != nil {
			return created, err
		}
	}
	return created, nil
}

// applyCRD applies the definition server-side. Fields of others stay, such as the CA bundle of a
// conversion webhook. Our fields that others have changed become ours again.
func (c *Cluster) applyCRD(ctx context.Context, wanted *unstructured.Unstructured) (created bool, err error) {
	crds := c.dynamic.Resource(crdResource)
	_, err = crds.Get(ctx, wanted.GetName(), metav1.GetOptions{})
	created = apierrors.IsNotFound(err)
	if err != nil && !created {
		return false, err
	}
	unstructured.RemoveNestedField(wanted.Object, "metadata", "creationTimestamp") // null, in generated files
	unstructured.RemoveNestedField(wanted.Object, "status")
	_, err = crds.Apply(ctx, wanted.GetName(), wanted, metav1.ApplyOptions{FieldManager: fieldManager, Force: true})
	return created && err == nil, err
}

func (c *Cluster) established(ctx context.Context, name string) (bool, error) {
	crd, err := c.dynamic.Resource(crdResource).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return false, err
	}
	conditions, _, _ := unstructured.NestedSlice(crd.Object, "status", "conditions")
	for _, condition := range conditions {
		if m, ok := condition.(map[string]any); ok && m["type"] == "Established" && m["status"] == "True" {
			return true, nil
		}
	}
	return false, nil
}
