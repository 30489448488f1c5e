// SPDX-License-Identifier: Apache-2.0

package intercept

import (
	"context"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/names"
)

const session = "11111111-2222-3333-4444-555555555555"

func newRegistry(t *testing.T) *Registry {
	r := NewRegistry(Config{
		Client: Client{Session: session, KeyHash: "hash"}, Source: kube.NewSource(kube.Access{}),
		Presence: func() Presence { return Presence{} },
		Save:     func([]string, []Known) error { return nil }, Log: slog.New(slog.DiscardHandler),
	})
	t.Cleanup(r.Close)
	return r
}

// object of this client; a port of 0 is the container's.
func object(uid, version string, generation int64, port int32) *v1alpha1.Intercept {
	return &v1alpha1.Intercept{
		ObjectMeta: metav1.ObjectMeta{
			Namespace: "shop", Name: uid + "-11111111", UID: types.UID(uid), ResourceVersion: version,
			Generation: generation,
			Labels:     map[string]string{names.LabelSession: session},
		},
		Spec: v1alpha1.InterceptSpec{Name: uid, Client: v1alpha1.ClientReference{Session: session, KeyHash: "hash"},
			Destination: v1alpha1.Destination{Port: port}},
	}
}

// put is news of an object that the laptop created.
func put(r *Registry, i *v1alpha1.Intercept) {
	if r.tracked[i.UID] == nil {
		r.tracked[i.UID] = &tracked{ref: refOf(i), own: own{destination: i.Spec.Destination}}
	}
	r.put(i)
}

// wrote is the answer to a call that wrote an object.
func wrote(r *Registry, i *v1alpha1.Intercept) { r.wroteOwn(i, &i.Spec) }

func known(r *Registry) (names []string) {
	all, _ := r.All()
	for _, i := range all {
		names = append(names, i.Spec.Name)
	}
	return names
}

func TestRegistryIsNotTakenInByOldNews(t *testing.T) {
	t.Run("the answer to a call that comes after the watch's news", func(t *testing.T) {
		r := newRegistry(t)
		active := object("a", "7", 1, 1)
		active.Status.State = v1alpha1.StateActive
		put(r, active)
		wrote(r, object("a", "6", 1, 1))
		got, _ := r.get("a")
		assert.Equal(t, v1alpha1.StateActive, got.Status.State)
		wrote(r, object("a", "8", 2, 2))
		got, _ = r.get("a")
		assert.EqualValues(t, 2, got.Spec.Destination.Port)
	})
	t.Run("the watch's news from before a move", func(t *testing.T) {
		r := newRegistry(t)
		wrote(r, object("a", "8", 2, 2))
		put(r, object("a", "7", 1, 1))
		got, _ := r.get("a")
		assert.EqualValues(t, 2, got.Spec.Destination.Port)
	})
	t.Run("the watch's news about what was deleted", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		r.deleted("a", nil)
		put(r, object("a", "2", 1, 1))
		assert.Empty(t, known(r))
	})
	t.Run("a list that was begun before an object was made", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 1))
		begun := r.clock
		put(r, object("b", "2", 1, 2))
		r.replace("shop", nil, begun, endedBySomebody)
		assert.Equal(t, []string{"b"}, known(r))
	})
	t.Run("what is another client's", func(t *testing.T) {
		r := newRegistry(t)
		other := object("a", "1", 1, 1)
		other.Labels[names.LabelSession] = "other"
		r.put(other)
		forged := object("b", "1", 1, 1)
		forged.Spec.Client.Session = "other"
		r.put(forged)
		stolen := object("c", "1", 1, 1)
		stolen.Spec.Client.KeyHash = "other"
		put(r, stolen)
		r.put(object("d", "1", 1, 1))
		assert.Empty(t, known(r))
	})
}

