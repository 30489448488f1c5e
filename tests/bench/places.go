// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	_ "embed"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"text/template"
	"time"

	"sidestep.dev/sidestep/tests/lab"
)

//go:embed places.yaml
var placesYAML string

// node is where the measured pods and the load are, so that only this machine's memory lies between
// them.
const node = "node1"

// place is a pod whose app is measured, with what was started in its network.
type place struct {
	lab.Pod
	pid    string   // of the app
	groups []string // cgroups of the app that share out its processor time
	dir    string   // for configurations and logs
	stop   []func()
}

// servicePort is a port of the app's service.
type servicePort struct {
	Name string
	Port int
}

// deploy makes a Deployment of the app, waits until it runs, and returns its pods. An empty node
// means any.
func (b *bench) deploy(ctx context.Context, name, node string, replicas int,
	ports ...servicePort) (pods []lab.Pod, err error) {
	var yaml strings.Builder
	err = template.Must(template.New("").Parse(placesYAML)).Execute(&yaml, map[string]any{
		"Name": name, "Namespace": lab.Namespace, "Node": node, "Replicas": replicas, "Ports": ports,
		"Image": "docker.io/sidestep/apps:" + os.Getenv("SIDESTEP_IMAGE_TAG"),
	})
	if err != nil {
		return nil, err
	}
	if err := b.Apply(ctx, yaml.String()); err != nil {
		return nil, err
	}
	if _, err = b.Kubectl(ctx, "-n", lab.Namespace, "rollout", "status", "deployment/"+name,
		"--timeout=300s"); err == nil {
		pods, err = b.Pods(ctx, lab.Namespace, "app="+name)
	}
	if err == nil && len(pods) != replicas {
		err = fmt.Errorf("deployment %s has %d pods, and should have %d", name, len(pods), replicas)
	}
	if err != nil {
		b.remove(ctx, name)
		return nil, err
	}
	return pods, nil
}

// remove begins to remove what deploy has made.
func (b *bench) remove(ctx context.Context, name string) {
	_, _ = b.Kubectl(context.WithoutCancel(ctx), "-n", lab.Namespace, "delete", "deployment/"+name,
		"service/"+name, "--ignore-not-found", "--wait=false")
}

// gone waits until nothing of it is left, so that its end does not disturb the next measurement.
func (b *bench) gone(ctx context.Context, names ...string) error {
	_, err := b.Kubectl(ctx, "-n", lab.Namespace, "wait", "--for=delete", "pod", "--selector",
		"app in ("+strings.Join(names, ",")+")", "--timeout=60s")
	return err
}

// newPlace deploys one pod to be measured.
func (b *bench) newPlace(ctx context.Context, name string, ports ...servicePort) (p *place, err error) {
	pods, err := b.deploy(ctx, name, node, 1, ports...)
	if err != nil {
		return nil, err
	}
	p = &place{Pod: pods[0], stop: []func(){func() { b.remove(ctx, name) }}}
	if p.pid, err = processOf(p.UID); err == nil {
		p.groups, err = cpuGroups(p.pid)
	}
	if err == nil {
		p.dir, err = os.MkdirTemp("", "sidestep-bench-")
	}
	if err != nil {
		p.close()
		return nil, err
	}
	p.stop = append(p.stop, func() { _ = os.RemoveAll(p.dir) })
	return p, nil
}

// close ends what was started in the pod, and removes it.
func (p *place) close() {
	for i := range p.stop {
		p.stop[len(p.stop)-1-i]()
	}
	p.stop = nil
}

// run runs a command in the pod's network.
func (p *place) run(ctx context.Context, argv ...string) error {
	_, err := lab.Output(p.command(ctx, argv...))
	return err
}

// command returns a command that uses this machine's files and processes, and the pod's network and
// cgroups. When several programs want a processor, it has the weight of an injected sidecar, as the
// node agent has in a pod of its own.
func (p *place) command(ctx context.Context, argv ...string) *exec.Cmd {
	const enter = `for g in $0; do echo $$ >"$g/cgroup.procs" || exit; done; exec nsenter "$@"`
	args := []string{"-c", enter, strings.Join(p.groups, " "), "--net=/proc/" + p.pid + "/ns/net", "--"}
	cmd := exec.CommandContext(ctx, "sh", append(args, argv...)...)
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	cmd.WaitDelay = 5 * time.Second
	return cmd
}

// start starts a server in the pod's network, and waits until it listens.
func (p *place) start(ctx context.Context, port int, argv ...string) error {
	ctx, cancel := context.WithCancel(ctx)
	log, err := os.Create(filepath.Join(p.dir, fmt.Sprint(port, ".log")))
	if err != nil {
		cancel()
		return err
	}
	cmd := p.command(ctx, argv...)
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		cancel()
		return err
	}
	p.stop = append(p.stop, func() {
		cancel()
		_ = cmd.Wait()
		_ = log.Close()
	})
	listening := func(ctx context.Context) error {
		out, err := lab.Output(p.command(ctx, "ss", "-Hltn", fmt.Sprintf("sport = :%d", port)))
		if err == nil && out == "" {
			said, _ := os.ReadFile(log.Name())
			err = fmt.Errorf("%s does not listen on port %d: %s", argv[0], port, said)
		}
		return err
	}
	return lab.Eventually(ctx, 10*time.Second, listening)
}

// configure writes a configuration file and returns its path.
func (p *place) configure(name, text string) (string, error) {
	path := filepath.Join(p.dir, name)
	return path, os.WriteFile(path, []byte(text), 0o644)
}

// processOf finds the process of a pod's app, not its sandbox's, by its control group.
func processOf(uid string) (string, error) {
	pid, err := processWhere(func(dir string) bool {
		line, err := os.ReadFile(filepath.Join(dir, "cmdline"))
		return err == nil && strings.Contains(string(line), "\x00serve\x00") && inPod(dir, uid)
	})
	if err != nil {
		return "", fmt.Errorf("app of pod %s: %w", uid, err)
	}
	return fmt.Sprint(pid), nil
}

// inPod reports whether the process with a directory in /proc belongs to a pod.
func inPod(dir, uid string) bool {
	text, err := os.ReadFile(filepath.Join(dir, "cgroup"))
	s := string(text)
	return err == nil && (strings.Contains(s, uid) || strings.Contains(s, strings.ReplaceAll(uid, "-", "_")))
}

// cpuGroups returns the directories of those cgroups of a process that share out processor time, in
// the hierarchy of version 1 or 2.
func cpuGroups(pid string) (dirs []string, err error) {
	text, err := os.ReadFile("/proc/" + pid + "/cgroup")
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(text)) {
		f := strings.SplitN(strings.TrimSpace(line), ":", 3) // 4:cpu,cpuacct:/kubepods/burstable/pod…
		if len(f) == 3 && (f[0] == "0" || slices.Contains(strings.Split(f[1], ","), "cpu")) {
			dir := filepath.Join("/sys/fs/cgroup", f[1], f[2])
			// where both versions are mounted, version 2 is elsewhere and shares out nothing
			if _, err := os.Stat(dir); err == nil {
				dirs = append(dirs, dir)
			}
		}
	}
	return dirs, nil
}
