// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"os"

	"sidestep.dev/sidestep/tests/cluster/internal/fabric"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/process"
	"sidestep.dev/sidestep/tests/cluster/internal/progress"
	"sidestep.dev/sidestep/tests/cluster/internal/render"
)

// Up starts the cluster, or repairs what is missing of a running one, and returns when it is ready
// for use.
func (c *Cluster) Up(ctx context.Context, p plan.Plan) error {
	if err := p.Check(); err != nil {
		return err
	}
	if os.Geteuid() != 0 {
		return errors.New("namespaces and cgroups need root: run this with sudo")
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	if err := c.adopt(p); err != nil {
		return err
	}
	if err := c.Build(ctx); err != nil {
		return err
	}
	if err := c.Out.Step("lay the network", func() error { return fabric.Up(p) }); err != nil {
		return err
	}
	if err := c.configure(p); err != nil {
		return err
	}
	machines, err := c.startMachines(ctx, p)
	if err != nil {
		return err
	}
	if err := c.startDaemons(ctx, p, machines); err != nil {
		return err
	}
	c.Out.Printf("the cluster is ready: %s", p.Server())
	return ctx.Err()
}

func (c *Cluster) spec(p plan.Plan, name string) machine.Spec {
	spec := machine.Spec{
		Name:     name,
		Netns:    fabric.Path(p, name),
		Var:      c.varDir(name),
		Programs: c.Cache.Dir,
	}
	if name != plan.ControlPlane {
		spec.Cgroup = p.Cgroup(name)
	}
	return spec
}

// startMachines starts those that do not run, except the laptop, which is only a network.
func (c *Cluster) startMachines(ctx context.Context, p plan.Plan) (map[string]machine.Machine, error) {
	machines := map[string]machine.Machine{}
	for _, name := range p.Machines() {
		if name == plan.Laptop {
			continue
		}
		m, err := c.Machine(p, name)
		if err != nil {
			return nil, err
		}
		if !m.Init.Alive() || m.Init.Ending() {
			err := c.Out.Step("start machine "+name, func() (err error) {
				if err := c.clear(ctx, p, m); err != nil {
					return err
				}
				if m, err = machine.Start(c.spec(p, name)); err != nil {
					return err
				}
				return process.Save(c.record(name, initDaemon), m.Init)
			})
			if err != nil {
				return nil, err
			}
		}
		machines[name] = m
	}
	return machines, nil
}

// clear removes what a machine left that was killed, or that a killed run of this tool did not get
// to record.
func (c *Cluster) clear(ctx context.Context, p plan.Plan, m machine.Machine) error {
	if err := empty(ctx, fabric.Inodes(p, m.Spec.Name)); err != nil {
		return err
	}
	return m.Stop(ctx)
}

// startDaemons starts everything that runs on the machines, what can be at the same time.
func (c *Cluster) startDaemons(ctx context.Context, p plan.Plan, machines map[string]machine.Machine) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	apiReady := make(chan struct{})
	steps := []func() error{func() error {
		return c.startControlPlane(ctx, p, machines[plan.ControlPlane], apiReady)
	}}
	for _, node := range p.AllNodes() {
		steps = append(steps, func() error { return c.startNode(ctx, p, node, machines[node.Name], apiReady) })
	}
	for i, step := range steps {
		steps[i] = func() error { // the first failure ends the waiting of the others
			err := step()
			if err != nil {
				cancel(err)
			}
			return err
		}
	}
	if err := progress.All(steps...); err != nil {
		if cause := context.Cause(ctx); cause != nil {
			return cause
		}
		return err
	}
	return nil
}

func (c *Cluster) startControlPlane(ctx context.Context, p plan.Plan, m machine.Machine,
	apiReady chan<- struct{}) error {
	api, err := c.api(p)
	if err != nil {
		return err
	}
	var daemons []*daemon
	start := func(args []string) error {
		d, err := c.ensure(m, args)
		if err == nil {
			daemons = append(daemons, d)
		}
		return err
	}
	err = c.Out.Step("API server", func() error {
		if err := errors.Join(start(render.Etcd()), start(render.APIServer(p))); err != nil {
			return err
		}
		return await(ctx, "the API server", c.Wait, daemons, api.ready)
	})
	if err != nil {
		return err
	}
	close(apiReady)
	if err := errors.Join(start(render.ControllerManager(p)), start(render.Scheduler())); err != nil {
		return err
	}
	err = c.Out.Step("admission policy", func() error { return c.apply(ctx, m, render.Policy) })
	if err != nil {
		return err
	}
	manifest, err := render.CoreDNS(p, coreDNSImage())
	if err != nil {
		return err
	}
	if err := c.apply(ctx, m, manifest); err != nil {
		return err
	}
	return c.Out.Step("nodes, DNS and service accounts", func() error {
		return await(ctx, "the cluster", c.Wait, daemons,
			func(ctx context.Context) error { return api.settled(ctx, p) })
	})
}

func (c *Cluster) startNode(ctx context.Context, p plan.Plan, node plan.Node, m machine.Machine,
	apiReady <-chan struct{}) error {
	err := c.Out.Step(node.Name+"'s containerd and images", func() error { return c.startContainerd(ctx, m) })
	if err != nil {
		return err
	}
	select {
	case <-apiReady:
	case <-ctx.Done():
		return ctx.Err()
	}
	return c.Out.Step(node.Name+"'s kubelet", func() error {
		api, err := c.api(p)
		if err != nil {
			return err
		}
		proxy, err := c.ensure(m, render.Proxy())
		if err != nil {
			return err
		}
		kubelet, err := c.ensure(m, render.Kubelet(node))
		if err != nil {
			return err
		}
		return await(ctx, "kubelet of "+node.Name, c.Wait, []*daemon{kubelet, proxy},
			func(ctx context.Context) error {
				if err := probe(ctx, m.Spec.Netns, "http://127.0.0.1:10248/healthz"); err != nil {
					return err
				}
				return api.nodeReady(ctx, node.Name, kubelet.started)
			})
	})
}

func (c *Cluster) startContainerd(ctx context.Context, m machine.Machine) error {
	d, err := c.ensure(m, render.Containerd())
	if err != nil {
		return err
	}
	var images string
	err = await(ctx, "containerd of "+m.Spec.Name, c.Wait, []*daemon{d}, func(context.Context) (err error) {
		images, err = c.capture(m, nil, "ctr", "--address", render.ContainerdSocket, "--namespace",
			"k8s.io", "images", "list", "-q")
		if err != nil {
			return fmt.Errorf("%w: %s", err, images)
		}
		return nil
	})
	if err != nil {
		return err
	}
	for reference, source := range c.images() {
		if hasLine(images, reference) {
			continue
		}
		if err := c.loadImage(m, c.tarball(source)); err != nil {
			return d.failure(err)
		}
	}
	return nil
}
