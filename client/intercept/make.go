// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"cmp"
	"context"
	"reflect"
	"slices"
	"strings"

	"google.golang.org/grpc/codes"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/util/retry"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/reason"
)

// movable returns what may change in the spec of an existing intercept.
func movable(s *v1alpha1.InterceptSpec) v1alpha1.InterceptSpec {
	return v1alpha1.InterceptSpec{
		Service: s.Service, Port: s.Port, Container: s.Container, Destination: s.Destination,
		Plaintext: s.Plaintext, Environment: s.Environment,
		ToPod: s.ToPod,
	}
}

// moveTo copies the movable part of a spec to another.
func moveTo(s, to *v1alpha1.InterceptSpec) {
	s.Service, s.Port, s.Container, s.Destination = to.Service, to.Port, to.Container, to.Destination
	s.Plaintext, s.Environment, s.ToPod = to.Plaintext, to.Environment, slices.Clone(to.ToPod)
}

// Make creates an intercept and returns when every ready pod is steering, or there is none. If an
// intercept of that name exists, it moves to the service, port and destination that are asked for.
// If Make fails, ctx ends, or confirm returns an error, everything is as before.
func (r *Registry) Make(ctx context.Context, a *Ask, progress func(string),
	confirm func(*v1alpha1.Intercept) error) error {
	cluster, err := r.source.Cluster()
	if err != nil {
		return err
	}
	api, err := cluster.Client()
	if err != nil {
		return err
	}
	user, err := cluster.User(ctx)
	if err != nil {
		return err
	}
	a.Spec.Client.User = user.Name
	before, release, err := r.reserve(a)
	if err != nil {
		return err
	}
	defer release()
	m := &maker{registry: r, ask: a, cluster: cluster, api: api, progress: progress, before: before}
	if err := m.write(ctx); err != nil {
		return err
	}
	made, err := m.wait(ctx)
	if err == nil {
		err = r.checkPort(a.Spec.Name, localAddr(made), protocolOf(made))
	}
	if err == nil {
		err = a.checkToPod(made, r.raw(made.UID))
	}
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		err = confirm(made)
	}
	if err != nil {
		return m.undo(ctx, err)
	}
	return nil
}

// reserve checks that the intercept can be created, and reserves its name and ports until release
// is called. before is the intercept that has the name already.
func (r *Registry) reserve(a *Ask) (before *v1alpha1.Intercept, release func(), err error) {
	name := a.Spec.Name
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, busy := r.reserved[name]; busy {
		return nil, nil, reason.New(codes.AlreadyExists, reason.InterceptExists,
			"intercept %q is being created by another command", name).
			Advise("wait for it")
	}
	for _, t := range r.presents() {
		if t.name == name {
			before = t.object
		}
	}
	if before != nil {
		if err := a.canMove(before); err != nil {
			return nil, nil, err
		}
	}
	if err := r.checkPortLocked(name, join(a.Spec.Destination.Address, a.Spec.Destination.Port),
		cmp.Or(a.Spec.Protocol, v1alpha1.ProtocolTCP)); err != nil {
		return nil, nil, err
	}
	for _, port := range a.Spec.ToPod {
		if by := r.deliversTo(name, join(DefaultAddress, port), v1alpha1.ProtocolTCP); by != "" {
			return nil, nil, reason.New(codes.AlreadyExists, reason.LocalPortTaken,
				"--to-pod %d: the requests of intercept %s go to that port of this laptop", port,
				by).
				Advise("leave it out, or leave that intercept")
		}
	}
	r.dismiss(name)
	_, watched := r.watching[a.Namespace]
	r.reserved[name] = &reservation{
		namespace: a.Namespace, object: objectName(name, a.Spec.Client.Session), name: name,
		address: a.Spec.Destination.Address, port: a.Spec.Destination.Port,
		protocol: cmp.Or(a.Spec.Protocol, v1alpha1.ProtocolTCP),
	}
	if before != nil {
		r.reserved[name].uid = before.UID
	}
	r.watch(a.Namespace)
	if !watched {
		r.keep()
	}
	return before, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.reserved, name)
		for _, t := range r.presents() {
			if t.name == name {
				r.show(t)
			}
		}
		r.forgetNamespace(a.Namespace)
		r.notify()
	}, nil
}

// checkPort returns an error if another intercept has the local port lead to a pod. Several may deliver
// to one: a server may stand for several services.
func (r *Registry) checkPort(name, addr string, protocol v1alpha1.Protocol) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.checkPortLocked(name, addr, protocol)
}

func (r *Registry) checkPortLocked(name, addr string, protocol v1alpha1.Protocol) error {
	if addr == "" {
		return nil
	}
	for _, t := range r.presents() {
		if t.name != name && protocol == v1alpha1.ProtocolTCP && leadsToPod(t.object, addr) {
			return reason.New(codes.AlreadyExists, reason.LocalPortTaken,
				"port %s is already used by intercept %s",
				strings.TrimPrefix(addr, DefaultAddress+":"), t.name).
				Advise("choose another with --port")
		}
	}
	return nil
}

// SharesPort returns the name of another intercept that delivers to the same local port, or "".
func (r *Registry) SharesPort(i *v1alpha1.Intercept) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.deliversTo(i.Spec.Name, localAddr(i), protocolOf(i))
}

// namesOf returns the names of this laptop's intercepts of a workload.
func (r *Registry) namesOf(namespace string, workload v1alpha1.WorkloadReference) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var all []string
	for _, t := range r.presents() {
		if t.object.Namespace == namespace && t.object.Spec.Workload == workload {
			all = append(all, t.name)
		}
	}
	return all
}

