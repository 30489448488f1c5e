// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bytes"
	"context"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sync/errgroup"

	"sidestep.dev/sidestep/tests/bench/usage"
	"sidestep.dev/sidestep/tests/lab"
)

// restRow is the name of the row about idle use, and resting is the workload that it is measured
// with.
const (
	restRow = "at rest"
	resting = "resting"
)

const (
	restPods    = 10 // on the node whose agent is looked at
	restPorts   = 100
	firstPort   = 10_000 // of the service
	idleTunnels = 500
	calm        = 12 * time.Second // before it counts: for ten seconds an agent looks for older connections
	restFor     = 10 * time.Second

	daemonIs    = "user daemon"
	managerIs   = "manager"
	nodeAgentIs = "node agent"
)

// atRest is what an idle program uses.
type atRest struct {
	Program    string       `json:"program"`
	Intercepts int          `json:"intercepts"`
	Ports      int          `json:"ports"`   // of pods of the node
	Tunnels    int          `json:"tunnels"` // that are open and idle
	Memory     usage.Memory `json:"memory"`  // bytes
	CPU        float64      `json:"cpu"`     // part of one CPU
}

// artifact is something that is stored or loaded.
type artifact struct {
	Name  string `json:"name"`
	Bytes int64  `json:"bytes"`
}

// rest measures programs with ever more intercepted ports, and last with open connections.
func (b *bench) rest(ctx context.Context) error {
	var ports []servicePort
	for n := range restPorts {
		ports = append(ports, servicePort{fmt.Sprint("p", n), firstPort + n})
	}
	changed := time.Now()
	pods, err := b.deploy(ctx, resting, node, restPods, append(ports, servicePort{"http", goPort})...)
	if err != nil {
		return err
	}
	defer b.remove(ctx, resting)
	if err := b.gone(ctx, attached); err != nil {
		return err
	}
	fmt.Printf("at rest, for %s\n", restFor)
	if err := b.weigh(); err != nil {
		return err
	}
	made := 0
	defer func() {
		_ = severally(made, func(n int) error { return b.leave(context.WithoutCancel(ctx), ports[n].Name) })
	}()
	for _, intercepts := range []int{0, restPorts / 10, restPorts} {
		first := made
		made = intercepts
		err := severally(intercepts-first, func(n int) error {
			p := ports[first+n]
			return b.intercept(ctx, p.Name, "--workload", resting, "--port",
				fmt.Sprintf("%d:%s", p.Port, p.Name), "--http-header", "x-user=ann")
		})
		if err != nil {
			return err
		}
		if intercepts > 0 {
			changed = time.Now()
		}
		if err := b.restWith(ctx, intercepts, 0, changed); err != nil {
			return err
		}
	}
	if err := b.intercept(ctx, resting, "--port", fmt.Sprint(laptopPort, ":http"), "--mechanism",
		"tcp"); err != nil {
		return err
	}
	defer func() { _ = b.leave(context.WithoutCancel(ctx), resting) }()
	stop, err := b.hold(ctx, idleTunnels, fmt.Sprintf("%s:%d", pods[0].IP, goPort))
	if err != nil {
		return err
	}
	defer stop()
	return b.restWith(ctx, made+1, idleTunnels, time.Now())
}

// severally does something for every number below n, four at a time.
func severally(n int, do func(n int) error) error {
	group := new(errgroup.Group)
	group.SetLimit(4)
	for i := range n {
		group.Go(func() error { return do(i) })
	}
	return group.Wait()
}

// weigh notes the sizes of programs and images.
func (b *bench) weigh() error {
	for _, pattern := range []string{"bin/sidestep*", "build/images/manager.tar",
		"build/images/nodeagent.tar"} {
		found, err := filepath.Glob(pattern)
		if err != nil {
			return err
		}
		for _, path := range found {
			info, err := os.Stat(path)
			if err != nil {
				return err
			}
			b.results.Sizes = append(b.results.Sizes, artifact{path, info.Size()})
			fmt.Printf("  %-32s %5.1f MB\n", path, float64(info.Size())/1e6)
		}
	}
	return nil
}

// restWith measures all programs at once. They have had nothing to do since the last change.
func (b *bench) restWith(ctx context.Context, intercepts, tunnels int, changed time.Time) error {
	all, err := b.programs(ctx)
	if err != nil {
		return err
	}
	wait(ctx, time.Until(changed.Add(calm)))
	var pids []int
	for _, p := range all {
		pids = append(pids, p.pid)
	}
	cpu, err := usage.Rest(ctx, restFor, pids...)
	if err != nil {
		return err
	}
	for i, p := range all {
		memory, err := usage.MemoryOf(p.pid)
		if err != nil {
			return err
		}
		r := atRest{Program: p.name, Intercepts: intercepts, Ports: intercepts * restPods,
			Tunnels: tunnels, Memory: memory, CPU: cpu[i]}
		b.results.Rest = append(b.results.Rest, r)
		fmt.Printf("  %s\n", r)
	}
	return nil
}

