// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import (
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// Intercept asks that traffic of one port of one workload goes to the laptop of one developer:
// every connection or, of a UDP port, every datagram (mechanism tcp), or the HTTP requests that
// match (mechanism http). It is created, and deleted, by the developer's own account, so RBAC
// decides who may intercept what; the manager only writes its status.
//
// +kubebuilder:object:root=true
// +kubebuilder:subresource:status
// +kubebuilder:resource:path=intercepts,singular=intercept,shortName=icept,categories=sidestep
// +kubebuilder:printcolumn:name="Workload",type=string,JSONPath=`.spec.workload.name`
// +kubebuilder:printcolumn:name="Port",type=string,JSONPath=`.status.port`
// +kubebuilder:printcolumn:name="Holder",type=string,JSONPath=`.spec.client.holder`
// +kubebuilder:printcolumn:name="Intercepting",type=string,JSONPath=`.status.intercepting`
// +kubebuilder:printcolumn:name="State",type=string,JSONPath=`.status.state`
// +kubebuilder:printcolumn:name="Pods",type=string,JSONPath=`.status.coverage`
// +kubebuilder:printcolumn:name="Message",type=string,JSONPath=`.status.message`,priority=1
// +kubebuilder:printcolumn:name="Age",type=date,JSONPath=`.metadata.creationTimestamp`
type Intercept struct {
	metav1.TypeMeta   `json:",inline"`
	metav1.ObjectMeta `json:"metadata,omitempty"`

	// +required
	Spec   InterceptSpec   `json:"spec"`
	Status InterceptStatus `json:"status,omitempty"`
}

// InterceptList is a list of Intercepts.
//
// +kubebuilder:object:root=true
type InterceptList struct {
	metav1.TypeMeta `json:",inline"`
	metav1.ListMeta `json:"metadata,omitempty"`
	Items           []Intercept `json:"items"`
}

// Mechanism says what is taken: whole connections or single requests.
//
// +kubebuilder:validation:Enum=tcp;http
type Mechanism string

// The mechanisms.
const (
	MechanismTCP  Mechanism = "tcp"
	MechanismHTTP Mechanism = "http"
)

// Protocol is that of a port.
//
// +kubebuilder:validation:Enum=TCP;UDP
type Protocol string

// The protocols.
const (
	ProtocolTCP Protocol = "TCP"
	ProtocolUDP Protocol = "UDP"
)

// KnowsUDP is an annotation, "true" on intercepts whose holder knows what to do with datagrams.
// Without it, and without spec.protocol, the port is one of TCP.
const KnowsUDP = "sidestep.dev/knows-udp"

// InterceptSpec is what the developer asks for. Nothing in it can change after creation except the
// service, the port, the container, plaintext, environment, toPod and the destination: that is how
// an intercept moves to another port without a gap.
//
// +kubebuilder:validation:XValidation:rule="self.mechanism == 'http' || !has(self.http)",message="spec.http needs mechanism http: a tcp intercept takes every connection"
// +kubebuilder:validation:XValidation:rule="self.mechanism == 'tcp' || !has(self.protocol) || self.protocol == 'TCP'",message="spec.protocol UDP needs mechanism tcp, which takes every datagram: there are no HTTP requests in them"
// +kubebuilder:validation:XValidation:rule="has(self.protocol) == has(oldSelf.protocol) && (!has(self.protocol) || self.protocol == oldSelf.protocol)",message="the protocol of an intercept cannot change: delete it and create another"
// +kubebuilder:validation:XValidation:rule="self.mechanism == oldSelf.mechanism && self.name == oldSelf.name && self.workload == oldSelf.workload && self.client == oldSelf.client && has(self.existing) == has(oldSelf.existing) && (!has(self.existing) || self.existing == oldSelf.existing) && has(self.http) == has(oldSelf.http) && (!has(self.http) || self.http == oldSelf.http)",message="name, workload, mechanism, http, existing and client of an intercept cannot change: delete it and create another"
// +kubebuilder:validation:XValidation:rule="(has(self.wiretap) && self.wiretap) == (has(oldSelf.wiretap) && oldSelf.wiretap)",message="an intercept cannot become a wiretap, nor a wiretap an intercept: delete it and create another"
type InterceptSpec struct {
	// Name is what the developer calls the intercept; unique per client.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	// +kubebuilder:validation:Pattern=`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`
	Name string `json:"name"`

	// Workload is the owner of the pods, in the namespace of the Intercept.
	Workload WorkloadReference `json:"workload"`

	// Service selects the service when several select the workload's pods.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Service string `json:"service,omitempty"`

	// Port is a service port by name or number, or a container port where the workload has no
	// service. It may be left out when there is just one.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Port string `json:"port,omitempty"`

	// Protocol chooses between a TCP and a UDP port of the same number. Without it the port may be
	// either if the annotation sidestep.dev/knows-udp is "true", and is one of TCP otherwise.
	// +optional
	Protocol Protocol `json:"protocol,omitempty"`

	// Container names the container whose environment and ports are meant, when it cannot be told
	// from the port.
	// +optional
	// +kubebuilder:validation:MaxLength=63
	Container string `json:"container,omitempty"`

	// Mechanism is tcp (every connection, or every datagram) or http (matching requests).
	Mechanism Mechanism `json:"mechanism"`

	// HTTP narrows mechanism http; when it is absent or empty every HTTP request matches.
	// +optional
	HTTP *HTTPMatch `json:"http,omitempty"`

	// Wiretap leaves the traffic with the app, and gives a copy of it to the laptop. Copies are
	// bounded: those for which there is no room are dropped. A wiretap overlaps with nothing. Its
	// client.keyHash is WiretapKeyHash of the session's.
	// +optional
	Wiretap bool `json:"wiretap,omitempty"`

	// Plaintext says that the app behind the port speaks plaintext, although the port's name or
	// appProtocol says TLS. Without it, mechanism http is refused on such a port.
	// +optional
	Plaintext bool `json:"plaintext,omitempty"`

	// Environment lets the holder read the environment of the container's process. The
	// ValidatingAdmissionPolicy sidestep-environment admits it only from those who may get
	// intercepts/environment in the namespace.
	// +optional
	Environment bool `json:"environment,omitempty"`

	// ToPod are ports of the intercepted pods that the holder's laptop may connect to, on a
	// loopback address of the pod or the pod's own. Pods on their node's network are left out:
	// their loopback is the node's.
	// +optional
	// +listType=set
	// +kubebuilder:validation:MaxItems=16
	// +kubebuilder:validation:items:Minimum=1
	// +kubebuilder:validation:items:Maximum=65535
	ToPod []int32 `json:"toPod,omitempty"`

	// Existing says what becomes of connections that were open before the intercept.
	// +kubebuilder:validation:Enum=auto;idle;all;none
	// +kubebuilder:default=auto
	// +optional
	Existing string `json:"existing,omitempty"`

	// Client is who holds the intercept.
	Client ClientReference `json:"client"`

	// Destination is where the laptop delivers, for the reader's information.
	// +optional
	Destination Destination `json:"destination,omitempty"`
}

// WorkloadKinds are the kinds of workloads that can be intercepted, in the order in which a name is
// looked for.
var WorkloadKinds = []string{"Deployment", "StatefulSet", "DaemonSet", "Rollout", "ReplicaSet", "Pod", "Job",
	"CronJob"}

// WorkloadReference names a workload in the Intercept's own namespace.
type WorkloadReference struct {
	// Kind is one of those of Kubernetes, where a Pod is one that no other workload owns, or a
	// Rollout of Argo Rollouts (argoproj.io).
	// +kubebuilder:validation:Enum=Deployment;ReplicaSet;StatefulSet;DaemonSet;Pod;Rollout;Job;CronJob
	Kind string `json:"kind"`
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=253
	Name string `json:"name"`
}

// HTTPMatch lists conditions that must all hold for a request to match.
type HTTPMatch struct {
	// Headers must all be matched; a header that a request carries several times matches by any of
	// its values.
	// +optional
	// +kubebuilder:validation:MaxItems=16
	Headers []HeaderMatch `json:"headers,omitempty"`
	// Path is compared with the request's path, without its query.
	// +optional
	Path *PathMatch `json:"path,omitempty"`
}

// HeaderMatch compares one header field by exact value or by regular expression.
//
// +kubebuilder:validation:XValidation:rule="has(self.value) != has(self.regex)",message="give either value or regex, and not both"
type HeaderMatch struct {
	// Name is compared without regard to case (RFC 9110 §5.1).
	// +kubebuilder:validation:Pattern=`^[!#$%&'*+.^_|~0-9A-Za-z\x60-]+$`
	// +kubebuilder:validation:MaxLength=256
	Name string `json:"name"`
	// Value must be equal, byte for byte.
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Value *string `json:"value,omitempty"`
	// Regex is an RE2 expression that must match the whole value. An expression that compiles to
	// more than 2,000 instructions makes the intercept INVALID, and a value of more than 8 KiB does
	// not match.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Regex *string `json:"regex,omitempty"`
}

// PathMatch compares the path in exactly one way.
//
// +kubebuilder:validation:XValidation:rule="[has(self.equal), has(self.prefix), has(self.regex)].filter(x, x).size() == 1",message="give exactly one of equal, prefix and regex"
type PathMatch struct {
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Equal *string `json:"equal,omitempty"`
	// +optional
	// +kubebuilder:validation:MaxLength=4096
	Prefix *string `json:"prefix,omitempty"`
	// Regex is an RE2 expression that must match the whole path, within the bounds of that for a
	// header.
	// +optional
	// +kubebuilder:validation:MaxLength=512
	Regex *string `json:"regex,omitempty"`
}

