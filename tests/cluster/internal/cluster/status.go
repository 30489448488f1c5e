// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"path/filepath"
	"strings"
	"text/tabwriter"
	"time"

	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/process"
)

// ErrNotReady says that a cluster is up in part.
var ErrNotReady = errors.New("the cluster is not ready; \"cluster up\" repairs it")

// Status tells how each part of the cluster is. It fails unless all of it is well.
func (c *Cluster) Status(ctx context.Context, out io.Writer) error {
	p, err := c.Plan()
	if err != nil {
		return err
	}
	ok := true
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "MACHINE\tADDRESS\tDAEMON\tSTATE")
	for _, name := range p.Machines() {
		if name == plan.Laptop {
			fmt.Fprintf(table, "%s\t%s\t\t\n", name, plan.Strings(plan.Addrs(p.LaptopLink().Far)))
			continue
		}
		for _, daemon := range daemonsOf(name) {
			known, err := process.Load(c.record(name, daemon))
			if err != nil {
				return err
			}
			state := fmt.Sprintf("running, pid %d", known.PID)
			if !known.Alive() {
				ok, state = false, "stopped"
			}
			fmt.Fprintf(table, "%s\t%s\t%s\t%s\n", name, addressOf(p, name), daemon, state)
		}
	}
	if err := table.Flush(); err != nil {
		return err
	}
	fmt.Fprintln(out)
	fmt.Fprintf(out, "API server:  %s\nkubeconfig:  %s\nlogs:        %s\n", p.Server(), c.Kubeconfig(),
		filepath.Join(c.State, logDir))
	api, err := c.api(p)
	if err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	if err := errors.Join(api.ready(ctx), api.settled(ctx, p)); err != nil {
		fmt.Fprintf(out, "not ready:   %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		ok = false
	}
	if !ok {
		return ErrNotReady
	}
	fmt.Fprintln(out, "all nodes, DNS and service accounts are ready")
	return nil
}

func daemonsOf(machine string) []string {
	if machine == plan.ControlPlane {
		return []string{initDaemon, "etcd", "kube-apiserver", "kube-controller-manager", "kube-scheduler"}
	}
	return []string{initDaemon, "containerd", "kubelet", "kube-proxy"}
}

func addressOf(p plan.Plan, machine string) string {
	for _, node := range p.AllNodes() {
		if node.Name == machine {
			return plan.Strings(plan.Addrs(node.Addresses))
		}
	}
	return plan.Strings(plan.Addrs(p.ControlPlaneAddresses()))
}
