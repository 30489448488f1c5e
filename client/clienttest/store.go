// SPDX-License-Identifier: Apache-2.0

// Package clienttest is a cluster for tests of the client: an API server over HTTP that stores
// objects, serves watches and forwards ports, and a manager behind it that speaks the real protocol
// over real TLS.
package clienttest

import (
	"encoding/json"
	"fmt"
	"maps"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/google/uuid"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
)

// kinds of the API server, by resource.
var kinds = map[string]struct{ apiVersion, kind string }{
	"pods": {"v1", "Pod"}, "services": {"v1", "Service"}, "configmaps": {"v1", "ConfigMap"},
	"namespaces":  {"v1", "Namespace"},
	"deployments": {"apps/v1", "Deployment"}, "replicasets": {"apps/v1", "ReplicaSet"},
	"statefulsets": {"apps/v1", "StatefulSet"},
	"daemonsets":   {"apps/v1", "DaemonSet"}, "rollouts": {"argoproj.io/v1alpha1", "Rollout"},
	"jobs": {"batch/v1", "Job"}, "cronjobs": {"batch/v1", "CronJob"},
	"intercepts": {"sidestep.dev/v1alpha1", "Intercept"}, "logins": {"sidestep.dev/v1alpha1", "Login"},
	"selfsubjectreviews": {"authentication.k8s.io/v1", "SelfSubjectReview"},
}

type objectKey struct{ resource, namespace, name string }

type event struct {
	Type   string                     `json:"type"`
	Object *unstructured.Unstructured `json:"object"`
	key    objectKey
}

// store keeps objects as the API server does: with UIDs, generations, a growing resource version,
// and a history for watches.
type store struct {
	mu      sync.Mutex
	version int
	objects map[objectKey]*unstructured.Unstructured
	history []event
	changed chan struct{}
}

func newStore() *store {
	return &store{objects: map[objectKey]*unstructured.Unstructured{}, changed: make(chan struct{})}
}

// record is called with mu held.
func (s *store) record(kind string, k objectKey, object *unstructured.Unstructured) {
	s.version++
	object.SetResourceVersion(strconv.Itoa(s.version))
	s.history = append(s.history, event{kind, object.DeepCopy(), k})
	close(s.changed)
	s.changed = make(chan struct{})
}

func (s *store) create(k objectKey, object *unstructured.Unstructured) (*unstructured.Unstructured, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if _, exists := s.objects[k]; exists {
		return nil, false
	}
	object = object.DeepCopy()
	object.SetAPIVersion(kinds[k.resource].apiVersion)
	object.SetKind(kinds[k.resource].kind)
	object.SetUID(types.UID(uuid.NewString()))
	object.SetGeneration(1)
	s.objects[k] = object
	s.record("ADDED", k, object)
	return object.DeepCopy(), true
}

// update writes the whole object or its status alone. found and current report whether the object
// exists, and has the version that the writer had seen.
func (s *store) update(k objectKey, object *unstructured.Unstructured,
	status bool) (result *unstructured.Unstructured, found, current bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, ok := s.objects[k]
	if !ok {
		return nil, false, false
	}
	if v := object.GetResourceVersion(); v != "" && v != have.GetResourceVersion() {
		return nil, true, false
	}
	next := have.DeepCopy()
	if status {
		next.Object["status"] = runtime.DeepCopyJSONValue(object.Object["status"])
	} else {
		next.Object["spec"] = runtime.DeepCopyJSONValue(object.Object["spec"])
		if !reflect.DeepEqual(next.Object["spec"], have.Object["spec"]) {
			next.SetGeneration(have.GetGeneration() + 1)
		}
	}
	s.objects[k] = next
	s.record("MODIFIED", k, next)
	return next.DeepCopy(), true, true
}

// knows reports whether the server has a resource. A foreign one exists once there has been an
// object of it.
func (s *store) knows(resource string) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	return resource != "rollouts" ||
		slices.ContainsFunc(s.history, func(e event) bool { return e.key.resource == resource })
}

func (s *store) get(k objectKey) *unstructured.Unstructured {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.objects[k].DeepCopy()
}

func (s *store) delete(k objectKey, uid string) (found, same bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	have, ok := s.objects[k]
	if !ok {
		return false, false
	}
	if uid != "" && uid != string(have.GetUID()) {
		return true, false
	}
	delete(s.objects, k)
	s.record("DELETED", k, have.DeepCopy())
	return true, true
}

func (s *store) list(resource, namespace string,
	selects func(*unstructured.Unstructured) bool) ([]*unstructured.Unstructured, int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []*unstructured.Unstructured
	for _, k := range slices.SortedFunc(maps.Keys(s.objects),
		func(a, b objectKey) int { return strings.Compare(a.name, b.name) }) {
		if k.resource == resource && (namespace == "" || k.namespace == namespace) && selects(s.objects[k]) {
			found = append(found, s.objects[k].DeepCopy())
		}
	}
	return found, s.version
}

// since returns the events after a version, and a channel that is closed when there are more.
func (s *store) since(version int) ([]event, int, <-chan struct{}) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var found []event
	for _, e := range s.history {
		if v, _ := strconv.Atoi(e.Object.GetResourceVersion()); v > version {
			found = append(found, e)
		}
	}
	return found, s.version, s.changed
}

// toUnstructured returns an object as in JSON.
func toUnstructured(object any) *unstructured.Unstructured {
	data, err := json.Marshal(object)
	if err != nil {
		panic(fmt.Sprintf("marshal %T: %v", object, err))
	}
	u := &unstructured.Unstructured{}
	if err := json.Unmarshal(data, &u.Object); err != nil {
		panic(fmt.Sprintf("unmarshal %T: %v", object, err))
	}
	return u
}