// deliversTo returns the name of the intercept, other than name, whose requests or datagrams go to
// a local address. It is called with mu held.
func (r *Registry) deliversTo(name, addr string, protocol v1alpha1.Protocol) string {
	for _, t := range r.presents() {
		if t.name != name && localAddr(t.object) == addr && protocolOf(t.object) == protocol {
			return t.name
		}
	}
	for _, s := range r.reserved {
		if s.name != name && join(s.address, s.port) == addr && s.protocol == protocol {
			return s.name
		}
	}
	return ""
}

// maker creates or moves one intercept.
type maker struct {
	registry *Registry
	ask      *Ask
	cluster  *kube.Cluster
	api      client.Client
	progress func(string)
	before   *v1alpha1.Intercept // the intercept to move; nil: a new one is created
	object   *v1alpha1.Intercept // as it was written
	replaced bool                // an object of that name, unknown to this laptop, was deleted
}

// write creates or changes the object. A call that has begun is completed even if the caller has
// gone, so that its outcome is known.
func (m *maker) write(ctx context.Context) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	calling, cancel := m.cluster.Call(context.WithoutCancel(ctx))
	defer cancel()
	if m.before == nil {
		err := m.create(calling)
		if m.before == nil {
			return err
		}
	}
	return m.move(calling)
}

func (m *maker) create(ctx context.Context) error {
	object := m.ask.object()
	var options []client.CreateOption
	if object.Spec.Wiretap || object.Spec.Protocol != "" {
		// Without it, an older definition would turn a wiretap into an intercept, or take TCP for
		// UDP.
		options = append(options, client.FieldValidation(metav1.FieldValidationStrict))
	}
	err := unlessOverlap(func() error { return m.api.Create(ctx, object, options...) })
	switch {
	case len(options) > 0 && apierrors.IsBadRequest(err) && strings.Contains(err.Error(), "spec.protocol"):
		return tooOld()
	case apierrors.IsBadRequest(err) && object.Spec.Client.User != "" &&
		strings.Contains(err.Error(), "spec.client.user"):
		m.ask.Spec.Client.User = "" // an older definition, whose manager asks for no user
		return m.create(ctx)
	case err == nil:
		m.object = object
		m.registry.wroteOwn(object.DeepCopy(), &m.ask.Spec)
		return nil
	case apierrors.IsAlreadyExists(err):
		return m.meet(ctx, object)
	default:
		if apierrors.ReasonForError(err) == "" || apierrors.IsTimeout(err) || apierrors.IsServerTimeout(err) {
			// There was no answer, so it may have been created all the same.
			m.object = object
			return m.undo(ctx, m.explain(err))
		}
		return m.explain(err)
	}
}

// meet handles an object that has the name already.
func (m *maker) meet(ctx context.Context, object *v1alpha1.Intercept) error {
	have := &v1alpha1.Intercept{}
	if err := m.api.Get(ctx, client.ObjectKeyFromObject(object), have); err != nil {
		return m.explain(err)
	}
	m.registry.put(have.DeepCopy())
	if own := m.registry.Own(have.UID); own != nil { // an earlier daemon created it, and it is not listed yet
		if err := m.ask.canMove(own); err != nil {
			return err
		}
		m.before = own
		return nil
	}
	if have.Spec.Client.Session == object.Spec.Client.Session && have.Spec.HeldBy(m.registry.client.KeyHash) &&
		!m.replaced {
		// The answer to the call that created it may have been lost, or it may be forged. A new
		// object is certainly this laptop's.
		m.replaced = true
		if err := m.registry.delete(ctx, m.cluster, have); err != nil {
			return m.explain(err)
		}
		return m.create(ctx)
	}
	return reason.New(codes.AlreadyExists, reason.InterceptExists,
		"an Intercept %s of %q is in the way in namespace %s, and this laptop did not create it",
		have.Name, have.Spec.Client.Holder, have.Namespace).
		Advise("choose another name with --workload")
}

// move changes the existing object, if necessary.
func (m *maker) move(ctx context.Context) error {
	want := m.ask.Spec
	changed, err := m.update(ctx, m.before, func(s *v1alpha1.InterceptSpec) { moveTo(s, &want) })
	if err != nil {
		return m.explain(err)
	}
	m.object = changed
	return nil
}

// update changes the spec of an object, and retries on conflicts.
func (m *maker) update(ctx context.Context, from *v1alpha1.Intercept,
	change func(*v1alpha1.InterceptSpec)) (*v1alpha1.Intercept, error) {
	object := cmp.Or(m.registry.raw(from.UID), from).DeepCopy()
	wanted := object.Spec.DeepCopy()
	err := retry.RetryOnConflict(retry.DefaultRetry, func() error {
		spec := object.Spec.DeepCopy()
		change(spec)
		wanted = spec
		if reflect.DeepEqual(movable(spec), movable(&object.Spec)) {
			return nil
		}
		object.Spec = *spec
		err := unlessOverlap(func() error { return m.api.Update(ctx, object) })
		if apierrors.IsConflict(err) {
			fresh := &v1alpha1.Intercept{}
			if getErr := m.api.Get(ctx, client.ObjectKeyFromObject(object), fresh); getErr != nil {
				return getErr
			}
			if fresh.UID != object.UID || fresh.Spec.Client != object.Spec.Client {
				return apierrors.NewNotFound(
					v1alpha1.GroupVersion.WithResource("intercepts").GroupResource(), object.Name)
			}
			object = fresh
		}
		return err
	})
	if err != nil {
		return nil, err
	}
	m.registry.wroteOwn(object.DeepCopy(), wanted)
	return object, nil
}
