// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"net"
	"strings"
	"sync"
	"time"

	"google.golang.org/grpc/codes"
	appsv1 "k8s.io/api/apps/v1"
	authnv1 "k8s.io/api/authentication/v1"
	batchv1 "k8s.io/api/batch/v1"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/util/connrotation"
	"sigs.k8s.io/controller-runtime/pkg/client"

	"sidestep.dev/sidestep/api/v1alpha1"
	"sidestep.dev/sidestep/internal/reason"
	"sidestep.dev/sidestep/internal/rollout"
	"sidestep.dev/sidestep/internal/version"
)

// callTimeout bounds a call to the API server without --request-timeout.
const callTimeout = 15 * time.Second

// dialTimeout bounds connecting to an address of the API server.
const dialTimeout = 10 * time.Second

// Cluster is an API server, an account, and clients for them.
type Cluster struct {
	// Config has no timeout, so that it suits watches and port-forwards. Call bounds calls.
	Config *rest.Config
	// Server is the API server's URL, as in the kubeconfig.
	Server string
	// Context is the kubeconfig's context. It is empty if there is none.
	Context string
	// Namespace is the context's, or "default".
	Namespace string

	dialer      *connrotation.Dialer
	timeout     time.Duration
	fingerprint [sha256.Size]byte
	once        sync.Once
	client      client.WithWatch
	clientErr   error

	userMu    sync.Mutex
	user      User
	userAsked time.Time
}

// Load reads the kubeconfig. It makes no call to the cluster.
func (a Access) Load() (*Cluster, error) {
	loader, overrides, err := a.loader()
	if err != nil {
		return nil, reason.New(codes.InvalidArgument, reason.NoCluster, "%v", err)
	}
	raw, err := loader.RawConfig()
	if err != nil {
		return nil, reason.New(codes.FailedPrecondition, reason.NoCluster,
			"cannot read the kubeconfig: %v", err)
	}
	name := cmp.Or(overrides.CurrentContext, raw.CurrentContext)
	if _, ok := raw.Contexts[name]; !ok && name != "" {
		return nil, reason.New(codes.FailedPrecondition, reason.NoCluster,
			"the kubeconfig has no context %q", name).
			Advise("choose one of those that `kubectl config get-contexts` lists")
	}
	if name == "" && len(raw.Contexts) > 0 {
		return nil, reason.New(codes.FailedPrecondition, reason.NoCluster,
			"the kubeconfig %s has no current context", a.files()).
			Advise("name one of those that `kubectl config get-contexts` lists with --context")
	}
	config, err := loader.ClientConfig()
	if err != nil {
		return nil, a.explainConfig(err)
	}
	namespace, _, err := loader.Namespace()
	if err != nil {
		return nil, a.explainConfig(err)
	}
	c := &Cluster{Config: config, Server: config.Host, Context: name, Namespace: namespace,
		timeout: config.Timeout}
	c.fingerprint = fingerprint(config)
	if c.timeout == 0 {
		c.timeout = callTimeout
	}
	config.Timeout = 0
	config.QPS, config.Burst = 50, 100
	config.UserAgent = "sidestep/" + version.Version
	config.WarningHandler = rest.NoWarnings{}
	c.dialer = connrotation.NewDialer((&net.Dialer{Timeout: dialTimeout,
		KeepAlive: 30 * time.Second}).DialContext)
	config.Dial = c.dialer.DialContext
	if config.ExecProvider != nil {
		config.ExecProvider.StdinUnavailable = true
		config.ExecProvider.StdinUnavailableMessage = "the daemon has no terminal: log in with kubectl first"
	}
	return c, nil
}

// files names the kubeconfig files that are read.
func (a Access) files() string {
	if explicit := a.Flags["kubeconfig"]; explicit != "" {
		return a.abs(explicit)
	}
	return strings.Join(a.rules().Precedence, ", ")
}

func (a Access) explainConfig(err error) error {
	if clientcmd.IsEmptyConfig(err) || errors.Is(err, rest.ErrNotInCluster) {
		return reason.New(codes.FailedPrecondition, reason.NoCluster,
			"no Kubernetes cluster is configured: %s is missing or empty", a.files()).
			Advise("get a kubeconfig from who runs the cluster, and name its file with KUBECONFIG or --kubeconfig")
	}
	return reason.New(codes.FailedPrecondition, reason.NoCluster, "the kubeconfig does not work: %v", err)
}

