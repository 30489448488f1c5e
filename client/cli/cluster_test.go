// SPDX-License-Identifier: Apache-2.0

package cli

import (
	"context"
	"errors"
	"strings"

	"sidestep.dev/sidestep/client/cli/install"
)

// clusterSpy is a cluster that records the calls to it.
type clusterSpy struct {
	options  install.Options
	calls    []string
	settings install.Settings
	err      error
	after    func() // after each call
	logged   string // besides what each log says
}

func (c *clusterSpy) did(what string, s install.Settings) error {
	c.calls, c.settings = append(c.calls, what), s
	if s.Progress != nil {
		s.Progress("doing it")
	}
	if c.after != nil {
		c.after()
	}
	return c.err
}

func (c *clusterSpy) Server() string { return "https://10.0.0.1:6443" }

func (c *clusterSpy) Install(_ context.Context, s install.Settings) error {
	return c.did("install", s)
}

func (c *clusterSpy) Upgrade(_ context.Context, s install.Settings) error {
	return c.did("upgrade", s)
}

func (c *clusterSpy) Uninstall(_ context.Context, s install.Settings) error {
	return c.did("uninstall", s)
}

func (c *clusterSpy) RemoveEverything(_ context.Context, s install.Settings) error {
	return c.did("remove everything", s)
}

func (c *clusterSpy) WorkloadNames(_ context.Context, namespace string) ([]string, error) {
	return []string{"orders-in-" + namespace, "stock-in-" + namespace}, c.err
}

func (c *clusterSpy) NamespaceNames(context.Context) ([]string, error) {
	return []string{"default", "shop"}, c.err
}

func (c *clusterSpy) ServicePort(_ context.Context, _, _, id string) (int32, error) {
	if id == "8081" {
		return 8081, c.err
	}
	return 80, c.err
}

func (c *clusterSpy) HasNamespace(_ context.Context, name string) error {
	if name == "nope" {
		return errors.New("there is no namespace nope")
	}
	return nil
}

func (c *clusterSpy) WorkloadParts(_ context.Context, namespace, workload string) (install.Parts, error) {
	c.calls = append(c.calls, "parts of "+workload+"."+namespace)
	return install.Parts{
		Services:   []string{"echo-canary", "echo-stable"},
		Ports:      map[string][]string{"echo-canary": {"http"}, "echo-stable": {"http", "8081"}},
		Containers: []string{"app", "proxy"},
	}, c.err
}

func (c *clusterSpy) Logs(_ context.Context, o install.LogOptions) error {
	for _, pod := range []struct{ component, name string }{{"manager", "sidestep-manager-1"},
		{"nodeagent", "sidestep-nodeagent-1"}, {"nodeagent", "sidestep-nodeagent-2"}} {
		switch {
		case !o.Wanted(pod.component, pod.name):
		case c.err != nil:
			o.Problem("read the log of pod "+pod.name, c.err)
		default:
			o.Write("cluster/"+pod.name+".log", strings.NewReader("log of "+pod.name+c.logged))
		}
	}
	return nil
}
