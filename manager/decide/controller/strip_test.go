// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/v1alpha1"
)

func TestNothingOfAnInterceptIsKeptThatIsNotRead(t *testing.T) {
	ic := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "1",
		Labels:          map[string]string{"a": "b"},
		Annotations:     map[string]string{"a": strings.Repeat("b", 1000), v1alpha1.KnowsUDP: "true"},
		OwnerReferences: []metav1.OwnerReference{{Name: "a"}}, ManagedFields: []metav1.ManagedFieldsEntry{{}}}}
	want := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: "orders", UID: "1",
		Annotations: map[string]string{v1alpha1.KnowsUDP: "true"}}}
	got, err := strip(ic)
	require.NoError(t, err)
	assert.Equal(t, want, got)
}
