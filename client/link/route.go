// SPDX-License-Identifier: Apache-2.0

// Package link keeps the laptop connected to the manager: it finds the manager, connects through
// the API server, says hello, pings, and does it all again when the connection dies.
package link

import (
	"cmp"
	"context"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sync"

	"google.golang.org/grpc/codes"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

var managerLabels = client.MatchingLabels{names.LabelName: names.Sidestep,
	names.LabelComponent: names.ComponentManager}

// Route finds the manager of one installation and connects to it through the API server.
type Route struct {
	Source    *kube.Source
	Namespace string // of the installation

	// Forward connects to a port of a pod; nil: through the API server, in whichever way works.
	Forward Forward

	detour detour
}

// Way is a connection to a pod of the manager, below TLS.
type Way struct {
	Conn net.Conn
	TLS  *tls.Config // says who is the manager
	// Again connects once more to the same pod, in the same manner.
	Again func(context.Context) (net.Conn, error)
	By    string // for logs: which manner that is
	// Failed is to be called when the manager cannot be talked to on the connection.
	Failed func()
}

// Dial connects to a pod of the manager that is ready.
func (r *Route) Dial(ctx context.Context) (way *Way, err error) {
	cluster, err := r.Source.Cluster()
	if err != nil {
		return nil, err
	}
	var pod managerPod
	// Neither needs the other; over a long way each round trip counts. What the ConfigMap's absence
	// says is said first, whichever answer comes first: where it is missing the pods are too.
	var podErr error
	var both sync.WaitGroup
	both.Go(func() { pod, podErr = r.pod(ctx, cluster) })
	authority, err := r.authority(ctx, cluster)
	both.Wait()
	if err := cmp.Or(err, podErr); err != nil {
		return nil, err
	}
	if r.Forward != nil {
		again := r.by(func(ctx context.Context, c *kube.Cluster) (net.Conn, error) {
			return r.Forward(ctx, c, r.Namespace, pod.name, names.GRPCPort)
		})
		way = &Way{Again: again, By: "port-forward", Failed: func() {}}
		way.Conn, err = again(ctx)
	} else {
		way, err = r.detour.either(ctx,
			r.by(func(ctx context.Context, c *kube.Cluster) (net.Conn, error) {
				return byUpgrade(ctx, c, r.Namespace, pod.name, pod.connect)
			}),
			r.by(func(ctx context.Context, c *kube.Cluster) (net.Conn, error) {
				return byForward(ctx, c, r.Namespace, pod.name, names.GRPCPort)
			}))
	}
	if err != nil {
		return nil, cluster.Explain(err)
	}
	way.TLS = &tls.Config{RootCAs: authority, ServerName: names.Manager, MinVersion: tls.VersionTLS13}
	return way, nil
}

// by makes a dialer that finds the cluster anew: when it is called again the credentials may be
// others.
func (r *Route) by(connect func(context.Context, *kube.Cluster) (net.Conn, error)) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		cluster, err := r.Source.Cluster()
		if err != nil {
			return nil, err
		}
		return connect(ctx, cluster)
	}
}

// authority reads the certificate that the manager's own is signed with. Its ConfigMap is there as
// long as sidestep is installed.
func (r *Route) authority(ctx context.Context, cluster *kube.Cluster) (*x509.CertPool, error) {
	api, err := cluster.Client()
	if err != nil {
		return nil, err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	var config corev1.ConfigMap
	err = api.Get(ctx, client.ObjectKey{Namespace: r.Namespace, Name: names.CA}, &config)
	if apierrors.IsNotFound(err) {
		return nil, reason.New(codes.FailedPrecondition, reason.ManagerNotInstalled,
			"the traffic manager is not installed in namespace %s", r.Namespace).
			Advise("run `sidestep helm install`, or name the namespace it is in with --manager-namespace").
			With("namespace", r.Namespace)
	}
	if err = cluster.Explain(err); reason.Of(err) == reason.Forbidden {
		// The API server refuses before it looks whether there is anything.
		return nil, reason.New(codes.PermissionDenied, reason.Forbidden,
			"you may not connect to a traffic manager in namespace %s: either it is not installed there, or you lack the rights",
			r.Namespace).
			Advise("ask who runs the cluster to install it, or for the Role %s in that namespace (%v)",
				names.User, reason.Message(err))
	}
	if err != nil {
		return nil, err
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM([]byte(config.Data[names.CACert])) {
		return nil, reason.New(codes.FailedPrecondition, reason.ManagerNotReady,
			"ConfigMap %s in namespace %s has no certificate under %s", names.CA, r.Namespace,
			names.CACert).
			Advise("run `sidestep helm upgrade`")
	}
	return pool, nil
}

// managerPod is a pod of the manager and its port for upgraded requests.
type managerPod struct {
	name    string
	connect int
}

// connectPort returns the pod's port for upgraded requests. Managers of the minor version before
// name none, and take them on the HTTP port.
func connectPort(pod *corev1.Pod) int {
	for _, c := range pod.Spec.Containers {
		for _, p := range c.Ports {
			if p.Name == names.Connect {
				return int(p.ContainerPort)
			}
		}
	}
	return names.HTTPPort
}

// pod chooses one of the manager's pods that are ready.
func (r *Route) pod(ctx context.Context, cluster *kube.Cluster) (managerPod, error) {
	api, err := cluster.Client()
	if err != nil {
		return managerPod{}, err
	}
	ctx, cancel := cluster.Call(ctx)
	defer cancel()
	var pods corev1.PodList
	if err := api.List(ctx, &pods, client.InNamespace(r.Namespace), managerLabels); err != nil {
		return managerPod{}, cluster.Explain(err)
	}
	var usable, running []managerPod
	why := "it has no pod"
	for _, pod := range pods.Items {
		if ready, reason := ready(&pod); ready {
			usable = append(usable, managerPod{pod.Name, connectPort(&pod)})
		} else {
			if started(&pod) {
				running = append(running, managerPod{pod.Name, connectPort(&pod)})
			}
			why = fmt.Sprintf("pod %s is %s", pod.Name, reason)
		}
	}
	if len(usable) == 0 {
		// The kubelet says only after a while that a manager which has restarted is ready. Trying
		// is quicker.
		usable = running
	}
	if len(usable) == 0 {
		return managerPod{}, reason.New(codes.Unavailable, reason.ManagerNotReady,
			"the traffic manager in namespace %s is not ready: %s", r.Namespace, why)
	}
	return usable[rand.IntN(len(usable))], nil
}

func ready(pod *corev1.Pod) (bool, string) {
	if pod.DeletionTimestamp != nil {
		return false, "terminating"
	}
	for _, c := range pod.Status.ContainerStatuses {
		if w := c.State.Waiting; w != nil && w.Reason != "" {
			return false, w.Reason
		}
	}
	for _, c := range pod.Status.Conditions {
		if c.Type == corev1.PodReady {
			return c.Status == corev1.ConditionTrue, "not ready"
		}
	}
	if pod.Status.Phase == "" {
		return false, "not ready"
	}
	return false, string(pod.Status.Phase)
}

// started says whether all the pod's containers run.
func started(pod *corev1.Pod) bool {
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running == nil {
			return false
		}
	}
	return pod.DeletionTimestamp == nil && len(pod.Status.ContainerStatuses) > 0
}

// IsLasting says whether an error of connecting will stay until somebody does something about it.
func IsLasting(err error) bool {
	switch reason.Of(err) {
	case reason.ManagerNotInstalled, reason.Unauthorized, reason.Forbidden, reason.VersionSkew,
		reason.NotProven:
		return true
	}
	return errors.Is(err, errRefused)
}
