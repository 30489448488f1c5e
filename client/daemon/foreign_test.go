// SPDX-License-Identifier: Apache-2.0

package daemon_test

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"sidestep.dev/sidestep/api/daemonpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/reason"
)

// opened returns how the laptop answers a connection for an intercept.
func (w *world) opened(i *v1alpha1.Intercept) tunnelpb.Opened_Result {
	w.Helper()
	ctx, cancel := context.WithTimeout(w.Context(), patience)
	defer cancel()
	conn, opened, err := w.manager.Open(ctx, i, false)
	require.NoError(w, err)
	_ = conn.Close()
	return opened.GetResult()
}

// named returns the Intercept of that object name in the cluster.
func (w *world) named(name string) *v1alpha1.Intercept {
	w.Helper()
	for _, i := range w.api.Intercepts() {
		if i.Name == name {
			return &i
		}
	}
	require.Fail(w, "no Intercept "+name)
	return nil
}

// logged counts the lines of the daemon's log that contain a text.
func (w *world) logged(text string) int {
	log, err := os.ReadFile(w.options.LogFile)
	require.NoError(w, err)
	return strings.Count(string(log), text)
}

// forged is an Intercept that claims to be of this laptop's session.
func (w *world) forged(name string, like *v1alpha1.Intercept, port int32) *v1alpha1.Intercept {
	return &v1alpha1.Intercept{
		ObjectMeta: metav1.ObjectMeta{Namespace: "shop", Name: name, Labels: like.Labels},
		Spec: v1alpha1.InterceptSpec{
			Name: "stock", Workload: v1alpha1.WorkloadReference{Kind: "Deployment", Name: "stock"},
			Mechanism: "tcp", Existing: "auto", Client: like.Spec.Client,
			Destination: v1alpha1.Destination{Address: "127.0.0.1", Port: port},
		},
	}
}

func TestWhatSomebodyElseChangesInAnInterceptMovesNothingOnThisLaptop(t *testing.T) {
	w := connected(t)
	port, secret := w.echo("mine"), w.echo("other")
	lead, open := w.quietPort(), w.quietPort()
	w.manager.ToPods(func(*tunnelpb.Open) string { return "pod" })
	req := &daemonpb.InterceptRequest{Name: "orders", LocalPort: port, ToPod: []int32{lead}}
	w.mustIntercept(req)
	name := w.object().Name
	destination := fmt.Sprintf("127.0.0.1:%d", port)
	// unmoved checks delivery, listeners, status and list.
	unmoved := func(message string) {
		t.Helper()
		w.eventually(func() bool {
			infos := w.status().GetIntercepts()
			return len(infos) == 1 && strings.Contains(infos[0].GetMessage(), message)
		}, "status says: "+message)
		got, err := w.says(w.object(), 4)
		require.NoError(t, err)
		assert.Equal(t, "mine", got)
		assert.Equal(t, "pod hello", w.visits(lead))
		assert.False(t, w.listens(open))
		assert.Equal(t, destination, w.status().GetIntercepts()[0].GetDestination())
		assert.Equal(t, []int32{lead}, w.status().GetIntercepts()[0].GetToPod())
		list, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{Filter: "held"})
		require.NoError(t, err)
		require.Len(t, list.GetWorkloads(), 1)
		require.Len(t, list.GetWorkloads()[0].GetIntercepts(), 1)
		info := list.GetWorkloads()[0].GetIntercepts()[0]
		assert.Equal(t, destination, info.GetDestination())
		assert.Contains(t, info.GetMessage(), message)
	}
	const changed = "another user changed"
	w.api.Change(t, "shop", name, func(s *v1alpha1.InterceptSpec) {
		s.Destination.Port, s.ToPod = secret, []int32{lead, open}
	})
	unmoved(changed + " its destination and its ports to pods in the cluster")
	w.api.Change(t, "shop", name, func(s *v1alpha1.InterceptSpec) {
		s.Destination.Address, s.ToPod = "example.com", []int32{open}
	})
	unmoved(changed)
	t.Run("nor do they move a daemon that is started anew", func(t *testing.T) {
		w.stop()
		w.start()
		w.eventually(func() bool { return w.status().GetConnected() && w.listens(lead) }, "it goes on")
		unmoved(changed)
	})
	t.Run("and the same command again writes over them", func(t *testing.T) {
		w.mustIntercept(req)
		assert.Equal(t, v1alpha1.Destination{Address: "127.0.0.1", Port: port}, w.object().Spec.Destination)
		assert.Equal(t, []int32{lead}, w.object().Spec.ToPod)
		assert.NotContains(t, w.status().GetIntercepts()[0].GetMessage(), changed)
		unmoved("")
	})
}

