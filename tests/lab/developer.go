// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"
)

// Developer is a person at a laptop: a home of their own, and a kubeconfig that lets them do what
// developers may.
type Developer struct {
	Name string
	lab  *Lab
	home string
	kube string
	root string // of the checkout whose programs they use
}

// Developer makes a developer; on a cluster that was given, all developers have the rights of its
// kubeconfig.
func (l *Lab) Developer(ctx context.Context, name string) (*Developer, error) {
	return l.person(ctx, name, "--user", name, "--group", "developers")
}

// Administrator makes a person with all rights, who installs and uninstalls.
func (l *Lab) Administrator(ctx context.Context) (*Developer, error) {
	return l.person(ctx, "admin")
}

// Stranger makes a person whom the cluster knows and who has no rights.
func (l *Lab) Stranger(ctx context.Context) (*Developer, error) {
	return l.person(ctx, "stranger", "--user", "stranger", "--group", "strangers")
}

func (l *Lab) person(ctx context.Context, name string, identity ...string) (*Developer, error) {
	d := &Developer{Name: name, lab: l, home: filepath.Join(l.dir, name), kube: l.admin, root: l.root}
	if err := os.MkdirAll(d.home, 0o700); err != nil {
		return nil, err
	}
	if !l.local || len(identity) == 0 {
		return d, nil
	}
	config, err := l.output(ctx, l.bin("cluster"), append([]string{"kubeconfig"}, identity...)...)
	if err != nil {
		return nil, fmt.Errorf("make a kubeconfig for %s: %w", name, err)
	}
	d.kube = filepath.Join(d.home, "kubeconfig")
	return d, os.WriteFile(d.kube, []byte(config), 0o600)
}

// With returns the same person at the same laptop, with the programs of another checkout.
func (d *Developer) With(root string) *Developer {
	other := *d
	other.root = root
	return &other
}

// Command returns a command that the developer runs on the laptop, with sidestep in its PATH.
func (d *Developer) Command(ctx context.Context, argv ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if d.lab.local {
		cmd = d.lab.OnNode(ctx, "laptop", argv...)
	}
	cmd.Env = []string{
		"HOME=" + d.home, "USER=" + d.Name, "KUBECONFIG=" + d.kube, "LANG=C.UTF-8",
		"PATH=" + filepath.Join(d.root, "bin") + ":" + os.Getenv("PATH"),
		"SIDESTEP_CLUSTER_CACHE=" + clusterCache(), "SIDESTEP_CLUSTER_STATE=" +
			os.Getenv("SIDESTEP_CLUSTER_STATE"),
	}
	cmd.WaitDelay = 5 * time.Second // the daemon, which outlives its starter, may hold the pipes
	return cmd
}

// clusterCache returns where tests/cluster would look from this process's home.
func clusterCache() string {
	if dir := os.Getenv("SIDESTEP_CLUSTER_CACHE"); dir != "" {
		return dir
	}
	return filepath.Join(os.Getenv("HOME"), ".cache", "sidestep-cluster")
}

// Sidestep runs the command line and returns what it prints on standard output; the error holds
// standard error.
func (d *Developer) Sidestep(ctx context.Context, args ...string) (string, error) {
	return Output(d.Command(ctx, append([]string{"sidestep"}, args...)...))
}

// Serve starts the sample service on the laptop, in place of the app in the cluster, and stops it
// with the returned function.
func (d *Developer) Serve(ctx context.Context, kind, address string) (stop func(), err error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := d.Command(ctx, filepath.Join(d.lab.root, "bin/apps"), kind, "--name", "laptop", "--pod",
		d.Name, "--listen", address)
	output, err := os.Create(filepath.Join(d.home, "service.log"))
	if err != nil {
		cancel()
		return nil, err
	}
	cmd.Stdout, cmd.Stderr = output, output
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, err
	}
	stop = sync.OnceFunc(func() {
		cancel()
		_ = cmd.Wait()
		_ = output.Close()
	})
	d.lab.stops = append(d.lab.stops, stop)
	err = Eventually(ctx, 5*time.Second, func(context.Context) error {
		log, err := os.ReadFile(output.Name())
		if err == nil && !strings.Contains(string(log), "listens on") {
			err = errors.New("the service on the laptop does not listen: " + string(log))
		}
		return err
	})
	if err != nil {
		stop()
		return nil, err
	}
	return stop, nil
}

// Kubectl returns a command that runs the cluster's own kubectl on the laptop.
func (d *Developer) Kubectl(ctx context.Context, args ...string) *exec.Cmd {
	program := "kubectl"
	if found, _ := filepath.Glob(filepath.Join(clusterCache(), "kubernetes-*",
		"kubectl")); d.lab.local && len(found) > 0 {
		program = found[len(found)-1]
	}
	return d.Command(ctx, append([]string{program}, args...)...)
}

// Home is the developer's home directory.
func (d *Developer) Home() string { return d.home }

// Install installs sidestep with the command line, so that developers may use it in the shop, and
// returns the command and what it printed.
func (d *Developer) Install(ctx context.Context) (command, out string, err error) {
	args := []string{"helm", "install", "--set",
		"developers[0].kind=Group,developers[0].name=developers,developerNamespaces={" + Namespace + "}"}
	if d.lab.local {
		args = append(args, "--set", "image.pullPolicy=Never")
	}
	if registry := os.Getenv("IMAGE_REGISTRY"); registry != "" {
		args = append(args, "--set", "image.registry="+registry)
	}
	out, err = Transcript(d.Command(ctx, append([]string{"sidestep"}, args...)...))
	return "sidestep " + strings.Join(args, " "), out, err
}
