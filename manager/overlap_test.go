// SPDX-License-Identifier: Apache-2.0

package manager

import (
	"fmt"
	"strings"
	"sync"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"helm.sh/helm/v3/pkg/chart/loader"
	"helm.sh/helm/v3/pkg/chartutil"
	"helm.sh/helm/v3/pkg/engine"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/apis/meta/v1/unstructured"
	"sigs.k8s.io/controller-runtime/pkg/client"
	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/match"
)

// overlapPolicy puts the chart's policy into force.
func (k *kube) overlapPolicy(t *testing.T) {
	t.Helper()
	chart, err := loader.Load("../deploy/chart")
	require.NoError(t, err)
	set := map[string]any{"image": map[string]any{"registry": "registry.example"}}
	values, err := chartutil.ToRenderValues(chart, set,
		chartutil.ReleaseOptions{Name: "sidestep", Namespace: "sidestep"}, chartutil.DefaultCapabilities)
	require.NoError(t, err)
	rendered, err := engine.Render(chart, values)
	require.NoError(t, err)
	for document := range strings.SplitSeq(rendered["sidestep/templates/overlap.yaml"], "\n---\n") {
		u := &unstructured.Unstructured{}
		require.NoError(t, yaml.Unmarshal([]byte(document), &u.Object))
		require.NoError(t, k.Create(t.Context(), u))
	}
}

// held makes an intercept that has been accepted.
func (k *kube) held(t *testing.T, ic *v1alpha1.Intercept, service, port string, number int32) {
	t.Helper()
	status := v1alpha1.InterceptStatus{State: v1alpha1.StateActive, Service: service, Port: port,
		ServicePort: number, Conditions: []metav1.Condition{
			{Type: v1alpha1.ConditionAccepted, Status: metav1.ConditionTrue, Reason: "Accepted",
				LastTransitionTime: metav1.Now()},
		}}
	k.create(t, ic)
	ic.Status = status
	require.NoError(t, k.Status().Update(t.Context(), ic))
}

// rule parses conditions such as "x-dev=alice", "x-dev~al.*" and "/api" (equal), "/api*" (prefix),
// "~/a.*" (path by expression).
func rule(words string) *v1alpha1.HTTPMatch {
	m := &v1alpha1.HTTPMatch{}
	for word := range strings.FieldsSeq(words) {
		name, value, exact := strings.Cut(word, "=")
		_, expr, _ := strings.Cut(word, "~")
		prefix, isPrefix := strings.CutSuffix(word, "*")
		switch {
		case word[0] == '/' && isPrefix:
			m.Path = &v1alpha1.PathMatch{Prefix: &prefix}
		case word[0] == '/':
			m.Path = &v1alpha1.PathMatch{Equal: &word}
		case word[0] == '~':
			m.Path = &v1alpha1.PathMatch{Regex: &expr}
		case exact:
			m.Headers = append(m.Headers, v1alpha1.HeaderMatch{Name: name, Value: &value})
		default:
			name, _, _ = strings.Cut(word, "~")
			m.Headers = append(m.Headers, v1alpha1.HeaderMatch{Name: name, Regex: &expr})
		}
	}
	if words == "" {
		return nil
	}
	return m
}

