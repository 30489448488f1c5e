// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"sidestep.dev/sidestep/deploy/images/pack"

	"sidestep.dev/sidestep/tests/cluster/internal/debian"
	"sidestep.dev/sidestep/tests/cluster/internal/machine"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/progress"
	"sidestep.dev/sidestep/tests/cluster/internal/render"
	"sidestep.dev/sidestep/tests/cluster/internal/upstream"
)

func pauseImage() string   { return "localhost/cluster/pause:" + upstream.PauseVersion }
func coreDNSImage() string { return "localhost/cluster/coredns:" + upstream.CoreDNSVersion }

// Build installs, builds and packs what is missing.
func (c *Cluster) Build(ctx context.Context) error {
	if missing := debian.Missing(); len(missing) > 0 {
		err := c.Out.Step("install "+strings.Join(missing, ", "),
			func() error { return debian.Install(ctx, missing) })
		if err != nil {
			return err
		}
	}
	unlock, err := c.Cache.Lock()
	if err != nil {
		return err
	}
	defer unlock()
	for _, source := range []upstream.Source{
		upstream.Pause(), upstream.Etcd(), upstream.CoreDNS(), upstream.Kubernetes(),
	} {
		if c.Cache.Has(source) {
			continue
		}
		title := fmt.Sprintf("build %s %s, once for all clusters", source.Name, source.Version)
		if err := c.Out.Step(title, func() error { return c.Cache.Build(ctx, source) }); err != nil {
			return err
		}
	}
	for reference, source := range c.images() {
		if err := c.packOnce(reference, source); err != nil {
			return err
		}
	}
	return nil
}

// images are those that every node has from the beginning.
func (c *Cluster) images() map[string]upstream.Source {
	return map[string]upstream.Source{pauseImage(): upstream.Pause(), coreDNSImage(): upstream.CoreDNS()}
}

// tarball is the packed image of a source, beside the program that is in it.
func (c *Cluster) tarball(source upstream.Source) string {
	return filepath.Join(c.Cache.Path(source), "image.tar")
}

func (c *Cluster) packOnce(reference string, source upstream.Source) error {
	if _, err := os.Stat(c.tarball(source)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	for program := range source.Programs {
		image, err := pack.Program(filepath.Join(c.Cache.Path(source), program)).Build()
		if err != nil {
			return err
		}
		if err := pack.Save(c.tarball(source), reference, image); err != nil {
			return err
		}
	}
	return nil
}

// LoadImages brings image tarballs to all nodes.
func (c *Cluster) LoadImages(p plan.Plan, tarballs []string) error {
	var loads []func() error
	for _, node := range p.AllNodes() {
		loads = append(loads, func() error {
			m, err := c.Machine(p, node.Name)
			if err != nil {
				return err
			}
			for _, tarball := range tarballs {
				if err := c.loadImage(m, tarball); err != nil {
					return err
				}
			}
			return nil
		})
	}
	return progress.All(loads...)
}

func (c *Cluster) loadImage(m machine.Machine, tarball string) error {
	file, err := os.Open(tarball)
	if err != nil {
		return fmt.Errorf("load image: %w", err)
	}
	defer file.Close()
	// The machine may not see the file: its /var and /run are its own.
	output, err := c.capture(m, file, "ctr", "--address", render.ContainerdSocket, "--namespace",
		"k8s.io", "images", "import", "-")
	if err != nil {
		return fmt.Errorf("load image %s on %s: %w\n%s", tarball, m.Spec.Name, err, indent(output))
	}
	return nil
}

// capture runs a program on a machine to its end and returns what it printed.
func (c *Cluster) capture(m machine.Machine, stdin *os.File, args ...string) (string, error) {
	output, err := os.CreateTemp("", "cluster-output-*")
	if err != nil {
		return "", err
	}
	defer output.Close()
	defer os.Remove(output.Name())
	command, err := m.Run(machine.Command{
		Args: args, Path: c.ProgramDirs(), Env: daemonEnv(), Dir: "/", Stdin: stdin, Stdout: output,
		Stderr: output,
	})
	if err != nil {
		return "", err
	}
	runErr := command.Wait()
	text, err := os.ReadFile(output.Name())
	return strings.TrimSpace(string(text)), errors.Join(runErr, err)
}
