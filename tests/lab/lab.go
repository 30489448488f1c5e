// SPDX-License-Identifier: Apache-2.0

// Package lab is the test bed that the demo and the end-to-end tests share: a real Kubernetes (the
// one of $KUBECONFIG, or the local one of tests/cluster), the shop of tests/apps on it, sidestep's
// images where its nodes find them, and developers at their laptops.
package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// Lab is a running test bed.
type Lab struct {
	root  string // of the repository
	local bool   // the cluster is the one of tests/cluster
	admin string // kubeconfig of the cluster's administrator
	tag   string // of the images
	dir   string // for developers' homes and kubeconfigs
	out   io.Writer
	stops []func() // of what runs on laptops
}

// Up starts everything but sidestep itself, reports on out what it does, and returns when the shop
// answers. $SIDESTEP_IMAGE_TAG names the images, which `make images` must have built.
func Up(ctx context.Context, out io.Writer) (*Lab, error) {
	root, err := repository()
	if err != nil {
		return nil, err
	}
	dir, err := os.MkdirTemp("", "sidestep-lab-")
	if err != nil {
		return nil, err
	}
	l := &Lab{root: root, admin: os.Getenv("KUBECONFIG"), tag: os.Getenv("SIDESTEP_IMAGE_TAG"),
		dir: dir, out: out}
	if l.tag == "" {
		return nil, errors.New("SIDESTEP_IMAGE_TAG is not set: run this through make")
	}
	if l.admin == "" {
		l.local = true
		if err := l.upLocal(ctx); err != nil {
			return nil, err
		}
	}
	if err := l.upShop(ctx); err != nil {
		return nil, err
	}
	return l, l.clean(ctx)
}

// clean removes what an interrupted run may have left on the local cluster.
func (l *Lab) clean(ctx context.Context) error {
	if !l.local {
		return nil
	}
	admin, err := l.Administrator(ctx)
	if err != nil {
		return err
	}
	if _, err := l.Kubectl(ctx, "get", "namespace", "sidestep"); err != nil {
		return nil // there is nothing
	}
	_, err = admin.Sidestep(ctx, "uninstall", "--everything")
	return err
}

// upLocal starts the local cluster and loads the images on its nodes.
func (l *Lab) upLocal(ctx context.Context) error {
	if err := l.run(ctx, l.bin("cluster"), "up"); err != nil {
		return fmt.Errorf("bring the local cluster up: %w", err)
	}
	if err := l.LoadImages(ctx, l.root); err != nil {
		return err
	}
	config, err := l.output(ctx, l.bin("cluster"), "kubeconfig")
	if err != nil {
		return fmt.Errorf("get the administrator's kubeconfig: %w", err)
	}
	l.admin = filepath.Join(l.dir, "admin.kubeconfig")
	return os.WriteFile(l.admin, []byte(config), 0o600)
}

// LoadImages loads the images that a checkout has built on the nodes of the local cluster.
func (l *Lab) LoadImages(ctx context.Context, root string) error {
	images, err := filepath.Glob(filepath.Join(root, "build/images/*.tar"))
	if err != nil || len(images) == 0 {
		return fmt.Errorf("no images in %s/build/images (run make images): %v", root, err)
	}
	if err := l.run(ctx, l.bin("cluster"), append([]string{"load-image"}, images...)...); err != nil {
		return fmt.Errorf("load images: %w", err)
	}
	return nil
}

// Close stops what runs on laptops and removes the lab's own files; the cluster stays, so that the
// next run is quick.
func (l *Lab) Close() error {
	for _, stop := range l.stops {
		stop()
	}
	return os.RemoveAll(l.dir)
}

// Local reports whether the cluster is the one of tests/cluster, whose nodes are namespaces of this
// machine.
func (l *Lab) Local() bool { return l.local }

// OnNode returns a command that runs in the network and mount namespaces of a node of the local
// cluster ("node1", "laptop").
func (l *Lab) OnNode(ctx context.Context, node string, argv ...string) *exec.Cmd {
	return exec.CommandContext(ctx, l.bin("cluster"), append([]string{"exec", node, "--"}, argv...)...)
}

func (l *Lab) bin(name string) string { return filepath.Join(l.root, "bin", name) }

func (l *Lab) run(ctx context.Context, name string, args ...string) error {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = l.out, l.out
	return cmd.Run()
}

func (l *Lab) output(ctx context.Context, name string, args ...string) (string, error) {
	return Output(exec.CommandContext(ctx, name, args...))
}

// Output runs a command and returns its standard output; the error holds the command line and its
// standard error.
func Output(cmd *exec.Cmd) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s: %w\n%s", strings.Join(cmd.Args, " "), err, stderr.String())
	}
	return stdout.String(), nil
}

// Transcript runs a command and returns all that it prints, as a person would see it.
func Transcript(cmd *exec.Cmd) (string, error) {
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	if err != nil {
		err = fmt.Errorf("%s: %w", strings.Join(cmd.Args, " "), err)
	}
	return out.String(), err
}

// repository finds the root of the repository from the working directory.
func repository() (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		if _, err := os.Stat(filepath.Join(dir, "tests/lab")); err == nil {
			return dir, nil
		}
		if dir == "/" {
			return "", errors.New("not inside the repository")
		}
		dir = filepath.Dir(dir)
	}
}
