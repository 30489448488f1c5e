// SPDX-License-Identifier: Apache-2.0

// Package growth measures how the manager bears ever more intercepts and node agents: a real
// manager, a real API server, and node agents and laptops that speak as real ones do but steer
// nothing.
package growth

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"math"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sidestep.dev/sidestep/tests/bench/usage"
)

// Size is how much there is of what grows. The cluster is the same for all sizes: a thousand
// workloads of one pod each.
type Size struct {
	Intercepts int `json:"intercepts"`
	Agents     int `json:"agents"`
}

// String implements fmt.Stringer.
func (s Size) String() string {
	return fmt.Sprintf("%d intercepts, %d node agents", s.Intercepts, s.Agents)
}

// Point is what was measured for one size. Times are in milliseconds. Those of changes begin before
// the API server is asked.
type Point struct {
	Size
	Started float64 `json:"started"` // from the manager's start until every node agent has its assignment
	// Until the news is at the node agent.
	Created  []float64 `json:"created"`
	Moved    []float64 `json:"moved"` // to another port
	Deleted  []float64 `json:"deleted"`
	PodReady []float64 `json:"podReady"` // a pod of an intercepted workload runs
	// Of the creation: until the API server has answered, and until the intercept is active.
	Answered []float64 `json:"answered"`
	Active   []float64 `json:"active"`
	// Of the manager: CPU for one change in ms, part of a CPU at rest, bytes.
	ChangeCPU float64      `json:"changeCPU"`
	RestCPU   float64      `json:"restCPU"`
	Memory    usage.Memory `json:"memory"`
}

// Config is what a measurement needs.
type Config struct {
	Root    string // of the repository
	Assets  string // directory of etcd and kube-apiserver
	Manager string // the program
	Changes int    // of each kind in each size
	Rest    time.Duration
	Sizes   []Size
	Say     func(*Point) // after each size
}

// each laptop has so many intercepts.
const perLaptop = 10

// Run measures all sizes.
func Run(ctx context.Context, cfg Config) (points []Point, err error) {
	dir, err := os.MkdirTemp("", "sidestep-growth-")
	if err != nil {
		return nil, err
	}
	defer os.RemoveAll(dir)
	roots, err := writeCertificate(dir)
	if err != nil {
		return nil, err
	}
	w, err := newWorld(ctx, cfg.Assets, cfg.Root, dir)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, w.stop()) }()
	made, nodes := 0, 0
	for _, size := range cfg.Sizes {
		if nodes != size.Agents {
			if err := w.spread(ctx, size.Agents); err != nil {
				return nil, fmt.Errorf("spread pods over %d nodes: %w", size.Agents, err)
			}
			nodes = size.Agents
		}
		if size.Intercepts < made {
			return nil, fmt.Errorf("sizes are to be in the order of their intercepts, and %d come after %d", size.Intercepts, made)
		}
		err := each(ctx, size.Intercepts-made, func(ctx context.Context, i int) error {
			n := made + i
			return w.admin.Create(ctx,
				newIntercept(n%workloads, fmt.Sprintf("developer-%d", n), newLaptop(n/perLaptop)))
		})
		if err != nil {
			return nil, fmt.Errorf("make %d intercepts: %w", size.Intercepts, err)
		}
		made = size.Intercepts
		undo, err := w.police(ctx)
		if err != nil {
			return nil, err
		}
		p, err := w.measure(ctx, cfg, size, roots)
		if err == nil {
			err = undo(ctx)
		}
		if err != nil {
			return nil, fmt.Errorf("%s: %w", size, withLog(err, dir))
		}
		cfg.Say(p)
		points = append(points, *p)
	}
	return points, nil
}

func withLog(err error, dir string) error {
	text, _ := os.ReadFile(filepath.Join(dir, "manager.log"))
	return fmt.Errorf("%w; the manager said at last: %s", err, text[max(0, len(text)-2000):])
}

// cluster is a world with a manager, its node agents and its laptops.
type cluster struct {
	*world
	fleet    *fleet
	laptops  []*laptop
	statuses *statuses
}

func (c *cluster) number(node string) (n int) {
	_, _ = fmt.Sscanf(node, "node-%d", &n)
	return n
}

