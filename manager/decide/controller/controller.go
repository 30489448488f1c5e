// SPDX-License-Identifier: Apache-2.0

// Package controller resolves every Intercept, decides about it, passes its placements to the plan,
// and keeps its status true. Only events drive it: from the cluster, from node agents and from
// laptops.
package controller

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/manager/access"
	"sidestep.dev/sidestep/manager/changes"
	"sidestep.dev/sidestep/manager/decide/claims"
	"sidestep.dev/sidestep/manager/decide/plan"
)

const (
	// An intercept rests after a decision, for restShare times as long as the decision took, and at
	// most restMost.
	restShare = 4
	restMost  = 30 * time.Millisecond

	// namespaceProgram bounds the size of the regular expressions of all accepted intercepts of a
	// namespace, in instructions of the compiled form that node agents keep. An ordinary expression
	// has 10 to 60.
	namespaceProgram = 20_000
)

// Sessions tells which laptops are connected.
type Sessions interface {
	// Changes returns the key hashes of laptops that have connected or disconnected.
	Changes() *changes.Set[string]
	Connected(keyHash string) bool
	// Wiretapper returns the key hash of the connected session whose wiretaps have this hash, "" if
	// there is none.
	Wiretapper(hash string) (keyHash string)
}

// Holders know what those who hold intercepts may have.
type Holders interface {
	// Judge says what an intercept may have whose session, with a key of this hash, is connected. It
	// does not wait.
	Judge(ic *v1alpha1.Intercept, keyHash string) access.Judgement
	Forget(uid types.UID)
	// Changes returns the intercepts that are to be judged again.
	Changes() *changes.Set[types.UID]
}

// Config is what the controller needs.
type Config struct {
	Client   client.WithWatch
	Plan     *plan.Plan
	Sessions Sessions
	// Holders judge what an intercept may have; nil: everything.
	Holders Holders
	// Withdrawn is called when an intercept may not have, or no longer, what others carry for it:
	// anything, or connections to ports of pods alone. It may be called often for the same one.
	Withdrawn func(uid types.UID, toPodAlone bool)
	Log       *slog.Logger
	// Grace is how long an intercept outlives the absence of its laptop.
	Grace   time.Duration
	Metrics prometheus.Registerer
}

// Controller reconciles Intercepts. One goroutine decides. Others write to the API, so that no
// request delays a decision.
type Controller struct {
	cfg       Config
	informers *informers
	queue     workqueue.TypedDelayingInterface[types.NamespacedName]
	writer    *writer
	resolved  atomic.Bool
	duration  prometheus.Histogram
	panics    prometheus.Counter

	// These belong to the deciding goroutine alone.
	claims  *claims.Table
	budget  *claims.Budget
	entries map[types.NamespacedName]*entry
	uids    map[types.UID]types.NamespacedName
	rests   map[types.NamespacedName]time.Time // until when nothing is decided about an intercept
}

// New returns a controller. Run starts it.
func New(cfg Config) (*Controller, error) {
	inf, err := newInformers(cfg.Client, cfg.Log)
	if err != nil {
		return nil, err
	}
	c := &Controller{
		cfg: cfg, informers: inf,
		queue:  workqueue.NewTypedDelayingQueue[types.NamespacedName](),
		claims: claims.NewTable(), budget: claims.NewBudget(namespaceProgram),
		entries: map[types.NamespacedName]*entry{},
		uids:    map[types.UID]types.NamespacedName{},
		rests:   map[types.NamespacedName]time.Time{},
		duration: prometheus.NewHistogram(prometheus.HistogramOpts{
			Name:    "sidestep_manager_reconcile_duration_seconds",
			Help:    "Time to decide about one intercept after an event.",
			Buckets: prometheus.ExponentialBuckets(20e-6, 4, 8),
		}),
		panics: prometheus.NewCounter(prometheus.CounterOpts{
			Name: "sidestep_manager_reconcile_panics_total",
			Help: "Decisions about an intercept that ended in a panic. Each is an error of the program.",
		}),
	}
	c.writer = newWriter(cfg.Client, cfg.Log, func(k types.NamespacedName) *v1alpha1.Intercept {
		return get[v1alpha1.Intercept](inf.intercepts, k.Namespace, k.Name)
	})
	cfg.Metrics.MustRegister(c.duration, c.panics, c.writer.writes, (*stateCollector)(c),
		prometheus.NewGaugeFunc(prometheus.GaugeOpts{
			Name: "sidestep_manager_queue_length", Help: "Intercepts that wait to be reconciled.",
		}, func() float64 { return float64(c.queue.Len()) }))
	return c, c.listen()
}

