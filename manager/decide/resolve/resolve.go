// SPDX-License-Identifier: Apache-2.0

// Package resolve finds what an Intercept means in the cluster now: from the workload that it names
// to the service, the service port, the container port and the pods. It reads, and decides nothing
// else.
package resolve

import (
	"fmt"

	appsv1 "k8s.io/api/apps/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/rollout"
	"sidestep.dev/sidestep/manager/endpoint"
)

// Cluster is what resolving reads. Objects that do not exist are nil. Callers must not change what
// is returned.
type Cluster interface {
	Deployment(namespace, name string) *appsv1.Deployment
	ReplicaSet(namespace, name string) *appsv1.ReplicaSet
	StatefulSet(namespace, name string) *appsv1.StatefulSet
	DaemonSet(namespace, name string) *appsv1.DaemonSet
	Pod(namespace, name string) *corev1.Pod
	Rollout(namespace, name string) *rollout.Rollout
	Job(namespace, name string) *batchv1.Job
	CronJob(namespace, name string) *batchv1.CronJob
	// ReplicaSetsOf, JobsOf and PodsOf return the objects whose controller has this UID.
	ReplicaSetsOf(owner types.UID) []*appsv1.ReplicaSet
	JobsOf(owner types.UID) []*batchv1.Job
	PodsOf(owner types.UID) []*corev1.Pod
	Services(namespace string) []*corev1.Service
}

// Reasons why an intercept cannot be resolved, as they appear in conditions.
const (
	WorkloadNotFound     = "WorkloadNotFound"
	ServiceNotFound      = "ServiceNotFound"
	ServiceAmbiguous     = "ServiceAmbiguous"
	PortNotFound         = "PortNotFound"
	PortAmbiguous        = "PortAmbiguous"
	ProtocolNotSupported = "ProtocolNotSupported"
	PortSpeaksTLS        = "PortSpeaksTLS"
	ContainerNotFound    = "ContainerNotFound"
	RuleInvalid          = "RuleInvalid"
	RulesTooLarge        = "RulesTooLarge"
)

// Invalid says why an intercept cannot be resolved, and what its holder can do about it.
type Invalid struct {
	Reason  string
	Message string // what is wrong
	Advice  string // what to do about it; may be empty
}

// Error returns what is wrong and what to do about it, as the intercept's status has it.
func (e *Invalid) Error() string {
	if e.Advice == "" {
		return e.Message
	}
	return e.Message + reason.Dash + e.Advice
}

// advise returns e with what to do about it.
func (e *Invalid) advise(format string, args ...any) *Invalid {
	advised := *e
	advised.Advice = fmt.Sprintf(format, args...)
	return &advised
}

func invalid(why, format string, args ...any) *Invalid {
	return &Invalid{Reason: why, Message: fmt.Sprintf(format, args...)}
}

// Resolution is what an intercept means.
type Resolution struct {
	// Owners are the UIDs of the workload and, for a Deployment or a Rollout, of its ReplicaSets.
	Owners []types.UID
	// TemplatePort is the container port in the workload's pod template.
	TemplatePort int32
	Service      string // empty: the workload has none
	// service port by name, else by number; the container port's if there is no service
	Port        string
	Protocol    v1alpha1.Protocol
	ServicePort int32
	Container   string
	Pods        []Pod
}

// Pod is one pod of the workload that is on a node and has an address.
type Pod struct {
	*corev1.Pod
	// Port is the container port in this pod. It is 0 if the pod has no such port. The service then
	// does not lead to the pod either.
	Port int32
	// Counts is set if new connections may be sent to the pod, so that it must steer before the
	// intercept is active. Other pods are steered too, so that they already are when they count.
	Counts bool
	// Problem is why the pod has no port.
	Problem string
}

// Intercept resolves one intercept. The error is always an *Invalid.
func Intercept(c Cluster, ic *v1alpha1.Intercept) (*Resolution, error) {
	w, err := findWorkload(c, ic.Namespace, ic.Spec.Workload)
	if err != nil {
		return nil, err
	}
	p, err := findPort(c, ic, w)
	if err != nil {
		return nil, err
	}
	res := &Resolution{
		Owners: w.owners, TemplatePort: p.template, Service: p.service, Port: p.display,
		Protocol: v1alpha1.Protocol(p.protocol), ServicePort: p.number, Container: p.container,
	}
	services := publishing(c.Services(ic.Namespace))
	terminating := map[types.UID]bool{} // pods that serve while they terminate
	served := false
	for _, pod := range w.pods {
		st := endpoint.Of(pod, selecting(services, pod))
		placed, ok := steerable(pod, p, st)
		if !ok {
			continue
		}
		res.Pods = append(res.Pods, placed)
		served = served || placed.Counts
		terminating[pod.UID] = st.Serving && st.Terminating
	}
	if !served {
		// If there are no other pods, new connections go to terminating ones.
		for i := range res.Pods {
			res.Pods[i].Counts = terminating[res.Pods[i].UID]
		}
	}
	return res, nil
}

// steerable reports whether the pod has to be steered at all. Pods that do not serve yet have to
// be, so that they are steered from the moment they serve.
func steerable(pod *corev1.Pod, p *port, st endpoint.State) (Pod, bool) {
	ended := pod.Status.Phase == corev1.PodSucceeded || pod.Status.Phase == corev1.PodFailed
	if ended || pod.Spec.NodeName == "" || len(Addresses(pod)) == 0 || st.Terminating && !st.Serving {
		return Pod{}, false
	}
	placed := Pod{Pod: pod, Counts: st.Serving && !st.Terminating}
	if placed.Port = p.in(&pod.Spec); placed.Port == 0 {
		placed.Problem = fmt.Sprintf(
			"the pod has no %s container port named %s, so the service does not lead to it", p.protocol,
			p.target.String())
	}
	return placed, true
}

// publishing returns the services that publish pods which are not ready. There are few.
func publishing(services []*corev1.Service) []*corev1.Service {
	var all []*corev1.Service
	for _, s := range services {
		if s.Spec.PublishNotReadyAddresses {
			all = append(all, s)
		}
	}
	return all
}

// selecting returns the services that lead to a pod. A pod that any of them publishes while it is
// not ready can receive traffic, whichever the intercept names.
func selecting(services []*corev1.Service, pod *corev1.Pod) []*corev1.Service {
	var all []*corev1.Service
	for _, s := range services {
		if Selects(s, pod.Labels) {
			all = append(all, s)
		}
	}
	return all
}

// Addresses returns the pod's IP addresses, one of each family that it has.
func Addresses(pod *corev1.Pod) []string {
	var ips []string
	for _, ip := range pod.Status.PodIPs {
		ips = append(ips, ip.IP)
	}
	if len(ips) == 0 && pod.Status.PodIP != "" {
		ips = []string{pod.Status.PodIP}
	}
	return ips
}
