// SPDX-License-Identifier: Apache-2.0

package clienttest

import (
	"crypto/rand"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/require"
	authnv1 "k8s.io/api/authentication/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"k8s.io/apimachinery/pkg/labels"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// Call is one request to the API server.
type Call struct{ Verb, Resource, Namespace, Name string }

// APIServer is an API server with the kinds that the client uses.
type APIServer struct {
	URL        string
	NoWiretaps bool // its definition of Intercepts is from before there were any
	NoLogins   bool // it has no definition of Logins

	store    *store
	addr     string
	forwards *forwards

	mu     sync.Mutex
	server *httptest.Server
	deny   func(Call) bool
	hook   func(Call)
	admit  func(Call, *unstructured.Unstructured) string
	status int // of the answer to every call; 0: answer normally
	calls  []Call
	cut    chan struct{} // closed to end the watches
}

// NewAPIServer starts one, which ends with the test.
func NewAPIServer(t testing.TB) *APIServer {
	a := &APIServer{store: newStore(), addr: "127.0.0.1:0", forwards: newForwards(), cut: make(chan struct{})}
	a.Start(t)
	t.Cleanup(a.Stop)
	return a
}

// Start starts the server again, at its address before Stop.
func (a *APIServer) Start(t testing.TB) {
	listener, err := net.Listen("tcp", a.addr)
	require.NoError(t, err)
	a.mu.Lock()
	defer a.mu.Unlock()
	a.addr = listener.Addr().String()
	a.URL = "http://" + a.addr
	a.server = &httptest.Server{Listener: listener, Config: &http.Server{Handler: a}}
	a.server.Start()
}

// Stop breaks all connections. What is stored stays.
func (a *APIServer) Stop() {
	a.mu.Lock()
	server := a.server
	a.server = nil
	a.mu.Unlock()
	if server == nil {
		return
	}
	a.forwards.cut()
	server.Listener.Close()
	server.CloseClientConnections()
	server.Close()
}

// Cut breaks the port-forwards.
func (a *APIServer) Cut() { a.forwards.cut() }

// Stall makes the port-forwards hang, as a dead network does.
func (a *APIServer) Stall() { a.forwards.stall() }

// CutWatches ends all present watches.
func (a *APIServer) CutWatches() {
	a.mu.Lock()
	defer a.mu.Unlock()
	close(a.cut)
	a.cut = make(chan struct{})
}

// Deny refuses calls for lack of rights. Nil refuses none.
func (a *APIServer) Deny(deny func(Call) bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.deny = deny
}

// Admit sets a function that is called with each object before it is written. If it returns a text,
// that refuses the object, as admission policies do.
func (a *APIServer) Admit(admit func(Call, *unstructured.Unstructured) string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.admit = admit
}

// Hook sets a function that is called before each call is answered.
func (a *APIServer) Hook(hook func(Call)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.hook = hook
}

// Refuse answers every call with a status. 0 ends that.
func (a *APIServer) Refuse(status int) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.status = status
}

// Calls lists the calls so far.
func (a *APIServer) Calls() []Call {
	a.mu.Lock()
	defer a.mu.Unlock()
	return append([]Call(nil), a.calls...)
}

// Kubeconfig writes a kubeconfig for this server, with a context of the given name.
func (a *APIServer) Kubeconfig(t testing.TB, context string) string {
	path := filepath.Join(t.TempDir(), "kubeconfig")
	require.NoError(t, os.WriteFile(path, []byte(fmt.Sprintf(kubeconfig, context, a.URL)), 0o600))
	return path
}

// kubeconfig is one with a context of a given name for a server of a given URL.
const kubeconfig = `apiVersion: v1
kind: Config
current-context: %[1]s
clusters: [{name: test, cluster: {server: "%[2]s"}}]
users: [{name: dev, user: {token: secret}}]
contexts: [{name: %[1]s, context: {cluster: test, user: dev, namespace: shop}}]
`

// resourceOf returns the resource of an object of a known kind.
func resourceOf(object client.Object) string {
	if u, ok := object.(*unstructured.Unstructured); ok {
		return strings.ToLower(u.GetKind()) + "s"
	}
	name := strings.ToLower(strings.TrimPrefix(fmt.Sprintf("%T", object), "*"))
	return name[strings.LastIndex(name, ".")+1:] + "s"
}

// Add stores objects.
func (a *APIServer) Add(t testing.TB, objects ...client.Object) {
	for _, o := range objects {
		_, ok := a.store.create(objectKey{resourceOf(o), o.GetNamespace(), o.GetName()}, toUnstructured(o))
		require.True(t, ok, "%s exists", o.GetName())
	}
}