func (r atRest) String() string {
	return fmt.Sprintf("%-11s %4d ports (%3d intercepts), %3d idle tunnels: RSS %.1f MB, PSS %.1f, anonymous %.1f; CPU %.2f %%",
		r.Program, r.Ports, r.Intercepts, r.Tunnels, mb(r.Memory.RSS), mb(r.Memory.PSS),
		mb(r.Memory.Anonymous), 100*r.CPU)
}

func mb(bytes int64) float64 { return float64(bytes) / 1e6 }

// running is a program of ours.
type running struct {
	name string
	pid  int
}

// programs finds the node agent of the measured node, the manager, and the developer's daemon.
func (b *bench) programs(ctx context.Context) (all []running, err error) {
	for _, p := range []struct{ name, component string }{{nodeAgentIs, "nodeagent"}, {managerIs, "manager"}} {
		pods, err := b.Pods(ctx, "sidestep", "app.kubernetes.io/component="+p.component)
		if err != nil {
			return nil, err
		}
		at := slices.IndexFunc(pods,
			func(pod lab.Pod) bool { return p.component == "manager" || pod.Node == node })
		if at < 0 {
			return nil, fmt.Errorf("there is no %s", p.name)
		}
		pid, err := processWhere(func(dir string) bool {
			return inPod(dir, pods[at].UID) && strings.HasPrefix(filepath.Base(link(dir, "exe")), "sidestep-")
		})
		if err != nil {
			return nil, fmt.Errorf("%s in pod %s: %w", p.name, pods[at].Name, err)
		}
		all = append(all, running{p.name, pid})
	}
	pid, err := processWhere(func(dir string) bool {
		environment, err := os.ReadFile(filepath.Join(dir, "environ"))
		return err == nil && filepath.Base(link(dir, "exe")) == "sidestep" &&
			bytes.Contains(environment, []byte("HOME="+b.ann.Home()+"\x00"))
	})
	if err != nil {
		return nil, fmt.Errorf("%s: %w", daemonIs, err)
	}
	return append(all, running{daemonIs, pid}), nil
}

func link(dir, name string) string {
	to, _ := os.Readlink(filepath.Join(dir, name))
	return to
}

// processWhere finds the process whose directory in /proc is as asked.
func processWhere(is func(dir string) bool) (int, error) {
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return 0, err
	}
	for _, dir := range dirs {
		if is(dir) {
			return strconv.Atoi(filepath.Base(dir))
		}
	}
	return 0, fmt.Errorf("no such process on this machine")
}

// hold keeps connections open from the measured node until stopped.
func (b *bench) hold(ctx context.Context, n int, address string) (stop func(), err error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithCancel(ctx)
	cmd := b.OnNode(ctx, node, self, "-hold", fmt.Sprintf("%d,%s", n, address))
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		cancel()
		return nil, err
	}
	stop = func() {
		cancel()
		_ = cmd.Wait()
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		stop()
		return nil, fmt.Errorf("open %d connections to %s: %w", n, address, err)
	}
	return stop, nil
}

// runHold is the process that holds them; it says when all are open.
func runHold(ctx context.Context, what string) error {
	count, address, _ := strings.Cut(what, ",")
	n, err := strconv.Atoi(count)
	if err != nil {
		return fmt.Errorf("-hold %q: not N,ADDRESS", what)
	}
	for range n {
		c, err := new(net.Dialer).DialContext(ctx, "tcp", address)
		if err != nil {
			return err
		}
		defer c.Close()
	}
	fmt.Println("open")
	<-ctx.Done()
	return nil
}

// restTable is the row on the page.
func restTable(r *results) string {
	var t strings.Builder
	if len(r.Rest) > 0 {
		t.WriteString("\n**At rest**\n\n| program | intercepted ports | intercepts | idle tunnels | RSS | of it shared | anonymous | CPU |\n|---|---|---|---|---|---|---|---|\n")
	}
	for _, u := range r.Rest {
		fmt.Fprintf(&t, "| %s | %d | %d | %d | %.1f MB | %.1f MB | %.1f MB | %.2f %% |\n", u.Program,
			u.Ports, u.Intercepts, u.Tunnels,
			mb(u.Memory.RSS), mb(u.Memory.RSS-u.Memory.PSS), mb(u.Memory.Anonymous), 100*u.CPU)
	}
	if len(r.Sizes) > 0 {
		t.WriteString("\n| on disk | |\n|---|---|\n")
	}
	for _, a := range r.Sizes {
		fmt.Fprintf(&t, "| %s | %.1f MB |\n", a.Name, mb(a.Bytes))
	}
	return t.String()
}
