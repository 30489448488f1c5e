// SPDX-License-Identifier: Apache-2.0

package controller

import (
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	dto "github.com/prometheus/client_model/go"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
)

// FuzzAnyIntercept makes the manager decide about anything that decodes as an Intercept, which is
// more than the CRD admits, beside an ordinary one.
func FuzzAnyIntercept(f *testing.F) {
	for _, seed := range []string{
		`{}`,
		`{"workload":{"kind":"Deployment","name":"app-0"},"mechanism":"http"}`,
		`{"workload":{"kind":"Deployment","name":"app-0"},"mechanism":"tcp","protocol":"UDP","port":"80"}`,
		`{"workload":{"kind":"Pod","name":"app-0-1-0"},"mechanism":"http","port":"web","toPod":[0,-1,70000]}`,
		`{"workload":{"kind":"ReplicaSet","name":"app-0-1"},"mechanism":"http","port":"-1","wiretap":true}`,
		`{"workload":{"kind":"Rollout","name":""},"mechanism":"http","service":"app-0","container":"none"}`,
		`{"workload":{"kind":"StatefulSet","name":"../x"},"mechanism":"x","existing":"y"}`,
		`{"workload":{"kind":"Deployment","name":"app-0"},"mechanism":"http","http":{"headers":[{"name":"X-A"}],"path":{}}}`,
		`{"workload":{"kind":"Deployment","name":"app-0"},"mechanism":"http","http":{"headers":[{"name":"x-dev","regex":"(?:a?){900}b"},{"name":"x-dev","value":"\u0000"}],"path":{"regex":"/\\Q["}}}`,
		`{"workload":{"kind":"Deployment","name":"app-0"},"mechanism":"http","http":{"headers":[{"name":"x-dev","regex":"[\\pL]{1000}{1000}"}],"path":{"prefix":"a?b"}}}`,
		`{"workload":{"kind":"Deployment","name":"app-0"},"mechanism":"http","client":{"holder":"\u001b[2J","keyHash":""},"destination":{"address":"\n","port":-1}}`,
	} {
		f.Add([]byte(seed))
	}
	c, _ := large(f, 1)
	c.resolveAll()
	c.settle()
	neighbour := c.entries[types.NamespacedName{Namespace: "ns-0", Name: "app-0-3"}]
	require.NotNil(f, neighbour)
	uids := 0
	f.Fuzz(func(t *testing.T, spec []byte) {
		ic := &v1alpha1.Intercept{}
		if json.Unmarshal(spec, &ic.Spec) != nil {
			return
		}
		uids++
		ic.ObjectMeta = metav1.ObjectMeta{Namespace: "ns-0", Name: "odd", UID: types.UID(fmt.Sprint("odd-", uids)),
			Generation: 1, CreationTimestamp: metav1.Now()}
		began := time.Now()
		require.NoError(t, c.informers.intercepts.GetIndexer().Add(ic))
		c.decide(key(ic))
		c.decide(key(ic))
		assert.Less(t, time.Since(began), 5*time.Second, "a decision takes milliseconds")
		c.settle()
		assert.True(t, c.claims.Verdict(neighbour.uid).Accepted, "the older intercept keeps what it has")
		require.NoError(t, c.informers.intercepts.GetIndexer().Delete(ic))
		c.decide(key(ic))
		c.settle()
		assert.NotContains(t, c.uids, ic.UID, "nothing of it stays")
	})
}

// panicking stands for a bug that concerns one object.
type panicking struct{ everybody }

func (panicking) Connected(keyHash string) bool {
	if keyHash == "3" {
		panic("an object that nobody thought of")
	}
	return true
}

func TestAPanicAboutOneInterceptLeavesTheOthers(t *testing.T) {
	c, _ := large(t, 1)
	c.cfg.Sessions = panicking{}
	c.resolveAll()
	c.settle()
	var counted dto.Metric
	require.NoError(t, c.panics.Write(&counted))
	assert.Equal(t, 1.0, counted.GetCounter().GetValue())
	for d := range developers {
		uid := types.UID(fmt.Sprintf("ic-app-0-%d", d))
		assert.Equal(t, d != 3, c.claims.Verdict(uid).Accepted, uid)
	}
}

func TestTheExpressionsOfANamespaceHaveABudget(t *testing.T) {
	c, _ := large(t, 1)
	add := func(namespace string, n int) types.NamespacedName {
		expr := fmt.Sprintf("n%d-(?:%s){4}", n, strings.Repeat("a", 400))
		ic := &v1alpha1.Intercept{ObjectMeta: metav1.ObjectMeta{Namespace: namespace,
			Name: fmt.Sprint("big-", n), UID: types.UID(fmt.Sprint(namespace, "-big-", n)), Generation: 1,
			CreationTimestamp: metav1.Unix(int64(n), 0)}}
		ic.Spec.Workload = v1alpha1.WorkloadReference{Kind: "Deployment", Name: "app-0"}
		ic.Spec.Mechanism = v1alpha1.MechanismHTTP
		ic.Spec.HTTP = &v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Regex: &expr}}}
		_, err := match.FromSpec(ic.Spec.HTTP)
		require.NoError(t, err)
		require.NoError(t, c.informers.intercepts.GetIndexer().Add(ic))
		c.reconcile(key(ic))
		c.settle()
		return key(ic)
	}
	state := func(k types.NamespacedName) (v1alpha1.State, string) {
		st := c.writer.wants[c.entries[k].uid].status
		return st.State, st.Message
	}
	var all []types.NamespacedName
	for n := range 14 {
		all = append(all, add("ns-0", n))
	}
	last := all[len(all)-1]
	got, message := state(last)
	assert.Equal(t, v1alpha1.StateInvalid, got)
	assert.Contains(t, message, "those of all intercepts in namespace ns-0 may have 20000")
	got, _ = state(all[0])
	assert.NotEqual(t, v1alpha1.StateInvalid, got)
	got, message = state(add("ns-1", 99))
	assert.NotContains(t, message, "instructions", "another namespace has a budget of its own")
	assert.Equal(t, v1alpha1.StateInvalid, got, "there is no such workload")

	gone := c.entries[all[0]].intercept
	require.NoError(t, c.informers.intercepts.GetIndexer().Delete(gone))
	c.reconcile(all[0])
	c.settle()
	_, message = state(all[12])
	assert.NotContains(t, message, "instructions", "the oldest that waited has what has become free")
}
