// SPDX-License-Identifier: Apache-2.0

package growth

import (
	"context"
	"fmt"
	"sync"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/agentpb"
	"sidestep.dev/sidestep/api/v1alpha1"
)

// newIntercept makes an intercept of a workload by a laptop, not created yet.
func newIntercept(workload int, name string, l *laptop) *v1alpha1.Intercept {
	return &v1alpha1.Intercept{
		ObjectMeta: metav1.ObjectMeta{Namespace: namespaceOf(workload), Name: name},
		Spec: v1alpha1.InterceptSpec{
			Name: nameOf(workload), Workload: v1alpha1.WorkloadReference{Kind: "Deployment",
				Name: nameOf(workload)}, Port: "http",
			Mechanism: v1alpha1.MechanismHTTP, Existing: "auto",
			HTTP:   &v1alpha1.HTTPMatch{Headers: []v1alpha1.HeaderMatch{{Name: "x-developer", Value: &name}}},
			Client: v1alpha1.ClientReference{Session: l.id, Holder: "ann@laptop", KeyHash: l.keyHash()},
		},
	}
}

// statuses follows the intercepts as the API server has them.
type statuses struct {
	mu     sync.Mutex
	active map[types.UID]int64 // the generation for which it is
	when   map[types.UID]time.Time
}

func (w *world) follow(ctx context.Context, work *sync.WaitGroup) (*statuses, error) {
	s := &statuses{active: map[types.UID]int64{}, when: map[types.UID]time.Time{}}
	all := &v1alpha1.InterceptList{}
	watching, err := w.admin.Watch(ctx, all)
	if err != nil {
		return nil, err
	}
	work.Go(func() {
		defer watching.Stop()
		for e := range watching.ResultChan() {
			ic, ok := e.Object.(*v1alpha1.Intercept)
			if !ok {
				continue
			}
			s.mu.Lock()
			switch was := s.active[ic.UID]; {
			case e.Type == watch.Deleted || ic.Status.State != v1alpha1.StateActive:
				delete(s.active, ic.UID)
			case was != ic.Status.ObservedGeneration:
				s.active[ic.UID], s.when[ic.UID] = ic.Status.ObservedGeneration, time.Now()
			}
			s.mu.Unlock()
		}
	})
	return s, nil
}

func (s *statuses) len() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return len(s.active)
}

// since waits until an intercept is active in its present generation, and returns when it became
// so.
func (s *statuses) since(ctx context.Context, ic *v1alpha1.Intercept) (when time.Time, err error) {
	err = until(ctx, "intercept "+ic.Name+" is active", func() bool {
		s.mu.Lock()
		defer s.mu.Unlock()
		when = s.when[ic.UID]
		return s.active[ic.UID] == ic.Generation
	})
	return when, err
}

// rule finds an intercept on a port, 0 for any, of an assignment.
func rule(a *agentpb.Assignment, uid types.UID, name string, port uint32) bool {
	for _, p := range a.GetPods() {
		for _, t := range p.GetTargets() {
			if port != 0 && t.GetPort() != port {
				continue
			}
			for _, r := range t.GetRules() {
				if r.GetInterceptName() == name && (uid == "" || r.GetInterceptUid() == string(uid)) {
					return true
				}
			}
		}
	}
	return false
}

// changes makes one change after the other, n of each kind, in a cluster where the first workloads
// are intercepted.
func (c *cluster) changes(ctx context.Context, n int, p *Point) error {
	for i := range n {
		// The workloads that are intercepted, in an order that visits all nodes.
		workload := (i * 7919) % min(p.Intercepts, workloads)
		if err := c.intercept(ctx, workload, fmt.Sprintf("new-%d", i), p); err != nil {
			return err
		}
		if err := c.replace(ctx, workload, p); err != nil {
			return err
		}
	}
	return nil
}

// intercept creates an intercept, moves it to another port, and deletes it.
func (c *cluster) intercept(ctx context.Context, workload int, name string, p *Point) error {
	ic := newIntercept(workload, name, c.laptops[0])
	began := time.Now()
	seen := c.fleet.expect(func(_ int, a *agentpb.Assignment) bool { return rule(a, "", name, 0) })
	if err := c.admin.Create(ctx, ic); err != nil {
		return err
	}
	p.Answered = append(p.Answered, ms(time.Since(began)))
	if err := arrival(ctx, seen, began, &p.Created); err != nil {
		return fmt.Errorf("creation of intercept %s: %w", name, err)
	}
	when, err := c.statuses.since(ctx, ic)
	if err != nil {
		return err
	}
	p.Active = append(p.Active, ms(when.Sub(began)))

	uid := ic.UID
	began = time.Now()
	seen = c.fleet.expect(func(_ int, a *agentpb.Assignment) bool { return rule(a, uid, name, otherPort) })
	if err := c.admin.Patch(ctx, ic,
		client.RawPatch(types.MergePatchType, []byte(`{"spec":{"port":"admin"}}`))); err != nil {
		return err
	}
	if err := arrival(ctx, seen, began, &p.Moved); err != nil {
		return fmt.Errorf("move of intercept %s: %w", name, err)
	}
	if _, err := c.statuses.since(ctx, ic); err != nil {
		return err
	}

	here := c.number(c.pods[workload].Spec.NodeName)
	began = time.Now()
	seen = c.fleet.expect(func(node int, a *agentpb.Assignment) bool {
		return node == here &&
			!rule(a, uid, name, 0)
	})
	if err := c.admin.Delete(ctx, ic); err != nil {
		return err
	}
	if err := arrival(ctx, seen, began, &p.Deleted); err != nil {
		return fmt.Errorf("deletion of intercept %s: %w", name, err)
	}
	return nil
}

// replace replaces the pod of a workload.
func (c *cluster) replace(ctx context.Context, workload int, p *Point) error {
	old := c.pods[workload]
	next, err := c.addPod(ctx, workload, old.Spec.NodeName)
	if err != nil {
		return err
	}
	// next is written when the API server answers, possibly after the node agent has the news
	uid := string(next.UID)
	began := time.Now()
	seen := c.fleet.expect(func(_ int, a *agentpb.Assignment) bool {
		for _, pod := range a.GetPods() {
			if pod.GetUid() == uid {
				return true
			}
		}
		return false
	})
	if err := c.runPod(ctx, next); err != nil {
		return err
	}
	if err := arrival(ctx, seen, began, &p.PodReady); err != nil {
		return fmt.Errorf("start of pod %s: %w", next.Name, err)
	}
	c.pods[workload] = next
	return c.admin.Delete(ctx, old, client.GracePeriodSeconds(0))
}

const arrivalPatience = 20 * time.Second

// arrival waits for what was expected, and notes how long after the beginning it came.
func arrival(ctx context.Context, seen <-chan time.Time, began time.Time, into *[]float64) error {
	select {
	case at := <-seen:
		*into = append(*into, ms(at.Sub(began)))
		return nil
	case <-time.After(arrivalPatience):
		return fmt.Errorf("no node agent has heard of it within %s", arrivalPatience)
	case <-ctx.Done():
		return ctx.Err()
	}
}

func ms(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }
