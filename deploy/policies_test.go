// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	appsv1 "k8s.io/api/apps/v1"
	corev1 "k8s.io/api/core/v1"
	rbacv1 "k8s.io/api/rbac/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	dynamicfake "k8s.io/client-go/dynamic/fake"
	"k8s.io/client-go/kubernetes/scheme"
	"k8s.io/client-go/rest"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/envtest"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// world is an API server with the chart's definitions, policies and roles.
type world struct {
	t      *testing.T
	config *rest.Config
	scheme *runtime.Scheme
	admin  client.Client
}

// apiServer starts an API server and applies what the chart renders for values, but for its
// workloads. It needs the programs that `make cluster-programs` builds, or KUBEBUILDER_ASSETS.
func apiServer(t *testing.T, set values) *world {
	t.Helper()
	env := &envtest.Environment{
		CRDDirectoryPaths: []string{"chart/crds"}, ErrorIfCRDPathMissing: true,
		BinaryAssetsDirectory: programs(t), ControlPlaneStartTimeout: 2 * time.Minute,
	}
	config, err := env.Start()
	require.NoError(t, err)
	t.Cleanup(func() { assert.NoError(t, env.Stop()) })
	w := &world{t: t, config: config, scheme: runtime.NewScheme()}
	require.NoError(t, scheme.AddToScheme(w.scheme))
	require.NoError(t, v1alpha1.AddToScheme(w.scheme))
	w.admin, err = client.New(config, client.Options{Scheme: w.scheme})
	require.NoError(t, err)
	for _, name := range []string{"sidestep", "shop"} {
		require.NoError(t, w.admin.Create(t.Context(),
			&corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: name}}))
	}
	for _, object := range mustRender(t, set) {
		switch o := object.(type) {
		case *admissionv1.ValidatingAdmissionPolicy, *admissionv1.ValidatingAdmissionPolicyBinding,
			*rbacv1.ClusterRole, *rbacv1.Role, *rbacv1.ClusterRoleBinding, *rbacv1.RoleBinding:
			require.NoError(t, w.admin.Create(t.Context(), o.(client.Object)))
		}
	}
	return w
}

// programs returns a directory with etcd and kube-apiserver.
func programs(t *testing.T) string {
	t.Helper()
	if os.Getenv("KUBEBUILDER_ASSETS") != "" {
		return ""
	}
	cache, err := os.UserCacheDir()
	require.NoError(t, err)
	dir := t.TempDir()
	for _, program := range []string{"etcd-*/etcd", "kubernetes-*/kube-apiserver", "kubernetes-*/kubectl"} {
		found, err := filepath.Glob(filepath.Join(cache, "sidestep-cluster", program))
		require.NoError(t, err)
		require.NotEmpty(t, found, "no API server to test with: run make test-unit, which builds one")
		require.NoError(t, os.Symlink(found[len(found)-1], filepath.Join(dir, filepath.Base(program))))
	}
	return dir
}

// as returns a client that acts for a user who is a member of groups.
func (w *world) as(user string, groups ...string) client.Client {
	w.t.Helper()
	config := rest.CopyConfig(w.config)
	config.Impersonate = rest.ImpersonationConfig{UserName: user, Groups: append(groups, "system:authenticated")}
	c, err := client.New(config, client.Options{Scheme: w.scheme})
	require.NoError(w.t, err)
	return c
}

// allow gives a user rules in a namespace.
func (w *world) allow(namespace, user string, rules ...rbacv1.PolicyRule) {
	w.t.Helper()
	meta := metav1.ObjectMeta{Namespace: namespace, Name: user}
	require.NoError(w.t, w.admin.Create(w.t.Context(), &rbacv1.Role{ObjectMeta: meta, Rules: rules}))
	w.bind(namespace, user, "Role", user)
}

// bind gives a user a role in a namespace.
func (w *world) bind(namespace, user, kind, role string) {
	w.t.Helper()
	require.NoError(w.t, w.admin.Create(w.t.Context(), &rbacv1.RoleBinding{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespace, Name: user + "-" + role},
		RoleRef:    rbacv1.RoleRef{APIGroup: rbacv1.GroupName, Kind: kind, Name: role},
		Subjects:   []rbacv1.Subject{{APIGroup: rbacv1.GroupName, Kind: "User", Name: user}},
	}))
}

