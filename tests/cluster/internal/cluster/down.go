// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/cluster/internal/fabric"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/process"
	"sidestep.dev/sidestep/tests/cluster/internal/progress"
)

// Down ends everything that Up started and everything that runs in the cluster's network
// namespaces, and removes what it left, but the cache.
func (c *Cluster) Down(ctx context.Context) error {
	if _, err := c.Plan(); err != nil {
		return err
	}
	unlock, err := c.lock()
	if err != nil {
		return err
	}
	defer unlock()
	p, err := c.Plan() // again: another run may have been at it
	if err != nil {
		return err
	}
	err = c.Out.Step("stop all machines", func() error { return c.stopMachines(ctx, p) })
	if err != nil {
		return err
	}
	err = c.Out.Step("end what else runs in their networks", func() error { return sweep(ctx, p) })
	if err != nil {
		return err
	}
	if err := fabric.Down(p); err != nil {
		return err
	}
	return c.Out.Step("remove files", func() error { return c.remove(p) })
}

func (c *Cluster) stopMachines(ctx context.Context, p plan.Plan) error {
	var stops []func() error
	for _, name := range p.Machines() {
		if name == plan.Laptop {
			continue
		}
		stops = append(stops, func() error {
			m, err := c.Machine(p, name)
			if err != nil {
				return err
			}
			return m.Stop(ctx)
		})
	}
	return progress.All(stops...)
}

// sweep ends processes that users have started in the laptop's namespace, and machines that an
// interrupted run did not get to record.
func sweep(ctx context.Context, p plan.Plan) error {
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	if err := empty(ctx, fabric.Inodes(p)); err != nil {
		return err
	}
	for _, node := range p.AllNodes() { // of machines that were not recorded
		if err := machine.RemoveCgroup(ctx, p.Cgroup(node.Name)); err != nil {
			return err
		}
	}
	return nil
}

// empty ends all processes in network namespaces.
func empty(ctx context.Context, netns map[uint64]bool) error {
	for {
		left := slices.DeleteFunc(process.InNetns(netns), func(one process.Process) bool {
			return one.PID == os.Getpid() || !one.Alive()
		})
		if len(left) == 0 {
			return nil
		}
		for _, one := range left {
			if err := one.Kill(ctx); err != nil {
				return err
			}
		}
	}
}

// remove deletes what the tool has made in the state directory, and the directory if nothing else
// is in it. It deletes the plan last, so that an interrupted removal can be repeated.
func (c *Cluster) remove(p plan.Plan) error {
	entries := append(p.Machines(), pkiDir, logDir, processDir, kubeconfigFile, planFile)
	for _, entry := range entries {
		if err := os.RemoveAll(filepath.Join(c.State, entry)); err != nil {
			return fmt.Errorf("remove state: %w", err)
		}
	}
	err := os.Remove(c.State)
	if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTEMPTY) {
		return fmt.Errorf("remove state: %w", err)
	}
	return nil
}
