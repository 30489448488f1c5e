// SPDX-License-Identifier: Apache-2.0

package identity

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	admissionv1 "k8s.io/api/admissionregistration/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/controller-runtime/pkg/client/fake"
	"sigs.k8s.io/controller-runtime/pkg/client/interceptor"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/access"
	"sidestep.dev/sidestep/manager/changes"
)

const (
	patient = 10 * time.Second
	often   = 5 * time.Millisecond
)

// world is an API server in memory, and Logins that follow it. Its policy was created at start.
type world struct {
	client.WithWatch
	t *testing.T
	*Logins
	changes  *changes.Set[string]
	start    time.Time
	ahead    atomic.Int64 // what the clock is ahead of start
	watching chan struct{}
	logged   *logged
	next     int
}

// IsWatchListSemanticsUnSupported tells informers to list and watch: the fake has nothing better.
func (w *world) IsWatchListSemanticsUnSupported() bool { return true }

// logged is a log that may be read while it is written.
type logged struct {
	mu  sync.Mutex
	buf bytes.Buffer
}

func (l *logged) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.buf.Write(p)
}

func (l *logged) count(text string) int {
	l.mu.Lock()
	defer l.mu.Unlock()
	return strings.Count(l.buf.String(), text)
}

// newWorld runs Logins. fails may give an error for lists and watches of them.
func newWorld(t *testing.T, fails func() error, objects ...client.Object) *world {
	t.Helper()
	scheme := runtime.NewScheme()
	require.NoError(t, v1alpha1.AddToScheme(scheme))
	require.NoError(t, admissionv1.AddToScheme(scheme))
	w := &world{t: t, changes: changes.NewSet[string](), start: time.Now().Truncate(time.Second),
		watching: make(chan struct{}, 100), logged: &logged{}}
	w.WithWatch = fake.NewClientBuilder().WithScheme(scheme).WithObjects(objects...).
		WithInterceptorFuncs(interceptor.Funcs{
			List: func(ctx context.Context, c client.WithWatch, list client.ObjectList,
				opts ...client.ListOption) error {
				if err := fails(); err != nil {
					return err
				}
				return c.List(ctx, list, opts...)
			},
			Watch: func(ctx context.Context, c client.WithWatch, list client.ObjectList,
				opts ...client.ListOption) (watch.Interface, error) {
				if err := fails(); err != nil {
					return nil, err
				}
				i, err := c.Watch(ctx, list, opts...)
				w.watching <- struct{}{}
				return i, err
			},
		}).Build()
	var err error
	w.Logins, err = New(Config{Client: w, Namespace: "sidestep", Guard: access.NewGuard(w, w.now),
		Log: slog.New(slog.NewTextHandler(w.logged, nil)), Now: w.now,
		Changed: func(keyHash string) { w.changes.Add(keyHash) }})
	require.NoError(t, err)
	ctx, cancel := context.WithCancel(context.Background())
	var wg sync.WaitGroup
	wg.Go(func() { w.Run(ctx) })
	t.Cleanup(func() { cancel(); wg.Wait() })
	return w
}

// known runs Logins that can be read, and waits until they have been.
func known(t *testing.T, objects ...client.Object) *world {
	t.Helper()
	w := newWorld(t, func() error { return nil }, objects...)
	<-w.watching
	require.Eventually(t, w.Known, patient, often)
	return w
}

func (w *world) now() time.Time { return w.start.Add(time.Duration(w.ahead.Load())) }

// policy is that of Logins and its binding, as created some time before now.
func policy(before time.Duration) []client.Object {
	created := metav1.NewTime(time.Now().Add(-before).Truncate(time.Second))
	at := metav1.ObjectMeta{Name: access.LoginPolicy, CreationTimestamp: created}
	return []client.Object{
		&admissionv1.ValidatingAdmissionPolicy{ObjectMeta: at},
		&admissionv1.ValidatingAdmissionPolicyBinding{ObjectMeta: at,
			Spec: admissionv1.ValidatingAdmissionPolicyBindingSpec{PolicyName: access.LoginPolicy,
				ValidationActions: []admissionv1.ValidationAction{admissionv1.Deny}}},
	}
}

// login creates a Login of a user, as old as age.
func (w *world) login(keyHash, user string, age, expires time.Duration, groups ...string) *v1alpha1.Login {
	w.t.Helper()
	w.next++
	l := &v1alpha1.Login{
		ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: fmt.Sprintf("l%d", w.next),
			UID:               types.UID(fmt.Sprintf("uid-%d", w.next)),
			CreationTimestamp: metav1.NewTime(w.start.Add(-age))},
		Spec: v1alpha1.LoginSpec{User: user, Groups: groups, KeyHash: keyHash,
			Expires: metav1.NewTime(w.start.Add(expires))},
	}
	require.NoError(w.t, w.Create(w.t.Context(), l))
	return l
}

