// SPDX-License-Identifier: Apache-2.0

// Package access decides, at the moment of use, who may have what is in a pod: today the
// environment of a container.
package access

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/endpoint"
)

const (
	// patience bounds one release.
	patience = 10 * time.Second
	// perPod bounds the wait for the node agent of one pod, before the next pod is tried.
	perPod = 4 * time.Second
	// tries is how many pods are tried, since any of them may be restarting.
	tries = 3
)

// Keeper decides who may have which environment.
type Keeper struct {
	// Client reads from the API server, and not from a cache that may be stale.
	Client client.Reader
	Guard  *Guard
	// May returns for which user the session has the Intercept, or why it may not have the environment
	// now. The user is "" if nobody knows, as of an older laptop.
	May func(ctx context.Context, ic *v1alpha1.Intercept, keyHash string) (user string, err error)
	// Pod returns a recent version of a pod, or nil.
	Pod func(namespace, name string) *corev1.Pod
	Ask func(ctx context.Context, node, podUID, containerID string) ([][]byte, error)
	Log *slog.Logger
}

// Release returns the environment of the container that the session with this key intercepts, or a
// gRPC status.
func (k *Keeper) Release(ctx context.Context, keyHash string,
	req *clientpb.EnvironmentRequest) (*clientpb.EnvironmentReply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, patience, errors.New("it takes too long"))
	defer cancel()
	ic, err := k.intercept(ctx, keyHash, req)
	if err != nil {
		return nil, err
	}
	log := k.Log.With("audit", "environment", "intercept", ic.Namespace+"/"+ic.Name, "holder",
		ic.Spec.Client.Holder)
	if err := k.guarded(ctx); err != nil {
		log.Error("environment withheld", "reason", err)
		return nil, err
	}
	user, err := k.May(ctx, ic, keyHash)
	log = log.With("user", cmp.Or(user, ic.Spec.Client.User))
	if err != nil {
		log.Warn("environment withheld", "reason", err)
		return nil, err
	}
	reply, err := k.read(ctx, ic)
	if err != nil {
		log.Warn("environment not read", "reason", err)
		return nil, err
	}
	log.Info("environment given to the laptop", "pod", reply.GetPod(), "container",
		reply.GetContainer(), "variables", len(reply.GetVariables()))
	return reply, nil
}

// intercept returns the Intercept if the session may have the environment of its container. It does
// not disclose whether others' Intercepts exist.
func (k *Keeper) intercept(ctx context.Context, keyHash string,
	req *clientpb.EnvironmentRequest) (*v1alpha1.Intercept, error) {
	ic := &v1alpha1.Intercept{}
	err := k.Client.Get(ctx, client.ObjectKey{Namespace: req.GetNamespace(), Name: req.GetName()}, ic)
	if client.IgnoreNotFound(err) != nil {
		return nil, status.Errorf(codes.Unavailable, "look up the intercept: %v", err)
	}
	switch {
	case err != nil, string(ic.UID) != req.GetInterceptUid(), !ic.Spec.HeldBy(keyHash),
		ic.DeletionTimestamp != nil:
		return nil, status.Errorf(codes.NotFound, "this session has no intercept %s in namespace %s",
			req.GetName(), req.GetNamespace())
	case !ic.Spec.Environment:
		return nil, status.Errorf(codes.PermissionDenied,
			"the intercept does not ask for the environment (spec.environment)")
	case ic.Status.ObservedGeneration != ic.Generation ||
		!meta.IsStatusConditionTrue(ic.Status.Conditions, v1alpha1.ConditionAccepted):
		return nil, status.Errorf(codes.FailedPrecondition, "the intercept is not in force: %s",
			cmp.Or(ic.Status.Message, "it has not been decided about"))
	}
	return ic, nil
}

var errUnguarded = status.Errorf(codes.FailedPrecondition,
	"environments are given to nobody: the ValidatingAdmissionPolicy %s, "+
		"by which the API server checks who may read them, is missing or not in force", EnvironmentPolicy)

