// SPDX-License-Identifier: Apache-2.0

package claims_test

import (
	"fmt"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"k8s.io/apimachinery/pkg/types"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
	"sidestep.dev/sidestep/manager/decide/claims"
)

// claim returns a claim at targets "pod:port" of one digit each. Its uid orders claims of the same
// age.
func claim(t *testing.T, uid types.UID, age int, header string, targets ...string) claims.Claim {
	t.Helper()
	c := claims.Claim{UID: uid, Created: time.Unix(int64(age), 0), Asked: "orders/http", TCP: header == "tcp"}
	if header != "tcp" && header != "" {
		rule, err := match.FromSpec(
			&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Value: &header}}})
		require.NoError(t, err)
		c.Rule = rule
	}
	for _, s := range targets {
		var pod rune
		var port int32
		_, err := fmt.Sscanf(s, "%c:%d", &pod, &port)
		require.NoError(t, err)
		c.Targets = append(c.Targets, claims.Target{UID: types.UID(pod), Port: port})
	}
	return c
}

func TestWhoIsAccepted(t *testing.T) {
	type verdicts map[types.UID]claims.Verdict
	yes, no := claims.Verdict{Accepted: true},
		func(holder types.UID) claims.Verdict { return claims.Verdict{Holder: holder} }
	moved := func(c claims.Claim) claims.Claim { c.Asked = "orders/grpc"; return c }
	recorded := func(c claims.Claim) claims.Claim { c.Accepted = true; return c }
	for _, tc := range []struct {
		name string
		do   func(t *testing.T, table *claims.Table)
		want verdicts
	}{
		{"different headers share a port", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "alice", "p:1"))
			table.Set(claim(t, "b", 2, "bob", "p:1"))
		}, verdicts{"a": yes, "b": yes}},
		{"the same header does not", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "alice", "p:1"))
			table.Set(claim(t, "b", 2, "alice", "p:1"))
		}, verdicts{"a": yes, "b": no("a")}},
		{"a tcp intercept shares with nobody", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "bob", "p:1"))
			table.Set(claim(t, "c", 2, "tcp", "p:1"))
		}, verdicts{"a": yes, "b": no("a"), "c": no("a")}},
		{"a tcp intercept is refused where others are", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "alice", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "p:1"))
		}, verdicts{"a": yes, "b": no("a")}},
		{"other ports and other pods are no matter", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "p:2"))
			table.Set(claim(t, "c", 3, "tcp", "q:1"))
		}, verdicts{"a": yes, "b": yes, "c": yes}},
		{"one shared pod is enough", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1", "q:1"))
			table.Set(claim(t, "b", 2, "tcp", "q:1", "r:1"))
		}, verdicts{"a": yes, "b": no("a")}},
		{"whoever has it keeps it from an older one that comes later", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "b", 2, "tcp", "p:1"))
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "p:1"))
		}, verdicts{"b": yes, "a": no("b")}},
		{"an acceptance on record holds", func(t *testing.T, table *claims.Table) {
			table.Set(recorded(claim(t, "b", 2, "tcp", "p:1")))
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
		}, verdicts{"b": yes, "a": no("b")}},
		{"of two acceptances on record the older holds", func(t *testing.T, table *claims.Table) {
			table.Set(recorded(claim(t, "b", 2, "tcp", "p:1")))
			table.Set(recorded(claim(t, "a", 1, "tcp", "p:1")))
			table.Set(recorded(claim(t, "c", 3, "tcp", "p:1")))
		}, verdicts{"a": yes, "b": no("a"), "c": no("a")}},
		{"moving to a port that is taken is refused, though it had another before",
			func(t *testing.T, table *claims.Table) {
				table.Set(claim(t, "a", 1, "tcp", "p:1"))
				table.Set(claim(t, "b", 2, "tcp", "p:2"))
				table.Set(moved(claim(t, "a", 1, "tcp", "p:2")))
			}, verdicts{"a": no("b"), "b": yes}},
		{"moving away makes room", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "p:1"))
			table.Set(moved(claim(t, "a", 1, "tcp", "p:2")))
		}, verdicts{"a": yes, "b": yes}},
		{"moving back waits for whoever came in between", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "p:1"))
			table.Set(moved(claim(t, "a", 1, "tcp", "p:2")))
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
		}, verdicts{"a": no("b"), "b": yes}},
		{"the oldest that waits comes next", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "d", 4, "tcp", "p:1"))
			table.Set(claim(t, "c", 3, "tcp", "p:1"))
			table.Set(claim(t, "b", 3, "tcp", "p:1"))
			table.Remove("a")
		}, verdicts{"b": yes, "c": no("b"), "d": no("b")}},
		{"all that wait come in when they do not overlap", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "bob", "p:1"))
			table.Set(claim(t, "c", 3, "carol", "p:1"))
			table.Set(claim(t, "d", 4, "bob", "p:1"))
			table.Remove("a")
		}, verdicts{"b": yes, "c": yes, "d": no("b")}},
		{"of two that come to share a pod the older keeps it", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "q:1"))
			table.Set(claim(t, "b", 2, "tcp", "q:1", "r:1"))
			table.Set(claim(t, "a", 1, "tcp", "p:1", "r:1"))
		}, verdicts{"a": yes, "b": no("a")}},
		{"a revoked one makes room at its other pods", func(t *testing.T, table *claims.Table) {
			table.Set(claim(t, "a", 1, "tcp", "p:1"))
			table.Set(claim(t, "b", 2, "tcp", "q:1"))
			table.Set(claim(t, "c", 3, "tcp", "q:1"))
			table.Set(claim(t, "b", 2, "tcp", "p:1", "q:1"))
		}, verdicts{"a": yes, "b": no("a"), "c": yes}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			table := claims.NewTable()
			tc.do(t, table)
			got := verdicts{}
			for uid := range tc.want {
				got[uid] = table.Verdict(uid)
			}
			assert.Equal(t, tc.want, got)
		})
	}
}