// fingerprint is equal for two readings of the kubeconfig that give the same access.
func fingerprint(c *rest.Config) [sha256.Size]byte {
	exec, proxy := "", ""
	if c.ExecProvider != nil {
		// String and GoString leave out secrets, so the fields that matter are listed here.
		exec = fmt.Sprint(c.ExecProvider.Command, c.ExecProvider.Args, c.ExecProvider.Env,
			c.ExecProvider.APIVersion)
	}
	if c.Proxy != nil {
		if u, err := c.Proxy(nil); err == nil && u != nil {
			proxy = u.String()
		}
	}
	t := c.TLSClientConfig
	return sha256.Sum256(fmt.Appendf(nil, "%q", []string{
		c.Host, c.APIPath, c.Username, c.Password, c.BearerToken, c.BearerTokenFile, exec, proxy,
		c.Timeout.String(),
		c.Impersonate.UserName, c.Impersonate.UID, fmt.Sprint(c.Impersonate.Groups),
		fmt.Sprint(c.Impersonate.Extra), fmt.Sprint(c.AuthProvider),
		fmt.Sprint(t.Insecure), t.ServerName, t.CAFile, string(t.CAData), t.CertFile,
		string(t.CertData), t.KeyFile, string(t.KeyData),
	}))
}

// Drop closes the connections of calls and watches, so that the next ones open new connections.
// Requests in flight fail.
func (c *Cluster) Drop() { c.dialer.CloseAll() }

// Call bounds ctx by the timeout of a call.
func (c *Cluster) Call(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.timeout)
}

// Client returns a client for what the laptop deals with. It has no cache, and knows kinds without
// asking the API server.
func (c *Cluster) Client() (client.WithWatch, error) {
	c.once.Do(func() {
		if c.client, c.clientErr = client.NewWithWatch(c.Config,
			client.Options{Scheme: Scheme(), Mapper: mapper()}); c.clientErr != nil {
			c.clientErr = reason.New(codes.FailedPrecondition, reason.NoCluster,
				"the kubeconfig does not work: %v", c.clientErr)
		}
	})
	return c.client, c.clientErr
}

// Scheme returns the kinds that the laptop deals with.
func Scheme() *runtime.Scheme {
	s := runtime.NewScheme()
	for _, add := range []func(*runtime.Scheme) error{corev1.AddToScheme, appsv1.AddToScheme, batchv1.AddToScheme,
		authnv1.AddToScheme, v1alpha1.AddToScheme} {
		if err := add(s); err != nil {
			panic(err) // a kind was registered twice
		}
	}
	return s
}

func mapper() meta.RESTMapper {
	m := meta.NewDefaultRESTMapper([]schema.GroupVersion{corev1.SchemeGroupVersion,
		appsv1.SchemeGroupVersion, batchv1.SchemeGroupVersion, authnv1.SchemeGroupVersion, v1alpha1.GroupVersion})
	for _, kind := range []string{"Pod", "Service", "ConfigMap"} {
		m.Add(corev1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	m.Add(corev1.SchemeGroupVersion.WithKind("Namespace"), meta.RESTScopeRoot)
	for _, kind := range []string{"Deployment", "ReplicaSet", "StatefulSet", "DaemonSet"} {
		m.Add(appsv1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	for _, kind := range []string{"Job", "CronJob"} {
		m.Add(batchv1.SchemeGroupVersion.WithKind(kind), meta.RESTScopeNamespace)
	}
	m.Add(rollout.GroupVersion.WithKind(rollout.Kind), meta.RESTScopeNamespace)
	m.Add(authnv1.SchemeGroupVersion.WithKind("SelfSubjectReview"), meta.RESTScopeRoot)
	m.Add(v1alpha1.GroupVersion.WithKind("Intercept"), meta.RESTScopeNamespace)
	m.Add(v1alpha1.GroupVersion.WithKind("Login"), meta.RESTScopeNamespace)
	return m
}