// until waits until the policies are in force: create is refused.
func (w *world) until(c client.Client, object func() client.Object) {
	w.t.Helper()
	require.Eventually(w.t, func() bool {
		o := object()
		err := c.Create(w.t.Context(), o)
		if err == nil {
			require.NoError(w.t, w.admin.Delete(w.t.Context(), o))
		}
		return apierrors.IsForbidden(err) && strings.Contains(err.Error(), "ValidatingAdmissionPolicy")
	}, time.Minute, 50*time.Millisecond)
}

var (
	hash  = strings.Repeat("ab", 32)
	other = strings.Repeat("cd", 32)
)

// intercept is one of ann's with a condition, changed by each of the functions.
func intercept(name, user string, change ...func(*v1alpha1.InterceptSpec)) *v1alpha1.Intercept {
	value := user
	i := &v1alpha1.Intercept{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name},
		Spec: v1alpha1.InterceptSpec{
			Name: name, Workload: v1alpha1.WorkloadReference{Kind: "Deployment", Name: "orders"},
			Mechanism: v1alpha1.MechanismHTTP,
			HTTP:      &v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-user", Value: &value}}},
			Client: v1alpha1.ClientReference{
				Session: "00000000-0000-4000-8000-000000000000", Holder: user + "@laptop", KeyHash: hash, User: user,
			},
		},
	}
	for _, f := range change {
		f(&i.Spec)
	}
	return i
}

func login(name, user string, groups ...string) *v1alpha1.Login {
	return &v1alpha1.Login{
		ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: name},
		Spec: v1alpha1.LoginSpec{User: user, Groups: groups, KeyHash: hash,
			Expires: metav1.NewTime(time.Now().Add(time.Hour))},
	}
}

var (
	everything = rbacv1.PolicyRule{APIGroups: []string{"sidestep.dev"}, Resources: []string{"intercepts"},
		Verbs: []string{"*"}}
	toPod     = func(s *v1alpha1.InterceptSpec) { s.ToPod = []int32{5432} }
	wiretap   = func(s *v1alpha1.InterceptSpec) { s.Wiretap = true }
	wholePort = func(s *v1alpha1.InterceptSpec) { s.Mechanism, s.HTTP = v1alpha1.MechanismTCP, nil }
	all       = func(s *v1alpha1.InterceptSpec) { s.HTTP = nil }
	path      = func(prefix, regex string) func(*v1alpha1.InterceptSpec) {
		at := &v1alpha1.PathMatch{Prefix: &prefix}
		if regex != "" {
			at = &v1alpha1.PathMatch{Regex: &regex}
		}
		return func(s *v1alpha1.InterceptSpec) { s.HTTP = &v1alpha1.HTTPMatch{Path: at} }
	}
)