func TestAnInterceptThatThisLaptopDidNotCreateIsIgnored(t *testing.T) {
	w := connected(t)
	w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("mine")})
	secret, door := w.echo("other"), w.quietPort()
	forged := w.forged("anything", w.object(), secret)
	forged.Spec.ToPod = []int32{door}
	w.api.Add(t, forged)
	const ignored = "ignoring an Intercept that this laptop did not create"
	check := func() {
		t.Helper()
		w.eventually(func() bool { return w.logged(ignored) > 0 }, "it is logged")
		assert.Equal(t, tunnelpb.Opened_UNKNOWN, w.opened(w.named("anything")))
		assert.False(t, w.listens(door))
		require.Len(t, w.status().GetIntercepts(), 1)
		assert.Equal(t, "orders", w.status().GetIntercepts()[0].GetName())
		list, err := w.daemon.List(t.Context(), &daemonpb.ListRequest{})
		require.NoError(t, err)
		for _, workload := range list.GetWorkloads() {
			if workload.GetName() == "stock" {
				assert.Empty(t, workload.GetIntercepts())
				assert.Len(t, workload.GetOthers(), 1, "it is listed as another's")
			}
		}
	}
	check()
	w.api.Change(t, "shop", "anything", func(s *v1alpha1.InterceptSpec) { s.Destination.Port++ })
	w.api.Change(t, "shop", "anything", func(s *v1alpha1.InterceptSpec) { s.Destination.Port-- })
	_, err := w.daemon.Leave(t.Context(), &daemonpb.LeaveRequest{Name: "stock"})
	assert.Equal(t, reason.InterceptNotFound, reason.Of(err))
	assert.Equal(t, 1, w.logged(ignored), "one line is enough")
	w.stop()
	w.start()
	w.eventually(func() bool { return w.status().GetConnected() && w.logged(ignored) == 2 }, "it goes on")
	check()
}

func TestAnObjectInTheWayOfANewIntercept(t *testing.T) {
	begin := func(t *testing.T, client func(*v1alpha1.ClientReference)) (*world, *v1alpha1.Intercept) {
		w := connected(t)
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: 9000})
		mine := w.object()
		forged := w.forged(strings.Replace(mine.Name, "orders", "stock", 1), mine, w.echo("other"))
		client(&forged.Spec.Client)
		w.api.Add(t, forged)
		return w, w.named(forged.Name)
	}
	t.Run("with another key is not adopted: it would get what this user may have", func(t *testing.T) {
		w, was := begin(t, func(c *v1alpha1.ClientReference) { c.KeyHash = strings.Repeat("ab", 32) })
		_, _, err := w.intercept(t.Context(), &daemonpb.InterceptRequest{Name: "stock", LocalPort: 9001,
			Environment: daemonpb.InterceptRequest_REQUIRED})
		assert.Equal(t, reason.InterceptExists, reason.Of(err))
		now := w.named(was.Name)
		assert.Equal(t, was.UID, now.UID)
		assert.Equal(t, was.Spec, now.Spec)
	})
	t.Run("with this laptop's key is replaced, as it may be of a call whose answer was lost", func(t *testing.T) {
		w, was := begin(t, func(*v1alpha1.ClientReference) {})
		port := w.echo("mine")
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "stock", LocalPort: port})
		now := w.named(was.Name)
		assert.NotEqual(t, was.UID, now.UID)
		assert.Equal(t, port, now.Spec.Destination.Port)
		got, err := w.says(now, 4)
		require.NoError(t, err)
		assert.Equal(t, "mine", got)
	})
}