func TestOthersWhoseVerdictsChangeAreNamed(t *testing.T) {
	table := claims.NewTable()
	assert.Empty(t, table.Set(claim(t, "a", 1, "tcp", "p:1")))
	assert.Empty(t, table.Set(claim(t, "b", 2, "tcp", "p:1")))
	assert.Empty(t, table.Set(claim(t, "c", 3, "tcp", "p:1")))
	assert.Empty(t, table.Set(claim(t, "a", 1, "tcp", "p:1", "q:1")), "a new pod changes nothing for others")
	assert.Equal(t, []types.UID{"b", "c"}, table.Remove("a"), "b comes in, and c now waits for b")
	assert.Empty(t, table.Remove("c"), "nobody waits for one that waits")
	assert.Empty(t, table.Remove("unknown"))
	assert.Equal(t, claims.Verdict{}, table.Verdict("a"))
}

func BenchmarkSetOnABusyPort(b *testing.B) {
	table := claims.NewTable()
	for i := range 1000 {
		header := fmt.Sprintf("dev-%d", i)
		rule, err := match.FromSpec(
			&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Value: &header}}})
		require.NoError(b, err)
		table.Set(claims.Claim{UID: types.UID(header), Rule: rule, Targets: []claims.Target{{UID: "p", Port: 1}}})
	}
	rule, err := match.FromSpec(
		&v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-dev", Value: new(string)}}})
	require.NoError(b, err)
	for b.Loop() {
		table.Set(claims.Claim{UID: "new", Rule: rule, Targets: []claims.Target{{UID: "p", Port: 1}}})
		table.Remove("new")
	}
}

func TestWhatAClaimWouldGetChangesNothing(t *testing.T) {
	table := claims.NewTable()
	table.Set(claim(t, "a", 1, "tcp", "p:1"))
	table.Set(claim(t, "b", 2, "tcp", "p:2"))
	assert.Equal(t, claims.Verdict{Holder: "b"}, table.Would(claim(t, "a", 1, "tcp", "p:2")))
	assert.Equal(t, claims.Verdict{Accepted: true}, table.Would(claim(t, "a", 1, "tcp", "p:3")))
	assert.Equal(t, claims.Verdict{Accepted: true}, table.Would(claim(t, "a", 1, "alice", "p:1")),
		"it is not in its own way")
	assert.Equal(t, claims.Verdict{Holder: "a"}, table.Would(claim(t, "c", 3, "alice", "p:1")))
	assert.Equal(t, claims.Verdict{Accepted: true}, table.Verdict("a"))
	assert.Equal(t, claims.Verdict{Accepted: true}, table.Verdict("b"))
	assert.Equal(t, claims.Verdict{}, table.Verdict("c"))
}