// TestTheAPIServerVouchesForUsers tries what a colleague with every right to Intercepts of the
// namespace may try with those of ann.
func TestTheAPIServerVouchesForUsers(t *testing.T) {
	w := apiServer(t, values{})
	for _, user := range []string{"ann", "eve"} {
		w.bind("shop", user, "ClusterRole", "sidestep-user")
		w.bind("sidestep", user, "Role", "sidestep-user")
	}
	ann, eve := w.as("ann", "developers"), w.as("eve", "developers", "interns")
	w.until(eve, func() client.Object { return intercept("probe", "ann") })
	w.until(eve, func() client.Object { return login("probe", "ann") })

	t.Run("an intercept is for the user who creates it", func(t *testing.T) {
		assert.ErrorContains(t, eve.Create(t.Context(), intercept("forged", "ann")),
			`the intercept is user "ann"'s, and user "eve" can neither create it for them nor change it`)
		assert.ErrorContains(t, eve.Create(t.Context(), intercept("nameless", "")), "upgrade it")
		assert.ErrorContains(t, w.admin.Create(t.Context(), intercept("forged", "ann")), "ann",
			"nor does an administrator create one for somebody else")
	})
	held := intercept("orders", "ann")
	require.NoError(t, ann.Create(t.Context(), held))
	t.Run("nobody else changes its spec", func(t *testing.T) {
		for name, change := range map[string]func(*v1alpha1.InterceptSpec){
			"destination": func(s *v1alpha1.InterceptSpec) { s.Destination.Port = 2375 },
			"to-pod":      toPod,
			"environment": func(s *v1alpha1.InterceptSpec) { s.Environment = true },
			"service":     func(s *v1alpha1.InterceptSpec) { s.Service = "other" },
			"port":        func(s *v1alpha1.InterceptSpec) { s.Port = "debug" },
			"container":   func(s *v1alpha1.InterceptSpec) { s.Container = "proxy" },
			"existing":    func(s *v1alpha1.InterceptSpec) { s.Existing = "all" },
			"key":         func(s *v1alpha1.InterceptSpec) { s.Client.KeyHash = other },
			"user":        func(s *v1alpha1.InterceptSpec) { s.Client.User = "eve" },
		} {
			changed := held.DeepCopy()
			change(&changed.Spec)
			assert.Error(t, eve.Update(t.Context(), changed), name)
			patch := client.MergeFrom(held.DeepCopy())
			assert.Error(t, eve.Patch(t.Context(), changed, patch), name)
		}
	})
	t.Run("its user changes it, and everybody its labels", func(t *testing.T) {
		moved := held.DeepCopy()
		moved.Spec.Port = "http"
		require.NoError(t, ann.Update(t.Context(), moved))
		moved.Labels = map[string]string{"a": "b"}
		require.NoError(t, eve.Update(t.Context(), moved))
		moved.Spec.Existing = "all"
		assert.ErrorContains(t, ann.Update(t.Context(), moved), "existing")
	})
	t.Run("a login is its user's, with no group that the user has not", func(t *testing.T) {
		assert.ErrorContains(t, eve.Create(t.Context(), login("forged", "ann")), `cannot log in as user "ann"`)
		assert.ErrorContains(t, eve.Create(t.Context(), login("forged", "eve", "developers", "system:masters")),
			"is no member of all groups")
		stays := login("stays", "eve")
		stays.Finalizers = []string{"example.com/stay"}
		assert.ErrorContains(t, eve.Create(t.Context(), stays), "a login has no finalizers")
		assert.NoError(t, eve.Create(t.Context(), login("part", "eve", "interns")), "some of its groups")
		assert.NoError(t, ann.Create(t.Context(), login("ann", "ann", "developers")))
		mine := login("ann", "ann")
		require.NoError(t, ann.Get(t.Context(), client.ObjectKeyFromObject(mine), mine))
		mine.Spec.KeyHash = other
		assert.Error(t, ann.Update(t.Context(), mine), "it does not change")
		assert.ErrorContains(t, w.admin.Update(t.Context(), mine), "cannot change")
		assert.ErrorContains(t, eve.Delete(t.Context(), login("ann", "ann")), "logins/others")
		assert.NoError(t, ann.Delete(t.Context(), login("ann", "ann")))
		assert.NoError(t, w.as("system:serviceaccount:sidestep:sidestep-manager",
			"system:serviceaccounts", "system:serviceaccounts:sidestep").
			Delete(t.Context(), login("part", "eve")), "the manager deletes what has expired")
	})
}

// TestRightsAreAsFineAsWhatTheyGive tries each kind of intercept with and without its right.
func TestRightsAreAsFineAsWhatTheyGive(t *testing.T) {
	w := apiServer(t, values{"rbac": values{"toPod": false, "wiretap": false, "wholePort": false}})
	w.bind("shop", "dev", "ClusterRole", "sidestep-user")
	w.allow("shop", "plain", everything)
	kinds := map[string][]func(*v1alpha1.InterceptSpec){
		"topod": {toPod}, "wiretap": {wiretap}, "wholeport": {wholePort, all, path("/", ""), path("", ".*"), path("", "^/.*$")},
	}
	for right := range kinds {
		w.bind("shop", right, "ClusterRole", "sidestep-user")
		w.bind("shop", right, "ClusterRole", "sidestep-"+right)
	}
	plain := w.as("plain")
	w.until(plain, func() client.Object { return intercept("probe", "plain", toPod) })
	for _, user := range []string{"dev", "plain", "topod", "wiretap", "wholeport"} {
		c := w.as(user)
		assert.NoError(t, c.Create(t.Context(), intercept(user, user)), "one with a condition is everybody's")
		assert.NoError(t, c.Create(t.Context(), intercept(user+"-path", user, path("/api", ""))))
		for right, changes := range kinds {
			for n, change := range changes {
				err := c.Create(t.Context(), intercept(user+"-"+right+strings.Repeat("x", n), user, change))
				if user == right {
					assert.NoError(t, err, "%s asks for %s", user, right)
					continue
				}
				assert.True(t, apierrors.IsForbidden(err), "%s asks for %s: %v", user, right, err)
				assert.ErrorContains(t, err, `cannot get resource "intercepts/`+right+`"`)
			}
		}
		later := intercept(user, user)
		require.NoError(t, c.Get(t.Context(), client.ObjectKeyFromObject(later), later))
		toPod(&later.Spec)
		assert.Equal(t, user == "topod", c.Update(t.Context(), later) == nil, "%s asks for it later", user)
	}
}

