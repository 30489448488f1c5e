// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// own is what this laptop keeps about an intercept that it created. Everybody who may update
// Intercepts in the namespace can write the object. So the laptop never reads from there to where
// it delivers, or which ports it opens.
type own struct {
	destination v1alpha1.Destination
	// containerPort is used for a destination port of 0. It is what the manager found first.
	containerPort int32
	toPod         []int32
	wiretap       bool
}

// maxStrangers bounds how many foreign objects are remembered, each of which is logged once.
const maxStrangers = 1000

// owns reports whether this laptop created the object. A stranger is logged once. It is called with
// mu held.
func (r *Registry) owns(object *v1alpha1.Intercept) bool {
	genuine := object.Spec.Client.Session == r.client.Session && object.Spec.HeldBy(r.client.KeyHash)
	if t := r.tracked[object.UID]; t != nil && genuine && t.wiretap == object.Spec.Wiretap {
		return true
	}
	if genuine && r.ownsSinceRelease(object) {
		return true
	}
	if s := r.reservedAs(object); s != nil && genuine {
		// It is probably the one that is being created. The answer to the call will tell.
		s.seen = object
		return false
	}
	if _, logged := r.strangers[object.UID]; !logged && len(r.strangers) < maxStrangers {
		r.strangers[object.UID] = struct{}{}
		r.log.Warn("ignoring an Intercept that this laptop did not create", "namespace", object.Namespace,
			"object", object.Name, "uid", object.UID)
	}
	return false
}

// ownsSinceRelease accepts an intercept from a session.json that has only names, as the first
// release wrote it. The object must have this session's key, and deliver to this laptop. An address
// elsewhere may come from --address, but may just as well be forged. What is accepted is saved, so
// this happens once, at the first sight after the upgrade.
func (r *Registry) ownsSinceRelease(object *v1alpha1.Intercept) bool {
	t := r.tracked[keyOf("", object.Namespace, object.Spec.Name)]
	if t == nil || t.state != expected || t.kind != object.Spec.Workload.Kind ||
		t.workload != object.Spec.Workload.Name || object.Name != objectName(t.name, r.client.Session) {
		return false
	}
	destination := object.Spec.Destination
	if destination.Address == "" {
		destination.Address = DefaultAddress
	}
	if address, err := netip.ParseAddr(destination.Address); err != nil || !address.Unmap().IsLoopback() {
		t.refused = destination.Address
		return false
	}
	delete(r.tracked, t.uid)
	t.uid = object.UID
	t.own = own{destination: destination, toPod: slices.Clone(object.Spec.ToPod), wiretap: object.Spec.Wiretap}
	r.tracked[t.uid] = t
	r.log.Info("keeping where an intercept of an older daemon leads", "intercept", t.name,
		"namespace", t.namespace)
	r.keep()
	return true
}

// reservedAs returns the reservation of an object's name, nil if there is none. It is called with
// mu held.
func (r *Registry) reservedAs(object *v1alpha1.Intercept) *reservation {
	if s, ok := r.reserved[object.Spec.Name]; ok && s.uid == "" && s.namespace == object.Namespace &&
		s.object == object.Name {
		return s
	}
	return nil
}

// wroteOwn takes the answer to a call that wrote an object of this laptop with that spec.
func (r *Registry) wroteOwn(object *v1alpha1.Intercept, spec *v1alpha1.InterceptSpec) {
	r.mu.Lock()
	defer r.mu.Unlock()
	t := r.tracked[object.UID]
	if t == nil {
		t = &tracked{ref: refOf(object)}
		r.tracked[object.UID] = t
	}
	t.own = own{destination: spec.Destination, toPod: slices.Clone(spec.ToPod), wiretap: spec.Wiretap}
	s := r.reserved[spec.Name]
	if s != nil {
		s.uid = object.UID
	}
	if t.there() && t.raw.Generation >= object.Generation {
		r.show(t) // the watch was faster
		r.notify()
	} else {
		r.putLocked(object)
	}
	if s != nil && s.seen != nil && s.seen.UID == object.UID &&
		s.seen.ResourceVersion != object.ResourceVersion && s.seen.Generation >= object.Generation {
		r.putLocked(s.seen)
	}
	r.keep()
}

// show combines what the API has of an intercept with what this laptop keeps about it. It is called
// with mu held.
func (r *Registry) show(t *tracked) {
	o := &t.own
	object := t.raw.DeepCopy()
	object.Spec.Destination, object.Spec.ToPod = o.destination, slices.Clone(o.toPod)
	if o.containerPort == 0 && o.destination.Port == 0 {
		o.containerPort = localPort(object)
	}
	for i := range object.Status.Pods {
		if p := &object.Status.Pods[i].Port; *p != 0 && o.containerPort != 0 {
			*p = o.containerPort
		}
	}
	t.object = object
	if _, writing := r.reserved[object.Spec.Name]; writing {
		return // the difference may be this laptop's own
	}
	changed := differences(&t.raw.Spec, o)
	if changed == "" {
		t.warned = ""
		return
	}
	object.Status.Message = strings.TrimPrefix(object.Status.Message+"; ", "; ") +
		"another user changed " + changed + " in the cluster, which this laptop ignores"
	if t.warned != changed {
		t.warned = changed
		r.log.Warn("another user changed an intercept of this laptop", "intercept", object.Spec.Name,
			"namespace", object.Namespace, "changed", changed)
	}
}

// differences names the fields of a spec in the API that differ from what this laptop keeps.
func differences(s *v1alpha1.InterceptSpec, o *own) string {
	var changed []string
	if s.Destination != o.destination {
		changed = append(changed, "its destination")
	}
	// An older definition of Intercepts has no toPod at all.
	if a, b := slices.Sorted(slices.Values(s.ToPod)), slices.Sorted(slices.Values(o.toPod)); !slices.Equal(a, b) {
		changed = append(changed, "its ports to pods")
	}
	return strings.Join(changed, " and ")
}

// raw returns an intercept as the API has it.
func (r *Registry) raw(uid types.UID) *v1alpha1.Intercept {
	r.mu.Lock()
	defer r.mu.Unlock()
	if t := r.there(uid); t != nil {
		return t.raw
	}
	return nil
}

// Own returns this laptop's intercept for an object's UID, nil if the laptop did not create it.
func (r *Registry) Own(uid types.UID) *v1alpha1.Intercept {
	object, _ := r.get(uid)
	return object
}
