// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// MaxLoginAge bounds how long after its creation a Login proves anything, whatever it says itself.
const MaxLoginAge = "24h"

// Login is the API server's word that whoever knows a session key acts for a Kubernetes user. The
// user's own account creates it in the namespace of the installation. The
// ValidatingAdmissionPolicy sidestep-login admits it only if user and groups are those of the
// request, so no credential of the user's ever reaches the manager. Deleting it ends the sessions
// that rest on it.
//
// +kubebuilder:object:root=true
// +kubebuilder:resource:path=logins,singular=login,categories=sidestep
// +kubebuilder:printcolumn:name="User",type=string,JSONPath=`.spec.user`
// +kubebuilder:printcolumn:name="Expires",type=date,JSONPath=`.spec.expires`
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Login struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec LoginSpec `json:"spec"`
}

// LoginList is a list of Logins.
//
// +kubebuilder:object:root=true
type LoginList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Login `json:"items"`
}

// LoginSpec is what the API server vouches for. It never changes: a session that goes on creates
// another Login before this one expires.
//
// +kubebuilder:validation:XValidation:rule="self == oldSelf",message="a login cannot change: delete it and create another"
type LoginSpec struct {
	// User is the Kubernetes user name of whoever created the Login.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=1024
	User string `json:"user"`
	// Groups are Kubernetes groups that the user was a member of when the Login was created. They
	// may be left out.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=256
	// +kubebuilder:validation:items:MaxLength=1024
	Groups []string `json:"groups,omitempty"`
	// KeyHash is the hex SHA-256 of the session key.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	KeyHash string `json:"keyHash"`
	// Expires is when the Login ceases to prove anything. The manager takes no more than 24 hours
	// from the Login's creation, by the API server's clock.
	Expires metav1.Time `json:"expires"`
}