// guarded checks that the API server enforces who may set spec.environment.
func (k *Keeper) guarded(ctx context.Context) error {
	switch inForce, err := k.Guard.Now(ctx, EnvironmentPolicy); {
	case err != nil:
		return status.Errorf(codes.Unavailable,
			"make sure that the API server checks who may read environments: %v", err)
	case !inForce:
		return errUnguarded
	}
	return nil
}

// read reads the environment in the oldest ready pod where that is possible.
func (k *Keeper) read(ctx context.Context, ic *v1alpha1.Intercept) (*clientpb.EnvironmentReply, error) {
	pods := k.candidates(ic)
	if len(pods) == 0 {
		return nil, status.Errorf(codes.FailedPrecondition,
			"no pod of %s %s is ready, and an environment is that of a running process",
			ic.Spec.Workload.Kind, ic.Spec.Workload.Name)
	}
	var problems []string
	for _, pod := range pods[:min(tries, len(pods))] {
		reply, err := k.readPod(ctx, ic, pod)
		if err == nil {
			return reply, nil
		}
		problems = append(problems, fmt.Sprintf("pod %s: %v", pod.Name, err))
		if ctx.Err() != nil {
			break
		}
	}
	return nil, status.Error(codes.Unavailable, strings.Join(problems, "; "))
}

// candidates returns the pods in the intercept's status, the oldest ready one first.
func (k *Keeper) candidates(ic *v1alpha1.Intercept) []*corev1.Pod {
	var pods []*corev1.Pod
	for _, st := range ic.Status.Pods {
		if pod := k.Pod(ic.Namespace, st.Name); pod != nil && pod.DeletionTimestamp == nil {
			pods = append(pods, pod)
		}
	}
	slices.SortStableFunc(pods, endpoint.Compare)
	return pods
}

func (k *Keeper) readPod(ctx context.Context, ic *v1alpha1.Intercept,
	known *corev1.Pod) (*clientpb.EnvironmentReply, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, perPod, errors.New("no answer in time"))
	defer cancel()
	pod := &corev1.Pod{}
	if err := k.Client.Get(ctx, client.ObjectKeyFromObject(known), pod); err != nil {
		return nil, fmt.Errorf("look it up: %w", err)
	}
	if pod.UID != known.UID {
		return nil, errors.New("it has been replaced")
	}
	name := cmp.Or(ic.Status.Container, ic.Spec.Container)
	id, err := containerID(pod, name)
	if err != nil {
		return nil, err
	}
	variables, err := k.Ask(ctx, pod.Spec.NodeName, string(pod.UID), id)
	if err != nil {
		return nil, fmt.Errorf("container %s: %w", name, err)
	}
	return &clientpb.EnvironmentReply{Variables: variables, Declared: declared(&pod.Spec, name),
		Container: name, Pod: pod.Name}, nil
}

// containerID returns the runtime's ID of a running container.
func containerID(pod *corev1.Pod, name string) (string, error) {
	for _, c := range slices.Concat(pod.Status.ContainerStatuses, pod.Status.InitContainerStatuses) {
		if c.Name != name {
			continue
		}
		if c.State.Running == nil {
			return "", fmt.Errorf("container %s is not running", name)
		}
		_, id, ok := strings.Cut(c.ContainerID, "://") // <type>://<id>
		if !ok || id == "" {
			return "", fmt.Errorf("container %s has no ID yet", name)
		}
		return id, nil
	}
	return "", fmt.Errorf("it has no container %q", name)
}

// declared returns the names of the variables that the pod's specification sets one by one. Those
// by envFrom are in objects that the manager may not read.
func declared(spec *corev1.PodSpec, name string) []string {
	var names []string
	for _, c := range slices.Concat(spec.Containers, spec.InitContainers) {
		if c.Name == name {
			for _, v := range c.Env {
				names = append(names, v.Name)
			}
		}
	}
	return names
}