// Resolved reports whether every intercept that existed at the start has been decided, so that
// assignments are complete.
func (c *Controller) Resolved() bool { return c.resolved.Load() }

// Pod returns a pod from the informers, without the fields that the manager does not read, or nil.
// The caller must not change it.
func (c *Controller) Pod(namespace, name string) *corev1.Pod {
	return get[corev1.Pod](c.informers.pods, namespace, name)
}

// Intercept returns an Intercept as the informers have it, or nil. It is not to be changed.
func (c *Controller) Intercept(uid string) *v1alpha1.Intercept {
	for _, ic := range by[v1alpha1.Intercept](c.informers.intercepts, byUID, uid) {
		return ic
	}
	return nil
}

// Run works until ctx is done. It writes nothing after that.
func (c *Controller) Run(ctx context.Context) error {
	var wg sync.WaitGroup
	defer wg.Wait()
	defer c.queue.ShutDown()
	for _, inf := range c.informers.all() {
		wg.Go(func() { inf.RunWithContext(ctx) })
	}
	wg.Go(func() { c.informers.rollouts.run(ctx) })
	if !cache.WaitForCacheSync(ctx.Done(), c.informers.synced()...) {
		return fmt.Errorf("read the cluster: %w",
			errors.Join(context.Cause(ctx), errors.New("stopped before everything was read")))
	}
	c.informers.rollouts.wait(ctx)
	c.writer.start = time.Now()
	wg.Go(func() { c.writer.run(ctx) })
	c.resolveAll()
	c.resolved.Store(true)
	c.cfg.Plan.Open()
	c.cfg.Log.Info("ready", "intercepts", len(c.entries))
	wg.Go(func() { c.follow(ctx) })
	stop := context.AfterFunc(ctx, c.queue.ShutDown)
	defer stop()
	for {
		k, shutdown := c.queue.Get()
		if shutdown {
			return nil
		}
		began := time.Now()
		if wait := c.rests[k].Sub(began); wait > 0 {
			c.queue.Done(k)
			c.queue.AddAfter(k, wait)
			continue
		}
		c.reconcile(k)
		ended := time.Now()
		c.duration.Observe(ended.Sub(began).Seconds())
		c.rest(k, began, ended)
		c.queue.Done(k)
	}
}

// rest makes an intercept rest after a decision, for longer if the decision took longer. Otherwise,
// when hundreds of pods appear at once, each of hundreds of events would cause a decision about
// hundreds of pods.
func (c *Controller) rest(k types.NamespacedName, began, ended time.Time) {
	if _, there := c.entries[k]; !there {
		delete(c.rests, k)
		return
	}
	c.rests[k] = ended.Add(min(restShare*ended.Sub(began), restMost))
}

// resolveAll decides about all intercepts, in the order in which they have a right to it.
func (c *Controller) resolveAll() {
	var all []*v1alpha1.Intercept
	for _, obj := range c.informers.intercepts.GetStore().List() {
		all = append(all, obj.(*v1alpha1.Intercept))
	}
	rank := func(ic *v1alpha1.Intercept) int {
		if meta.IsStatusConditionTrue(ic.Status.Conditions, v1alpha1.ConditionAccepted) {
			return 0
		}
		return 1
	}
	slices.SortFunc(all, func(a, b *v1alpha1.Intercept) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)),
			a.CreationTimestamp.Compare(b.CreationTimestamp.Time), cmp.Compare(a.UID, b.UID))
	})
	for _, ic := range all {
		c.reconcile(key(ic))
	}
}

// again queues intercepts that a decision about another has changed.
func (c *Controller) again(uids []types.UID) {
	for _, uid := range uids {
		if k, ok := c.uids[uid]; ok {
			c.queue.Add(k)
		}
	}
}

// stateCollector counts intercepts by state when it is collected.
type stateCollector Controller

var statesDesc = prometheus.NewDesc("sidestep_manager_intercepts", "Intercepts by state.",
	[]string{"state"}, nil)

func (s *stateCollector) Describe(out chan<- *prometheus.Desc) { out <- statesDesc }

func (s *stateCollector) Collect(out chan<- prometheus.Metric) {
	for state, n := range s.writer.states() {
		out <- prometheus.MustNewConstMetric(statesDesc, prometheus.GaugeValue, float64(n), string(state))
	}
}