// Remove deletes an object.
func (a *APIServer) Remove(t testing.TB, object client.Object) {
	found, _ := a.store.delete(objectKey{resourceOf(object), object.GetNamespace(), object.GetName()}, "")
	require.True(t, found, "%s does not exist", object.GetName())
}

// Change updates the spec of an Intercept, as another user of the cluster does.
func (a *APIServer) Change(t testing.TB, namespace, name string, change func(*v1alpha1.InterceptSpec)) {
	k := objectKey{"intercepts", namespace, name}
	object := &v1alpha1.Intercept{}
	data, err := json.Marshal(a.store.get(k))
	require.NoError(t, err)
	require.NoError(t, json.Unmarshal(data, object))
	object.ResourceVersion = ""
	change(&object.Spec)
	_, found, _ := a.store.update(k, toUnstructured(object), false)
	require.True(t, found, "%s does not exist", name)
}

// User is the user that the API server takes every client for.
const User = "dev"

// ServeHTTP implements http.Handler.
func (a *APIServer) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	call, sub, ok := parse(r)
	a.mu.Lock()
	a.calls = append(a.calls, call)
	deny, hook, status := a.deny, a.hook, a.status
	a.mu.Unlock()
	if hook != nil {
		hook(call)
	}
	switch {
	case !ok || !a.store.knows(call.Resource) || a.NoLogins && call.Resource == "logins":
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound,
			"the server could not find the requested resource", nil)
	case status == http.StatusUnauthorized:
		fail(w, status, metav1.StatusReasonUnauthorized, "Unauthorized", nil)
	case status != 0:
		fail(w, status, metav1.StatusReasonInternalError, http.StatusText(status), nil)
	case deny != nil && deny(call):
		group, _, grouped := strings.Cut(kinds[call.Resource].apiVersion, "/")
		if !grouped {
			group = ""
		}
		where := "at the cluster scope"
		if call.Namespace != "" {
			where = fmt.Sprintf("in the namespace %q", call.Namespace)
		}
		resource := call.Resource
		if sub != "" {
			resource += "/" + sub
		}
		fail(w, http.StatusForbidden, metav1.StatusReasonForbidden,
			fmt.Sprintf(`%s %q is forbidden: User "dev" cannot %s resource %q in API group %q %s`,
				resource, call.Name, call.Verb, resource, group, where), nil)
	case sub == "portforward":
		a.forwards.serve(w, r, call.Namespace, call.Name)
	case sub == "proxy":
		a.forwards.upgrade(w, r, call.Namespace, call.Name)
	case call.Resource == "selfsubjectreviews":
		answer(w, authnv1.SelfSubjectReview{
			TypeMeta: metav1.TypeMeta{APIVersion: "authentication.k8s.io/v1", Kind: "SelfSubjectReview"},
			Status:   authnv1.SelfSubjectReviewStatus{UserInfo: authnv1.UserInfo{Username: User, Groups: []string{"developers"}}},
		})
	default:
		a.serve(w, r, call, sub == "status")
	}
}

// parse parses a path: /api/v1/... or /apis/GROUP/VERSION/..., then
// [namespaces/NS/]RESOURCE[/NAME[/SUB]].
func parse(r *http.Request) (call Call, sub string, ok bool) {
	parts := strings.Split(strings.Trim(r.URL.Path, "/"), "/")
	skip := 2
	if parts[0] == "apis" {
		skip = 3
	}
	if len(parts) <= skip {
		return call, "", false
	}
	parts = parts[skip:]
	if parts[0] == "namespaces" && len(parts) > 2 {
		call.Namespace = parts[1]
		parts = parts[2:]
	}
	call.Resource = parts[0]
	if len(parts) > 1 {
		call.Name = parts[1]
	}
	if len(parts) > 2 {
		sub = parts[2]
	}
	call.Verb = map[string]string{"GET": "get", "POST": "create", "PUT": "update", "DELETE": "delete"}[r.Method]
	if call.Verb == "get" && call.Name == "" {
		call.Verb = "list"
		if r.URL.Query().Get("watch") != "" {
			call.Verb = "watch"
		}
	}
	_, ok = kinds[call.Resource]
	return call, sub, ok
}

func fail(w http.ResponseWriter, code int, reason metav1.StatusReason, message string,
	details *metav1.StatusDetails) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(metav1.Status{
		TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"}, Status: metav1.StatusFailure,
		Code: int32(code), Reason: reason, Message: message, Details: details,
	})
}

func answer(w http.ResponseWriter, object any) {
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(object)
}