func (w *world) eventually(f func() bool, says string) {
	w.t.Helper()
	require.Eventually(w.t, f, patient, often, says)
}

func (w *world) proof(keyHash, user string) (Proof, bool) {
	all := w.Proofs(keyHash, user)
	if len(all) == 0 {
		return Proof{}, false
	}
	return all[0], true
}

// logs waits for a line, and makes sure that there is one alone.
func (w *world) logs(text string) {
	w.t.Helper()
	w.eventually(func() bool { return w.logged.count(text) > 0 }, text)
	assert.Equal(w.t, 1, w.logged.count(text), text)
}

func (w *world) count() int {
	list := &v1alpha1.LoginList{}
	require.NoError(w.t, w.List(w.t.Context(), list))
	return len(list.Items)
}

func TestASessionIsProvenForWhoeverItsLoginNames(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	assert.False(t, w.Proven("k1"))
	first := w.login("k1", "ann", time.Minute, time.Hour, "developers")
	w.eventually(func() bool { return w.Proven("k1") }, "a Login proves its session")
	assert.Contains(t, w.changes.Take(), "k1")
	proof, ok := w.proof("k1", "ann")
	require.True(t, ok)
	assert.Equal(t, []string{"developers"}, proof.Groups)
	assert.False(t, w.Proven("k2"), "no other session")
	_, ok = w.proof("k1", "bob")
	assert.False(t, ok, "and no other user")

	w.login("k1", "eve", time.Minute, 2*time.Hour, "interns")
	w.eventually(func() bool { _, ok := w.proof("k1", "eve"); return ok },
		"whoever knows the hash of a key can be proven for it")
	proof, _ = w.proof("k1", "ann")
	assert.Equal(t, []string{"developers"}, proof.Groups, "as themselves alone")
	assert.Len(t, w.Proofs("k1", ""), 2, "whose an Intercept without a user is, either may be asked")

	w.login("k1", "ann", 0, 3*time.Hour, "admins")
	w.eventually(func() bool {
		p, _ := w.proof("k1", "ann")
		return len(p.Groups) == 1 && p.Groups[0] == "admins"
	},
		"the Login that lasts longest counts")
	require.NoError(t, w.Delete(t.Context(), first))
	assert.True(t, w.Proven("k1"))
	require.NoError(t, w.DeleteAllOf(t.Context(), &v1alpha1.Login{}, client.InNamespace("sidestep")))
	w.eventually(func() bool { return !w.Proven("k1") }, "deleting its Logins ends a proof")
	assert.Contains(t, w.changes.Take(), "k1")
}

func TestLoginsThatProveNothing(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	w.login("old", "ann", 61*time.Minute, time.Hour)
	w.login("same", "ann", time.Hour-time.Second, time.Hour)
	w.login("past", "ann", time.Minute, -time.Second)
	w.login("good", "ann", time.Minute, 1000*time.Hour)
	w.eventually(func() bool { return w.Proven("good") }, "one that is right")
	assert.False(t, w.Proven("old"), "created before there was a policy")
	assert.False(t, w.Proven("same"), "created before the API server enforced it")
	assert.False(t, w.Proven("past"), "expired")
	proof, _ := w.proof("good", "ann")
	assert.Equal(t, w.start.Add(24*time.Hour-time.Minute), proof.Expires, "however long it claims to be good")
	w.ahead.Store(int64(24 * time.Hour))
	assert.False(t, w.Proven("good"))
}

func TestWaitingForALogin(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	proven := make(chan bool)
	go func() { proven <- w.Wait(t.Context(), "k1") }()
	w.login("k2", "bob", 0, time.Hour)
	w.eventually(func() bool { return w.Proven("k2") }, "somebody else's")
	select {
	case <-proven:
		t.Error("it waits for another's Login")
	default:
	}
	w.login("k1", "ann", 0, time.Hour)
	assert.True(t, <-proven)
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	assert.False(t, w.Wait(ctx, "k3"))
}