func TestTarget(t *testing.T) {
	open := &tunnelpb.Open{InterceptUid: "a", InterceptNamespace: "shop", InterceptName: "a-11111111"}
	t.Run("of an unknown intercept there is none", func(t *testing.T) {
		r := newRegistry(t)
		assert.False(t, r.Knows(t.Context(), open))
		assert.Empty(t, r.Target(t.Context(), open))
	})
	t.Run("an intercept that is just being made is waited for, and its news are not lost", func(t *testing.T) {
		r := newRegistry(t)
		r.reserved["a"] = &reservation{namespace: "shop", object: "a-11111111", name: "a",
			address: "127.0.0.1", port: 9000}
		got := make(chan string)
		go func() { got <- r.Target(t.Context(), open) }()
		known := make(chan bool)
		go func() { known <- r.Knows(t.Context(), open) }()
		active := object("a", "2", 1, 9000)
		active.Status.State = v1alpha1.StateActive
		r.put(active)
		select {
		case <-got:
			require.Fail(t, "it does not wait for the UID")
		default:
		}
		created := object("a", "1", 1, 9000)
		r.wroteOwn(created, &created.Spec)
		assert.Equal(t, ":9000", strings.TrimPrefix(<-got, "127.0.0.1"))
		assert.True(t, <-known)
		now, _ := r.get("a")
		assert.Equal(t, v1alpha1.StateActive, now.Status.State)
	})
	t.Run("another object of the name of one that is being made is not it", func(t *testing.T) {
		r := newRegistry(t)
		r.reserved["a"] = &reservation{namespace: "shop", object: "a-11111111", name: "a", uid: "b"}
		assert.False(t, r.Knows(t.Context(), open))
	})
	t.Run("a container port stays what it was at first", func(t *testing.T) {
		r := newRegistry(t)
		for version, port := range []int32{0, 8080, 2375} {
			i := object("a", strconv.Itoa(version), 1, 0)
			i.Status.Pods = []v1alpha1.PodStatus{{Name: "p", Port: port}}
			put(r, i)
		}
		assert.Equal(t, "127.0.0.1:8080", r.Target(t.Context(), open))
		assert.EqualValues(t, 8080, r.known()[0].ContainerPort, "also for the next daemon")
	})
	t.Run("a container port is waited for", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 0))
		assert.True(t, r.Knows(t.Context(), open))
		got := make(chan string)
		go func() { got <- r.Target(t.Context(), open) }()
		resolved := object("a", "2", 1, 0)
		resolved.Status.Pods = []v1alpha1.PodStatus{{Name: "p", Port: 8080}}
		put(r, resolved)
		select {
		case addr := <-got:
			assert.Equal(t, "127.0.0.1:8080", addr)
		case <-time.After(10 * time.Second):
			require.Fail(t, "it waits on")
		}
	})
	t.Run("and not for ever", func(t *testing.T) {
		r := newRegistry(t)
		put(r, object("a", "1", 1, 0))
		ctx, cancel := context.WithCancel(t.Context())
		cancel()
		assert.Empty(t, r.Target(ctx, open))
	})
}

func TestDurationsAreShort(t *testing.T) {
	for d, want := range map[time.Duration]string{
		time.Hour + 4*time.Second: "1h", 15 * time.Minute: "15m", 75 * time.Minute: "1h15m",
		90 * time.Second: "1m30s", 2 * time.Minute: "2m",
		20*time.Second + 300*time.Millisecond: "20s", 10 * time.Hour: "10h", 30*time.Hour +
			10*time.Minute: "30h10m",
	} {
		assert.Equal(t, want, short(d))
	}
}

func TestWhoIsAlive(t *testing.T) {
	assert.True(t, Alive(os.Getpid()))
	cmd := exec.Command("sleep", "60")
	require.NoError(t, cmd.Start())
	assert.True(t, Alive(cmd.Process.Pid))
	require.NoError(t, cmd.Process.Kill())
	assert.Eventually(t, func() bool { return !Alive(cmd.Process.Pid) }, 20*time.Second,
		time.Millisecond, "though nobody has waited for it yet")
	_ = cmd.Wait()
	assert.False(t, Alive(cmd.Process.Pid))
}

func TestWhatIsToBeMadeAgainIsKeptWithItsUID(t *testing.T) {
	r := newRegistry(t)
	away := Presence{Away: time.Hour, Grace: time.Minute}
	r.presence = func() Presence { return away }
	put(r, object("a", "1", 1, 9000))
	r.remove("a", endedBySomebody)
	require.Len(t, r.known(), 1)
	assert.EqualValues(t, "a", r.known()[0].UID, "else it would pass for one of the first release")
	assert.EqualValues(t, 9000, r.known()[0].Port)
}