func TestOverlapIsRefusedAtCreation(t *testing.T) {
	k := administrator(t) // and no manager, so that nothing but the policy decides
	k.overlapPolicy(t)
	holder := asks("alice", "", "")
	holder.Spec.HTTP = rule("x-dev=alice")
	k.held(t, holder, "orders", "http", 80)
	refused := func(ic *v1alpha1.Intercept) error { return k.Create(t.Context(), ic, client.DryRunAll) }
	like := func(change func(*v1alpha1.InterceptSpec)) *v1alpha1.Intercept {
		ic := asks("bob", "", "")
		ic.Spec.HTTP = rule("x-dev=alice")
		change(&ic.Spec)
		return ic
	}
	none := func(*v1alpha1.InterceptSpec) {}
	// The API server puts policies into force a moment after they were made.
	require.Eventually(t, func() bool { return refused(like(none)) != nil }, patient, often)

	t.Run("with the holder's name", func(t *testing.T) {
		err := refused(like(none))
		assert.True(t, apierrors.IsInvalid(err), "%v", err)
		assert.ErrorContains(t, err,
			`port http of Deployment orders is intercepted by alice@laptop (intercept "orders")`)
	})
	t.Run("by workload, service and port", func(t *testing.T) {
		for _, c := range []struct {
			name   string
			change func(*v1alpha1.InterceptSpec)
			is     bool
		}{
			{"the port by name", func(s *v1alpha1.InterceptSpec) { s.Port = "http" }, true},
			{"the port by number", func(s *v1alpha1.InterceptSpec) { s.Port = "80" }, true},
			{"the service", func(s *v1alpha1.InterceptSpec) { s.Service = "orders" }, true},
			{"every connection", func(s *v1alpha1.InterceptSpec) {
				s.Mechanism,
					s.HTTP = v1alpha1.MechanismTCP, nil
			}, true},
			{"a wiretap", func(s *v1alpha1.InterceptSpec) { s.Wiretap = true }, false},
			{"a wiretap of every connection", func(s *v1alpha1.InterceptSpec) {
				s.Wiretap, s.Mechanism, s.HTTP = true, v1alpha1.MechanismTCP, nil
			}, false},
			{"another port", func(s *v1alpha1.InterceptSpec) { s.Port = "grpc" }, false},
			{"another service", func(s *v1alpha1.InterceptSpec) { s.Service = "canary" }, false},
			{"another workload", func(s *v1alpha1.InterceptSpec) { s.Workload.Name = "stock" }, false},
			{"another kind", func(s *v1alpha1.InterceptSpec) { s.Workload.Kind = "StatefulSet" }, false},
		} {
			assert.Equal(t, c.is, refused(like(c.change)) != nil, c.name)
		}
	})
	t.Run("but not for a wiretap's sake", func(t *testing.T) {
		tap := like(func(s *v1alpha1.InterceptSpec) { s.Port, s.Wiretap = "grpc", true })
		tap.Name = "tap"
		k.held(t, tap, "orders", "grpc", 9090)
		other := like(func(s *v1alpha1.InterceptSpec) { s.Port = "grpc" })
		assert.NoError(t, refused(other))
		tap.Spec.Port = "http"
		assert.NoError(t, k.Update(t.Context(), tap), "it may move to where others are")
		require.NoError(t, k.Delete(t.Context(), tap))
	})
	t.Run("by protocol", func(t *testing.T) {
		datagrams := asks("carol", "53", "tcp")
		k.held(t, datagrams, "orders", "dns", 53)
		datagrams.Status.Protocol = v1alpha1.ProtocolUDP
		require.NoError(t, k.Status().Update(t.Context(), datagrams))
		for _, c := range []struct {
			name           string
			port, protocol string
			mechanism      v1alpha1.Mechanism
			refused        string
		}{
			{"the port by name", "dns", "", "tcp",
				`port dns/UDP of Deployment orders is intercepted by carol@laptop (intercept "orders")`},
			{"the number of UDP", "53", "UDP", "tcp",
				`port dns/UDP of Deployment orders is intercepted by carol@laptop (intercept "orders")`},
			{"the number of TCP", "53", "TCP", "tcp", ""},
			{"requests at the number", "53", "", "http", ""},
			{"the number of the other's TCP port", "80", "UDP", "tcp", ""},
		} {
			// What the policy goes by may be older than the status.
			assert.Eventually(t, func() bool {
				err := refused(like(func(s *v1alpha1.InterceptSpec) {
					s.Port, s.Protocol, s.Mechanism, s.HTTP = c.port, v1alpha1.Protocol(c.protocol),
						c.mechanism, nil
				}))
				if c.refused == "" {
					return err == nil
				}
				return apierrors.IsInvalid(err) && strings.Contains(err.Error(), c.refused)
			}, patient, often, c.name)
		}
		require.NoError(t, k.Delete(t.Context(), datagrams))
	})
	t.Run("and a spec makes sense", func(t *testing.T) {
		err := refused(like(func(s *v1alpha1.InterceptSpec) {
			s.Port, s.Protocol = "dns",
				v1alpha1.ProtocolUDP
		}))
		assert.ErrorContains(t, err, "there are no HTTP requests in them")
	})
	t.Run("when it moves, but not when it is labelled", func(t *testing.T) {
		other := like(func(s *v1alpha1.InterceptSpec) { s.Port = "grpc" })
		k.create(t, other)
		other.Labels = map[string]string{"team": "a"}
		require.NoError(t, k.Update(t.Context(), other))
		other.Spec.Port = "http"
		assert.True(t, apierrors.IsInvalid(k.Update(t.Context(), other)))
		holder := k.intercept(t, "alice")
		holder.Spec.Port = "http"
		assert.NoError(t, k.Update(t.Context(), holder), "nobody is in their own way")
		require.NoError(t, k.Delete(t.Context(), other))
	})
	t.Run("but not for one that is being deleted, which a finalizer can keep for ever", func(t *testing.T) {
		leaving := like(func(s *v1alpha1.InterceptSpec) { s.Port = "grpc" })
		leaving.Name, leaving.Finalizers = "leaving", []string{"example.com/stay"}
		k.held(t, leaving, "orders", "grpc", 9090)
		defer func() {
			leaving = k.intercept(t, "leaving")
			leaving.Finalizers = nil
			require.NoError(t, k.Update(t.Context(), leaving))
		}()
		next := like(func(s *v1alpha1.InterceptSpec) { s.Port = "grpc" })
		require.Eventually(t, func() bool { return refused(next.DeepCopy()) != nil }, patient, often)
		require.NoError(t, k.Delete(t.Context(), leaving))
		assert.Eventually(t, func() bool { return refused(next.DeepCopy()) == nil }, patient, often)
	})
	t.Run("by rules, as the manager compares them", func(t *testing.T) { compareRules(t, k, like, refused) })
}