func TestWithoutDefinitionOrPolicyNobodyIsProvenAndThatIsSaidOnce(t *testing.T) {
	t.Run("no policy", func(t *testing.T) {
		w := known(t)
		assert.True(t, w.Absent())
		w.login("k1", "ann", 0, time.Hour)
		assert.False(t, w.Wait(t.Context(), "k1"), "nothing is waited for")
		for range 3 {
			w.follow(t.Context())
		}
		w.logs("laptops cannot prove who their user is")
		for _, o := range policy(0) {
			require.NoError(t, w.Create(t.Context(), o))
		}
		w.ahead.Store(int64(time.Minute))
		w.eventually(func() bool { return !w.Absent() }, "the policy comes")
		assert.False(t, w.Proven("k1"), "the Login is older than the policy")
		w.logs("laptops prove who their user is")
		w.login("k1", "ann", -2*time.Minute, time.Hour)
		w.ahead.Store(int64(3 * time.Minute))
		w.eventually(func() bool { return w.Proven("k1") }, "a later Login")
		require.NoError(t, w.Delete(t.Context(), policy(0)[0]))
		w.ahead.Store(int64(4 * time.Minute))
		w.eventually(w.Absent, "the policy goes")
		assert.False(t, w.Proven("k1"))
	})
	t.Run("no definition", func(t *testing.T) {
		w := newWorld(t, func() error {
			return apierrors.NewNotFound(schema.GroupResource{Group: "sidestep.dev", Resource: "logins"}, "")
		}, policy(time.Hour)...)
		w.eventually(w.Absent, "it is noticed")
		assert.True(t, w.Known())
		assert.False(t, w.Wait(t.Context(), "k1"), "nothing is waited for")
		w.logs("the cluster has no definition of Logins")
	})
	t.Run("no answer", func(t *testing.T) {
		w := newWorld(t, func() error { return errors.New("busy") }, policy(time.Hour)...)
		ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
		defer cancel()
		assert.False(t, w.Wait(ctx, "k1"))
		assert.False(t, w.Absent(), "it may well be there")
		assert.False(t, w.Known())
	})
}

func TestUselessLoginsAreDeleted(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	w.login("past", "ann", time.Minute, -time.Second)
	mine := w.login("k1", "ann", 2*time.Minute, time.Hour)
	for n := range perUser {
		w.login(fmt.Sprint("e", n), "eve", time.Minute, time.Hour)
	}
	oldest := w.login("e", "eve", 2*time.Minute, time.Hour)
	w.eventually(func() bool { return w.Proven("e") && w.Proven("k1") && len(w.list()) == perUser+3 },
		"all are known")
	w.clean(t.Context())
	assert.Equal(t, perUser+1, w.count())
	assert.True(t, apierrors.IsNotFound(w.Get(t.Context(), client.ObjectKeyFromObject(oldest), oldest)),
		"the oldest of a user who has too many")
	assert.NoError(t, w.Get(t.Context(), client.ObjectKeyFromObject(mine), mine), "others lose none by that")
}

func TestLoginsThatAFinalizerKeepsCostNobodyTheirs(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	mine := w.login("k1", "ann", 2*time.Minute, time.Hour)
	w.eventually(func() bool { return w.Proven("k1") }, "it is known")
	for n := range inAll {
		w.put(&v1alpha1.Login{
			ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: fmt.Sprint("e", n),
				UID: types.UID(fmt.Sprint("e", n)), CreationTimestamp: metav1.NewTime(w.start.Add(-time.Minute)),
				DeletionTimestamp: &metav1.Time{Time: w.start}, Finalizers: []string{"example.com/stay"}},
			Spec: v1alpha1.LoginSpec{User: "eve", KeyHash: "e", Expires: metav1.NewTime(w.start.Add(time.Hour))},
		})
	}
	w.clean(t.Context())
	assert.NoError(t, w.Get(t.Context(), client.ObjectKeyFromObject(mine), mine))
}

func TestNothingOfALoginIsKeptThatIsNotRead(t *testing.T) {
	w := known(t, policy(time.Hour)...)
	l := &v1alpha1.Login{ObjectMeta: metav1.ObjectMeta{Namespace: "sidestep", Name: "big",
		Labels: map[string]string{"a": "b"}, Annotations: map[string]string{"a": strings.Repeat("b", 1000)},
		OwnerReferences: []metav1.OwnerReference{{Name: "a"}}}, Spec: v1alpha1.LoginSpec{KeyHash: "k1"}}
	require.NoError(t, w.Create(t.Context(), l))
	w.eventually(func() bool { return len(w.list()) == 1 }, "it is known")
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, kept := range w.all {
		assert.Empty(t, kept.Labels)
		assert.Empty(t, kept.Annotations)
		assert.Empty(t, kept.OwnerReferences)
	}
}

func (l *Logins) list() []string {
	l.mu.Lock()
	defer l.mu.Unlock()
	var all []string
	for uid := range l.all {
		all = append(all, string(uid))
	}
	return all
}