// serve answers one request of a client.
//
// Long: it is one case for each request that clients make.
func (a *APIServer) serve(w http.ResponseWriter, r *http.Request, call Call, status bool) {
	k := objectKey{call.Resource, call.Namespace, call.Name}
	missing := func() {
		fail(w, http.StatusNotFound, metav1.StatusReasonNotFound,
			fmt.Sprintf("%s %q not found", call.Resource, call.Name),
			&metav1.StatusDetails{Name: call.Name, Kind: call.Resource})
	}
	selector, err := labels.Parse(r.URL.Query().Get("labelSelector"))
	if err != nil {
		fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest, err.Error(), nil)
		return
	}
	selects := func(u *unstructured.Unstructured) bool { return selector.Matches(labels.Set(u.GetLabels())) }
	body := &unstructured.Unstructured{}
	if r.Method != http.MethodGet {
		_ = json.NewDecoder(r.Body).Decode(&body.Object)
	}
	if a.NoWiretaps && call.Verb == "create" && call.Resource == "intercepts" {
		if _, has, _ := unstructured.NestedBool(body.Object, "spec", "wiretap"); has &&
			r.URL.Query().Get("fieldValidation") == metav1.FieldValidationStrict {
			fail(w, http.StatusBadRequest, metav1.StatusReasonBadRequest,
				`strict decoding error: unknown field "spec.wiretap"`, nil)
			return
		}
	}
	a.mu.Lock()
	admit := a.admit
	a.mu.Unlock()
	if admit != nil && (call.Verb == "create" || call.Verb == "update") {
		if why := admit(call, body); why != "" {
			fail(w, http.StatusForbidden, metav1.StatusReasonForbidden,
				fmt.Sprintf("%s.sidestep.dev %q is forbidden: %s", call.Resource, body.GetName(), why), nil)
			return
		}
	}
	switch call.Verb {
	case "get":
		if object := a.store.get(k); object != nil {
			answer(w, object)
		} else {
			missing()
		}
	case "list":
		items, version := a.store.list(call.Resource, call.Namespace, selects)
		list := map[string]any{
			"apiVersion": kinds[call.Resource].apiVersion, "kind": kinds[call.Resource].kind + "List",
			"metadata": map[string]any{"resourceVersion": strconv.Itoa(version)}, "items": items,
		}
		if items == nil {
			list["items"] = []any{}
		}
		answer(w, list)
	case "watch":
		a.watch(w, r, call, selects)
	case "create":
		if prefix := body.GetGenerateName(); body.GetName() == "" && prefix != "" {
			body.SetName(prefix + rand.Text()[:8])
		}
		k.name = body.GetName()
		if object, ok := a.store.create(k, body); ok {
			w.Header().Set("Content-Type", "application/json")
			w.WriteHeader(http.StatusCreated)
			_ = json.NewEncoder(w).Encode(object)
		} else {
			fail(w, http.StatusConflict, metav1.StatusReasonAlreadyExists,
				fmt.Sprintf("%s %q already exists", call.Resource, k.name), nil)
		}
	case "update":
		switch object, found, current := a.store.update(k, body, status); {
		case !found:
			missing()
		case !current:
			fail(w, http.StatusConflict, metav1.StatusReasonConflict, "the object has been modified", nil)
		default:
			answer(w, object)
		}
	case "delete":
		uid, _, _ := unstructured.NestedString(body.Object, "preconditions", "uid")
		switch found, same := a.store.delete(k, uid); {
		case !found:
			missing()
		case !same:
			fail(w, http.StatusConflict, metav1.StatusReasonConflict,
				"the UID in the precondition does not match", nil)
		default:
			answer(w, metav1.Status{TypeMeta: metav1.TypeMeta{Kind: "Status", APIVersion: "v1"},
				Status: metav1.StatusSuccess})
		}
	}
}

func (a *APIServer) watch(w http.ResponseWriter, r *http.Request, call Call,
	selects func(*unstructured.Unstructured) bool) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(http.StatusOK)
	version, _ := strconv.Atoi(r.URL.Query().Get("resourceVersion"))
	end := time.After(time.Hour)
	a.mu.Lock()
	cut := a.cut
	a.mu.Unlock()
	for {
		events, now, changed := a.store.since(version)
		for _, e := range events {
			if e.key.resource == call.Resource &&
				(call.Namespace == "" || e.key.namespace == call.Namespace) && selects(e.Object) {
				_ = json.NewEncoder(w).Encode(e)
			}
		}
		version = now
		w.(http.Flusher).Flush()
		select {
		case <-changed:
		case <-r.Context().Done():
			return
		case <-cut:
			return
		case <-end:
			return
		}
	}
}