func (w *world) measure(ctx context.Context, cfg Config, size Size, roots *x509.CertPool) (*Point, error) {
	ctx, cancel := context.WithCancel(ctx)
	var work sync.WaitGroup
	defer work.Wait()
	defer cancel()
	c := &cluster{world: w}
	var err error
	if c.statuses, err = w.follow(ctx, &work); err != nil {
		return nil, err
	}
	tokens := make([]string, size.Agents)
	err = each(ctx, size.Agents, func(ctx context.Context, n int) (err error) {
		tokens[n], err = w.token(ctx, nodeName(n))
		return err
	})
	if err != nil {
		return nil, err
	}
	began := time.Now()
	m, err := w.start(context.WithoutCancel(ctx), cfg.Manager)
	if err != nil {
		return nil, err
	}
	defer m.stop() // before the node agents and laptops go, so that nothing is written about that
	if c.fleet, err = newFleet(ctx, tokens, m.grpc, filepath.Join(w.dir, "ca.crt")); err != nil {
		return nil, err
	}
	defer c.fleet.work.Wait()
	defer cancel()
	for n := range (size.Intercepts + perLaptop - 1) / perLaptop {
		c.laptops = append(c.laptops, newLaptop(n))
	}
	if err := each(ctx, len(c.laptops),
		func(_ context.Context, n int) error {
			return c.laptops[n].connect(ctx, m.grpc, roots,
				&work)
		}); err != nil {
		return nil, err
	}
	p := &Point{Size: size}
	if err := until(ctx, "every node agent has its assignment",
		func() bool { return c.fleet.rules() == int64(size.Intercepts) }); err != nil {
		return nil, fmt.Errorf("%w: they have %d rules", err, c.fleet.rules())
	}
	p.Started = ms(time.Since(began))
	if err := until(ctx, "every intercept is active",
		func() bool { return c.statuses.len() == size.Intercepts }); err != nil {
		return nil, fmt.Errorf("%w: %d are", err, c.statuses.len())
	}
	if err := m.quiet(ctx); err != nil {
		return nil, err
	}
	return p, c.watch(ctx, m, cfg, p)
}

// watch measures the manager at rest, and while there are changes.
func (c *cluster) watch(ctx context.Context, m *program, cfg Config, p *Point) error {
	pid := m.cmd.Process.Pid
	// What the start has left to be collected is.
	if err := c.changes(ctx, 2, &Point{Size: p.Size}); err != nil {
		return err
	}
	rest, err := usage.Rest(ctx, cfg.Rest, pid)
	if err != nil {
		return err
	}
	p.RestCPU = rest[0]
	before, err := usage.CPUOf(pid)
	if err != nil {
		return err
	}
	began := time.Now()
	if err := c.changes(ctx, cfg.Changes, p); err != nil {
		return err
	}
	after, err := usage.CPUOf(pid)
	if err != nil {
		return err
	}
	const kinds = 5 // creation, move, deletion, a pod that comes and one that goes
	p.ChangeCPU = max(0, ms(after-before)-p.RestCPU*ms(time.Since(began))) / float64(kinds*cfg.Changes)
	p.Memory, err = usage.MemoryOf(pid)
	return err
}

// Exponent returns the slope of a line through the points when both axes are logarithmic: 0 for
// what does not grow, 1 for what grows in proportion. A value that is too small to be measured
// counts as least.
func Exponent(sizes, values []float64, least float64) float64 {
	var x, y, xx, xy float64
	n := float64(len(sizes))
	for i := range sizes {
		lx, ly := math.Log(sizes[i]), math.Log(max(values[i], least))
		x, y, xx, xy = x+lx, y+ly, xx+lx*lx, xy+lx*ly
	}
	return (n*xy - x*y) / (n*xx - x*x)
}

// Median leaves values as they are.
func Median(values []float64) float64 { return Quantile(values, .5) }

// Quantile leaves values as they are.
func Quantile(values []float64, q float64) float64 {
	sorted := slices.Sorted(slices.Values(values))
	return sorted[min(int(q*float64(len(sorted))), len(sorted)-1)]
}
