// SPDX-License-Identifier: Apache-2.0

// Package cluster brings a whole cluster up and down and tells how it is.
package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/pki"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/process"
	"sidestep.dev/sidestep/tests/cluster/internal/progress"
	"sidestep.dev/sidestep/tests/cluster/internal/render"
	"sidestep.dev/sidestep/tests/cluster/internal/upstream"
)

// Cluster is one cluster, running or not.
type Cluster struct {
	// State is the directory with all that the cluster keeps on disk.
	State string
	// Cache is where programs and images are kept from one cluster to the next.
	Cache upstream.Cache
	// Wait is how long each part may take to become ready.
	Wait time.Duration
	// Out tells the user what is happening.
	Out *progress.Printer
}

// ErrDown says that no cluster has been brought up here.
var ErrDown = errors.New("no cluster is up; bring one up with \"cluster up\"")

// The entries of the state directory, besides one directory for each machine.
const (
	planFile       = "plan.json"
	kubeconfigFile = "admin.kubeconfig"
	pkiDir         = "pki"
	logDir         = "log"
	processDir     = "run"
)

// Plan reads what the running cluster consists of.
func (c *Cluster) Plan() (plan.Plan, error) {
	var p plan.Plan
	text, err := os.ReadFile(filepath.Join(c.State, planFile))
	if errors.Is(err, fs.ErrNotExist) {
		return p, ErrDown
	}
	if err != nil {
		return p, fmt.Errorf("read plan: %w", err)
	}
	if err := json.Unmarshal(text, &p); err != nil {
		return p, fmt.Errorf("read plan: %w", err)
	}
	return p, p.Check()
}

// adopt writes the plan down, or refuses one that the running cluster does not follow.
func (c *Cluster) adopt(wanted plan.Plan) error {
	present, err := c.Plan()
	if err == nil && present != wanted {
		return fmt.Errorf("a cluster with other settings is up (%+v): bring it down first", present)
	}
	if err == nil {
		return nil
	}
	if !errors.Is(err, ErrDown) {
		return err
	}
	for _, dir := range []string{pkiDir, logDir, processDir} {
		if err := os.MkdirAll(filepath.Join(c.State, dir), 0o700); err != nil {
			return fmt.Errorf("make state directory: %w", err)
		}
	}
	text, err := json.Marshal(wanted)
	if err != nil {
		return fmt.Errorf("write plan: %w", err)
	}
	return c.write(planFile, append(text, '\n'), 0o644)
}

// lock keeps two runs of the tool from changing the same cluster.
func (c *Cluster) lock() (unlock func(), err error) {
	for {
		if err := os.MkdirAll(c.State, 0o755); err != nil {
			return nil, fmt.Errorf("make state directory: %w", err)
		}
		dir, err := os.Open(c.State)
		if err != nil {
			return nil, fmt.Errorf("lock state directory: %w", err)
		}
		if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			c.Out.Printf("waiting for another run of this tool to finish")
			if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
				dir.Close()
				return nil, fmt.Errorf("lock state directory: %w", err)
			}
		}
		// The process that had the lock may have removed the directory.
		locked, err := dir.Stat()
		present, presentErr := os.Stat(c.State)
		if err == nil && presentErr == nil && os.SameFile(locked, present) {
			return func() { dir.Close() }, nil
		}
		dir.Close()
	}
}

// write puts a file below the state directory, whole or not at all.
func (c *Cluster) write(name string, content []byte, mode fs.FileMode) error {
	path := filepath.Join(c.State, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	if err := os.WriteFile(path+".new", content, mode); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return os.Rename(path+".new", path)
}

// varDir is the /var of a machine.
func (c *Cluster) varDir(name string) string { return filepath.Join(c.State, name, "var") }

// configFile is the name, for write, of a file that a machine sees in render.ConfigDir.
func configFile(machine, name string) string {
	inVar, _ := filepath.Rel("/var", render.In(name))
	return filepath.Join(machine, "var", inVar)
}

// Log is the file that a daemon writes to.
func (c *Cluster) Log(machine, daemon string) string {
	return filepath.Join(c.State, logDir, machine+"-"+daemon+".log")
}

func (c *Cluster) record(machine, daemon string) string {
	return filepath.Join(c.State, processDir, machine+"-"+daemon+".json")
}

// initDaemon is the name under which a machine's first process is recorded.
const initDaemon = "init"

// Kubeconfig is the administrator's.
func (c *Cluster) Kubeconfig() string { return filepath.Join(c.State, kubeconfigFile) }

// Authority is the cluster's certificate authority.
func (c *Cluster) Authority() (*pki.Authority, error) {
	return pki.Open(filepath.Join(c.State, pkiDir))
}

// Machine finds a machine that has been started.
func (c *Cluster) Machine(p plan.Plan, name string) (machine.Machine, error) {
	init, err := process.Load(c.record(name, initDaemon))
	return machine.Machine{Spec: c.spec(p, name), Init: init}, err
}

// ProgramDirs are where a machine sees the cluster's programs.
func (c *Cluster) ProgramDirs() []string {
	var dirs []string
	for _, source := range []upstream.Source{upstream.Kubernetes(), upstream.Etcd()} {
		dirs = append(dirs, filepath.Join(machine.ProgramsDir, filepath.Base(c.Cache.Path(source))))
	}
	return dirs
}