// TestAnUpgradeGoesOnAdmittingOlderLaptops renders the value that an upgrade keeps.
func TestAnUpgradeGoesOnAdmittingOlderLaptops(t *testing.T) {
	expression := func(set values) string {
		policy := get[*admissionv1.ValidatingAdmissionPolicy](t, mustRender(t, set),
			"ValidatingAdmissionPolicy/sidestep-holder")
		require.Len(t, policy.Spec.Validations, 1)
		return policy.Spec.Validations[0].Expression
	}
	strict := expression(values{})
	assert.Equal(t, strict, expression(values{"compatibility": values{"olderLaptops": false}}))
	lenient := expression(values{"compatibility": values{"olderLaptops": true}})
	assert.NotEqual(t, strict, lenient)
	assert.Contains(t, lenient, "variables.user == ''")

	w := apiServer(t, values{"compatibility": values{"olderLaptops": true}})
	w.bind("shop", "ann", "ClusterRole", "sidestep-user")
	ann := w.as("ann")
	w.until(ann, func() client.Object { return intercept("probe", "bob") })
	assert.NoError(t, ann.Create(t.Context(), intercept("older", "")))
	assert.Error(t, ann.Create(t.Context(), intercept("forged", "bob")))
}

// TestEveryPolicyDenies makes sure that no policy of the chart only warns, or lets pass what it
// could not decide, but for the one about overlaps, which the manager decides again.
func TestEveryPolicyDenies(t *testing.T) {
	rendered := mustRender(t, values{})
	var names []string
	for key, object := range rendered {
		policy, ok := object.(*admissionv1.ValidatingAdmissionPolicy)
		if !ok {
			continue
		}
		names = append(names, policy.Name)
		binding := get[*admissionv1.ValidatingAdmissionPolicyBinding](t, rendered,
			"ValidatingAdmissionPolicyBinding/"+policy.Name)
		assert.Equal(t, []admissionv1.ValidationAction{admissionv1.Deny}, binding.Spec.ValidationActions, key)
		assert.Equal(t, policy.Name, binding.Spec.PolicyName, key)
		if policy.Name != "sidestep-overlap" {
			assert.Equal(t, admissionv1.Fail, *policy.Spec.FailurePolicy, key)
		}
	}
	slices.Sort(names)
	assert.Equal(t, []string{"sidestep-environment", "sidestep-holder", "sidestep-login", "sidestep-overlap",
		"sidestep-rights"}, names)
}

// TestTheManagerKnowsWhatTheValuesAdmit compares the manager's flags and the notes with the values.
func TestTheManagerKnowsWhatTheValuesAdmit(t *testing.T) {
	args := func(set values) []string {
		return get[*appsv1.Deployment](t, mustRender(t, set),
			"Deployment/sidestep-manager").Spec.Template.Spec.Containers[0].Args
	}
	assert.NotContains(t, args(values{}), "--older-laptops")
	assert.NotContains(t, args(values{}), "--review-rights=false")
	older := values{"compatibility": values{"olderLaptops": true}, "rbac": values{"reviewWhileUsed": false}}
	assert.Contains(t, args(older), "--older-laptops")
	assert.Contains(t, args(older), "--review-rights=false")

	notes := func(set values) string {
		files, _ := renderTLS(t, cluster{dynamicfake.NewSimpleDynamicClient(scheme.Scheme)}, set)
		return files["sidestep/templates/NOTES.txt"]
	}
	assert.Contains(t, notes(older), "WARNING: laptops of the version before are admitted")
	assert.NotContains(t, notes(values{}), "WARNING")
}
