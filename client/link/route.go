// SPDX-License-Identifier: Apache-2.0

// Package link keeps the laptop connected to the manager: it finds the manager, connects through
// the API server, says hello, pings, and reconnects when the connection dies.
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

	// Forward connects to a port of a pod. Nil means through the API server, in whichever way
	// works.
	Forward Forward

	detour detour
}

// Way is a connection to a pod of the manager, below TLS.
type Way struct {
	Conn net.Conn
	TLS  *tls.Config // verifies that the pod is the manager's
	// Trust returns TLS with the manager's authority as it is now.
	Trust func(context.Context) (*tls.Config, error)
	// Again connects once more to the same pod, in the same way.
	Again func(context.Context) (net.Conn, error)
	By    string // for logs: which way it is
	// Failed must be called when TLS or the manager fails on the connection.
	Failed func()
}

// Dial connects to a ready pod of the manager.
func (r *Route) Dial(ctx context.Context) (way *Way, err error) {
	cluster, err := r.Source.Cluster()
	if err != nil {
		return nil, err
	}
	var pod managerPod
	// The two requests are independent, and on a long path each round trip counts. An error about
	// the ConfigMap comes first, whichever answer arrives first: where the ConfigMap is missing,
	// the pods are too.
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
	way.TLS = trusting(authority)
	way.Trust = func(ctx context.Context) (*tls.Config, error) {
		cluster, err := r.Source.Cluster()
		if err != nil {
			return nil, err
		}
		authority, err := r.authority(ctx, cluster)
		if err != nil {
			return nil, err
		}
		return trusting(authority), nil
	}
	return way, nil
}

func trusting(authority *x509.CertPool) *tls.Config {
	return &tls.Config{RootCAs: authority, ServerName: names.Manager, MinVersion: tls.VersionTLS13}
}

// by returns a dialer that gets the cluster for each call, because the credentials may have
// changed.
func (r *Route) by(connect func(context.Context, *kube.Cluster) (net.Conn, error)) dialer {
	return func(ctx context.Context) (net.Conn, error) {
		cluster, err := r.Source.Cluster()
		if err != nil {
			return nil, err
		}
		return connect(ctx, cluster)
	}
}

// authority reads the certificate of the authority that has signed the manager's. Its ConfigMap
// exists as long as sidestep is installed.
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
		// The API server refuses before it looks whether the ConfigMap exists.
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

// pod chooses one of the manager's ready pods.
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
		// The kubelet reports with a delay that a restarted manager is ready. Trying is quicker.
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

// started reports whether all containers of the pod run.
func started(pod *corev1.Pod) bool {
	for _, c := range pod.Status.ContainerStatuses {
		if c.State.Running == nil {
			return false
		}
	}
	return pod.DeletionTimestamp == nil && len(pod.Status.ContainerStatuses) > 0
}

// IsLasting reports whether an error of connecting will stay until someone acts.
func IsLasting(err error) bool {
	switch reason.Of(err) {
	case reason.ManagerNotInstalled, reason.Unauthorized, reason.Forbidden, reason.VersionSkew,
		reason.NotProven:
		return true
	}
	return errors.Is(err, errRefused)
}