// asReleased makes the session on disk one of a daemon that did not yet keep what it had created.
func (w *world) asReleased() {
	path := filepath.Join(w.options.CacheDir, "session.json")
	data, err := os.ReadFile(path)
	require.NoError(w, err)
	var record map[string]any
	require.NoError(w, json.Unmarshal(data, &record))
	intercepts := record["intercepts"].([]any)
	require.NotEmpty(w, intercepts)
	for _, i := range intercepts {
		for field := range i.(map[string]any) {
			switch field {
			case "name", "namespace", "kind", "workload", "holder":
			default:
				delete(i.(map[string]any), field)
			}
		}
	}
	data, err = json.Marshal(record)
	require.NoError(w, err)
	require.NoError(w, os.WriteFile(path, data, 0o600))
}

func TestASessionOfTheReleasedVersionGoesOn(t *testing.T) {
	begin := func(t *testing.T, address string) (*world, *v1alpha1.Intercept, int32, int32) {
		w := connected(t)
		w.manager.ToPods(func(*tunnelpb.Open) string { return "pod" })
		port, lead := w.echo("mine"), w.quietPort()
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", Address: address, LocalPort: port,
			ToPod: []int32{lead}})
		w.stop()
		w.asReleased()
		return w, w.object(), port, lead
	}
	t.Run("with what it had, at first sight", func(t *testing.T) {
		w, object, port, lead := begin(t, "")
		w.start()
		w.eventually(func() bool { return w.status().GetConnected() && w.listens(lead) }, "it goes on")
		got, err := w.says(object, 4)
		require.NoError(t, err)
		assert.Equal(t, "mine", got)
		w.api.Change(t, "shop", object.Name, func(s *v1alpha1.InterceptSpec) { s.Destination.Port++ })
		w.eventually(func() bool {
			return strings.Contains(w.status().GetIntercepts()[0].GetMessage(), "another user changed")
		}, "and from then on nobody else moves it")
		assert.Equal(t, fmt.Sprintf("127.0.0.1:%d", port), w.status().GetIntercepts()[0].GetDestination())
	})
	t.Run("but not with an address beyond this laptop, which anybody may have written", func(t *testing.T) {
		w, object, _, lead := begin(t, "10.1.2.3")
		w.start()
		w.eventually(func() bool { return w.status().GetConnected() && len(w.status().GetEnded()) == 1 },
			"the user is told")
		assert.Contains(t, w.status().GetEnded()[0].GetReason(), "10.1.2.3")
		assert.Equal(t, tunnelpb.Opened_UNKNOWN, w.opened(object))
		assert.False(t, w.listens(lead))
		w.mustIntercept(&daemonpb.InterceptRequest{Name: "orders", LocalPort: w.echo("anew")})
		got, err := w.says(w.object(), 4)
		require.NoError(t, err)
		assert.Equal(t, "anew", got)
	})
	t.Run("nor with an object of another key", func(t *testing.T) {
		w, object, _, lead := begin(t, "")
		w.api.Change(t, "shop", object.Name, func(s *v1alpha1.InterceptSpec) {
			s.Client.KeyHash = strings.Repeat("ab", 32)
		})
		w.start()
		w.eventually(func() bool { return w.status().GetConnected() && len(w.status().GetEnded()) == 1 },
			"it counts as ended")
		assert.False(t, w.listens(lead))
	})
}