// compareRules compares each rule with each. What the policy refuses must overlap in the manager's
// opinion too. What overlaps must be refused, unless expressions for paths differ.
func compareRules(t *testing.T, k *kube, like func(func(*v1alpha1.InterceptSpec)) *v1alpha1.Intercept,
	refused func(*v1alpha1.Intercept) error) {
	rules := []string{
		"", "x-dev=alice", "X-Dev=alice", "x-dev=bob", "x-dev~al.*", "x-dev~b.*", "x-dev=alice y=1",
		"y=1", "x-dev=a|b", "x-dev~a|b", "x-dev=xa",
		"/api", "/api*", "/api/v1*", "/other*", "~/api/.*", "~/ap.*", "/api/v1", "x-dev=alice /api*",
		"x-dev=bob /api*", "x-dev=alice /other",
	}
	for i, held := range rules {
		ic := asks("carol", "", "")
		ic.Spec.Workload.Name, ic.Spec.HTTP = fmt.Sprintf("w-%d", i), rule(held)
		k.held(t, ic, "orders", "http", 80)
		// The API server learns of it a moment later.
		require.Eventually(t, func() bool {
			return refused(like(func(s *v1alpha1.InterceptSpec) {
				s.Workload.Name,
					s.HTTP = ic.Spec.Workload.Name, rule(held)
			})) != nil
		}, patient, often)
		mine, err := match.FromSpec(ic.Spec.HTTP)
		require.NoError(t, err)
		for _, asked := range rules {
			next := like(func(s *v1alpha1.InterceptSpec) {
				s.Workload.Name,
					s.HTTP = ic.Spec.Workload.Name, rule(asked)
			})
			theirs, err := match.FromSpec(next.Spec.HTTP)
			require.NoError(t, err)
			is, expected := refused(next) != nil, mine.Overlaps(theirs)
			if strings.Contains(held, "~/") && asked != held && strings.Contains(asked, "/") ||
				strings.Contains(asked, "~/") && asked != held && strings.Contains(held, "/") {
				assert.False(t, is && !expected, "%q is refused where %q is held, and does not overlap",
					asked, held)
				continue
			}
			assert.Equal(t, expected, is, "%q where %q is held", asked, held)
		}
		require.NoError(t, k.Delete(t.Context(), ic))
	}
}

func TestOfManyThatWantTheSameAtOnceOneHasIt(t *testing.T) {
	k, m, _ := real(t)
	k.overlapPolicy(t)
	k.run(t, k.pod(t, k.shop(t), "p1", "node-1"))
	a := m.realAgent(t, k, "node-1")
	const many = 12
	for i := range many {
		m.laptop(t, fmt.Sprintf("dev%d", i), 0)
	}
	var wg sync.WaitGroup
	made := make([]bool, many)
	for i := range many {
		wg.Go(func() {
			ic := asks(fmt.Sprintf("dev%d", i), "http", "same")
			err := k.Create(t.Context(), ic)
			made[i] = err == nil
			if err != nil {
				assert.ErrorContains(t, err, "port http of Deployment orders is intercepted by dev")
			}
		})
	}
	wg.Wait()
	require.EventuallyWithT(t, func(c *assert.CollectT) {
		states := map[v1alpha1.State]int{}
		for i := range many {
			if made[i] {
				states[k.intercept(t, fmt.Sprintf("dev%d", i)).Status.State]++
			}
		}
		assert.Equal(c, 1, states[v1alpha1.StateActive], "%v", states)
		for state := range states {
			assert.Contains(c, []v1alpha1.State{v1alpha1.StateActive, v1alpha1.StateConflict}, state)
		}
	}, patient, often)
	assert.Len(t, a.targets(), 1)
}