// ClientReference identifies the session that holds an intercept.
type ClientReference struct {
	// Session is the UUID of the client's session.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`
	Session string `json:"session"`
	// Holder is user@host, to tell people whose intercept this is. It proves nothing.
	// +kubebuilder:validation:MinLength=1
	// +kubebuilder:validation:MaxLength=320
	// +kubebuilder:validation:Pattern=`^[^\x00-\x1f\x7f-\x9f]+$`
	Holder string `json:"holder"`
	// KeyHash is the hex SHA-256 of the session key. Only a client that shows the key to the
	// manager receives the traffic.
	// +kubebuilder:validation:Pattern=`^[0-9a-f]{64}$`
	KeyHash string `json:"keyHash"`
	// User is the Kubernetes user name of whoever created the intercept. The
	// ValidatingAdmissionPolicy sidestep-holder makes the API server vouch for it, and lets nobody
	// else change the spec. Laptops of older versions leave it out.
	// +optional
	// +kubebuilder:validation:MaxLength=1024
	User string `json:"user,omitempty"`
}

// Destination is a local address on the laptop.
type Destination struct {
	// +optional
	Address string `json:"address,omitempty"`
	// +optional
	// +kubebuilder:validation:Minimum=0
	// +kubebuilder:validation:Maximum=65535
	Port int32 `json:"port,omitempty"`
}

// State sums up an intercept for people; conditions say it for programs.
type State string

// The states of an intercept.
const (
	// StatePending: being resolved, or not every ready pod is steering yet.
	StatePending State = "PENDING"
	// StateActive: every ready pod steers and a probe through each came back.
	StateActive State = "ACTIVE"
	// StateNoPods: accepted, and there is no ready pod at the moment.
	StateNoPods State = "NO_PODS"
	// StateDisconnected: the laptop is away; its requests go to the app meanwhile.
	StateDisconnected State = "DISCONNECTED"
	// StateConflict: another intercept holds the same requests.
	StateConflict State = "CONFLICT"
	// StateInvalid: the workload, service or port cannot be resolved, or a rule is wrong.
	StateInvalid State = "INVALID"
	// StateFailed: a ready pod cannot be steered; the message says why.
	StateFailed State = "FAILED"
)

// Condition types of an intercept.
const (
	// ConditionResolved: workload, service and port were found.
	ConditionResolved = "Resolved"
	// ConditionAccepted: no other intercept holds the same requests.
	ConditionAccepted = "Accepted"
	// ConditionConnected: the holder's laptop is connected to the manager.
	ConditionConnected = "Connected"
	// ConditionReady: every ready pod steers to the holder.
	ConditionReady = "Ready"
	// ConditionAnswered: in the last minute, the laptop answered every request that matched. Its
	// reason is that of the newest in status.unanswered.
	ConditionAnswered = "Answered"
)

// InterceptStatus is what the manager found and did.
type InterceptStatus struct {
	// +optional
	ObservedGeneration int64 `json:"observedGeneration,omitempty"`
	// +optional
	State State `json:"state,omitempty"`
	// Message says in one sentence why State is not ACTIVE, or what keeps an ACTIVE intercept from
	// receiving anything.
	// +optional
	Message string `json:"message,omitempty"`
	// Service is the service that was resolved; empty when the workload has none.
	// +optional
	Service string `json:"service,omitempty"`
	// Port is the resolved port as people write it: the service port's name, else its number.
	// +optional
	Port string `json:"port,omitempty"`
	// ServicePort is the resolved service port's number; 0 without a service.
	// +optional
	ServicePort int32 `json:"servicePort,omitempty"`
	// Protocol is that of the resolved port, if it is not TCP.
	// +optional
	Protocol Protocol `json:"protocol,omitempty"`
	// Container is the container that has the port.
	// +optional
	Container string `json:"container,omitempty"`
	// Intercepting describes the rule in one line.
	// +optional
	Intercepting string `json:"intercepting,omitempty"`
	// Coverage is steering pods / ready pods, as in "2/2".
	// +optional
	Coverage string `json:"coverage,omitempty"`
	// Pods lists every ready pod, and those that cannot be steered with their reason.
	// +optional
	// +listType=map
	// +listMapKey=name
	Pods []PodStatus `json:"pods,omitempty"`
	// Unanswered counts the requests that matched and that the laptop did not answer, by reason,
	// the newest first. Counts are a few seconds old, and begin anew with a node agent or a pod.
	// +optional
	// +listType=map
	// +listMapKey=reason
	Unanswered []Unanswered `json:"unanswered,omitempty"`
	// +optional
	// +listType=map
	// +listMapKey=type
	Conditions []metav1.Condition `json:"conditions,omitempty"`
}

// Unanswered are requests that matched an intercept and that the laptop did not answer, for one
// reason. The app got them or, where it could not have them any more, the client an error.
type Unanswered struct {
	// Reason is a word such as LocalTLS.
	Reason string `json:"reason"`
	Count  int64  `json:"count"`
	// Last is when the newest of them was seen.
	// +optional
	Last metav1.Time `json:"last,omitempty"`
}

// PodStatus is the state of one pod of the workload.
type PodStatus struct {
	Name string `json:"name"`
	// +optional
	Node string `json:"node,omitempty"`
	// Port is the container port that is steered, in this pod.
	// +optional
	Port int32 `json:"port,omitempty"`
	// Steering: the datapath is in place and a probe through it came back.
	Steering bool `json:"steering"`
	// Message says why not, or why steering leads to nothing.
	// +optional
	Message string `json:"message,omitempty"`
}
