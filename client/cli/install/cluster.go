// SPDX-License-Identifier: Apache-2.0

// Package install installs the traffic manager and the node agents in a cluster, with the Helm
// chart that the program contains, and removes them.
package install

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"time"

	"github.com/spf13/pflag"
	"helm.sh/helm/v3/pkg/action"
	"helm.sh/helm/v3/pkg/cli/values"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/dynamic"
	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"

	"sidestep.dev/sidestep/internal/names"
	"sidestep.dev/sidestep/internal/reason"
)

const (
	// releaseName is the name of the Helm release, and of what the chart makes.
	releaseName = names.Sidestep
	// selector selects the chart's objects.
	selector = names.LabelName + "=" + names.Sidestep
	// dialPatience bounds the wait for any answer of a cluster.
	dialPatience = 10 * time.Second
	// requestPatience bounds one request without --request-timeout.
	requestPatience = 30 * time.Second
	// stuckAfter lets the kubelet retry a failing registry twice: it tries again after 10 s, and
	// then after 20 s.
	stuckAfter = 45 * time.Second
)

// Options say which cluster and which namespace of it.
type Options struct {
	KubeFlags *pflag.FlagSet // kubectl's flags; those that were set count
	Namespace string         // of the traffic manager
	Chart     fs.FS          // the chart's files
	Version   string         // of the images, unless the values have another
	Program   string         // the name of this program in hints
}

// Settings say how to install or remove it.
type Settings struct {
	Values          values.Options
	CreateNamespace bool
	NoHooks         bool
	ReuseValues     bool // upgrade: keep the values of the release, and add to them
	ResetValues     bool // upgrade: forget the values of the release
	Wait            bool // until all pods are ready
	Timeout         time.Duration
	// background is set if deleted objects may end after the call has returned.
	background bool
	Progress   func(string) // called with each step; may be nil
	Warn       func(string) // called with what is to be seen to, though nothing failed; may be nil
}

func (s Settings) step(format string, args ...any) {
	if s.Progress != nil {
		s.Progress(fmt.Sprintf(format, args...))
	}
}

// Cluster is a cluster with the traffic manager, or for it.
type Cluster struct {
	namespace string
	version   string
	program   string
	chart     fs.FS
	server    string
	kube      kubernetes.Interface
	dynamic   dynamic.Interface
	helm      func() (*action.Configuration, error)
	poll      time.Duration
	// stuckAfter is how long the same trouble of a pod is watched before it becomes the error.
	stuckAfter time.Duration
	settle     time.Duration // time for node agents to learn that an intercept has ended
}

// Reach prepares a connection to a cluster. It sends nothing yet.
func Reach(o Options) (*Cluster, error) {
	flags := &clusterGetter{ConfigFlags: configFlags(o)}
	config, err := flags.ToRESTConfig()
	if clientcmd.IsEmptyConfig(err) || err == nil && namesNone(flags) {
		err = errors.New("no kubeconfig names one")
	}
	if err != nil {
		return nil, reason.Advise(fmt.Errorf("find the cluster: %w", err),
			"check --kubeconfig and --context, or `kubectl config view`")
	}
	kube, err := kubernetes.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", config.Host, err)
	}
	dyn, err := dynamic.NewForConfig(config)
	if err != nil {
		return nil, fmt.Errorf("connect to %s: %w", config.Host, err)
	}
	return &Cluster{
		namespace: o.Namespace, version: o.Version, program: o.Program, chart: o.Chart,
		server: config.Host, kube: kube, dynamic: dyn,
		poll: 500 * time.Millisecond, stuckAfter: stuckAfter, settle: 2 * time.Second,
		helm: func() (*action.Configuration, error) {
			helm := &action.Configuration{}
			if err := helm.Init(flags, o.Namespace, "secret", func(string, ...any) {}); err != nil {
				return nil, fmt.Errorf("prepare helm: %w", err)
			}
			return helm, nil
		},
	}, nil
}

// namesNone reports whether neither flags nor kubeconfig name a cluster. kubectl would try
// http://localhost:8080, which no user means.
func namesNone(flags *clusterGetter) bool {
	raw, err := flags.ToRawKubeConfigLoader().RawConfig()
	return err == nil && len(raw.Clusters) == 0 && *flags.APIServer == "" &&
		os.Getenv("KUBERNETES_MASTER") == "" && os.Getenv("KUBERNETES_SERVICE_HOST") == ""
}

// configFlags returns kubectl's flags with the traffic manager's namespace as theirs.
func configFlags(o Options) *genericclioptions.ConfigFlags {
	config := genericclioptions.NewConfigFlags(true)
	config.WrapConfigFn = func(c *rest.Config) *rest.Config {
		c.WarningHandler = rest.NoWarnings{}
		c.QPS, c.Burst = 50, 300
		if c.Timeout == 0 {
			c.Timeout = requestPatience // no watch is made here
		}
		return c
	}
	set := pflag.NewFlagSet("", pflag.ContinueOnError)
	config.AddFlags(set)
	if o.KubeFlags != nil {
		o.KubeFlags.VisitAll(func(f *pflag.Flag) {
			target := set.Lookup(f.Name)
			if !f.Changed || target == nil {
				return
			}
			if list, ok := f.Value.(pflag.SliceValue); ok {
				if to, ok := target.Value.(pflag.SliceValue); ok {
					_ = to.Replace(list.GetSlice())
				}
				return
			}
			_ = target.Value.Set(f.Value.String())
		})
	}
	config.Namespace = &o.Namespace
	return config
}

// Server returns the URL of the API server.
func (c *Cluster) Server() string { return c.server }

// answer returns an error with advice if the API server does not answer.
func (c *Cluster) answer(ctx context.Context) error {
	client := c.kube.Discovery().RESTClient()
	if client == nil || client == (*rest.RESTClient)(nil) {
		return nil // in a test
	}
	asked, cancel := context.WithTimeout(ctx, dialPatience)
	defer cancel()
	err := client.Get().AbsPath("/version").Do(asked).Error()
	switch {
	case err == nil, apierrors.IsForbidden(err):
		return nil
	case ctx.Err() != nil:
		return ctx.Err()
	case errors.Is(err, context.DeadlineExceeded):
		return reason.Advise(fmt.Errorf("the cluster at %s does not answer", c.server),
			"check --context and your network")
	case apierrors.IsUnauthorized(err):
		return reason.Advise(fmt.Errorf("the cluster at %s does not accept your credentials: %w", c.server, err),
			"log in to it again")
	default:
		return reason.Advise(fmt.Errorf("cannot reach the cluster at %s: %w", c.server, err),
			"check --context and your network")
	}
}

// until polls ask until it returns true or an error. After the timeout it returns
// context.DeadlineExceeded.
func (c *Cluster) until(ctx context.Context, timeout time.Duration,
	ask func(context.Context) (bool, error)) error {
	bounded, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	tick := time.NewTicker(c.poll)
	defer tick.Stop()
	for {
		done, err := ask(bounded)
		if done || (err != nil && bounded.Err() == nil) {
			return err
		}
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-bounded.Done():
			return bounded.Err()
		case <-tick.C:
		}
	}
}
