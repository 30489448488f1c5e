// SPDX-License-Identifier: Apache-2.0

package kube_test

import (
	"context"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"

	"sidestep.dev/sidestep/client/kube"
	"sidestep.dev/sidestep/internal/reason"
)

const twoContexts = `apiVersion: v1
kind: Config
current-context: one
clusters:
- {name: one, cluster: {server: "https://one:6443", certificate-authority: ca.crt}}
- {name: two, cluster: {server: "https://two:6443", insecure-skip-tls-verify: true, proxy-url: "http://proxy:3128"}}
users:
- {name: ann, user: {token: a}}
- {name: bob, user: {exec: {apiVersion: client.authentication.k8s.io/v1, command: ./login, interactiveMode: IfAvailable}}}
contexts:
- {name: one, context: {cluster: one, user: ann, namespace: shop}}
- {name: two, context: {cluster: two, user: bob}}
`

func kubeconfig(t *testing.T, text string) string {
	path := filepath.Join(t.TempDir(), "config")
	require.NoError(t, os.WriteFile(path, []byte(text), 0o600))
	require.NoError(t, os.WriteFile(filepath.Join(filepath.Dir(path), "ca.crt"), nil, 0o600))
	return path
}

func TestLoad(t *testing.T) {
	file := kubeconfig(t, twoContexts)
	load := func(t *testing.T, flags map[string]string) *kube.Cluster {
		c, err := kube.Access{Flags: flags, KubeconfigEnv: file}.Load()
		require.NoError(t, err)
		return c
	}
	t.Run("the kubeconfig's current context is used", func(t *testing.T) {
		c := load(t, nil)
		assert.Equal(t, "https://one:6443", c.Server)
		assert.Equal(t, "one", c.Context)
		assert.Equal(t, "shop", c.Namespace)
		assert.Equal(t, "a", c.Config.BearerToken)
		assert.Equal(t, filepath.Join(filepath.Dir(file), "ca.crt"), c.Config.CAFile,
			"paths are relative to the kubeconfig")
	})
	t.Run("another context has its own proxy and plugin", func(t *testing.T) {
		c := load(t, map[string]string{"context": "two"})
		assert.Equal(t, "default", c.Namespace)
		assert.Equal(t, filepath.Join(filepath.Dir(file), "login"), c.Config.ExecProvider.Command)
		assert.True(t, c.Config.ExecProvider.StdinUnavailable)
		assert.NotNil(t, c.Config.Proxy)
	})
	t.Run("flags override", func(t *testing.T) {
		dir := t.TempDir()
		require.NoError(t, os.WriteFile(filepath.Join(dir, "my.crt"), nil, 0o600))
		c, err := kube.Access{KubeconfigEnv: file, Dir: dir, Flags: map[string]string{
			"server": "https://three", "user": "bob", "token": "t", "as": "eve", "as-group": "a,b",
			"as-uid": "7", "tls-server-name": "four",
			"certificate-authority": "my.crt", "namespace": "other", "request-timeout": "3s",
			"disable-compression": "true", "cache-dir": "/tmp",
		}}.Load()
		require.NoError(t, err)
		assert.Equal(t, "https://three", c.Server)
		assert.Equal(t, "t", c.Config.BearerToken)
		assert.Equal(t, "eve", c.Config.Impersonate.UserName)
		assert.Equal(t, []string{"a", "b"}, c.Config.Impersonate.Groups)
		assert.Equal(t, "7", c.Config.Impersonate.UID)
		assert.Equal(t, "four", c.Config.ServerName)
		assert.Equal(t, filepath.Join(dir, "my.crt"), c.Config.CAFile,
			"paths of flags are relative to the caller")
		assert.Equal(t, "other", c.Namespace)
		assert.Zero(t, c.Config.Timeout, "it would end watches")
		ctx, cancel := c.Call(t.Context())
		defer cancel()
		deadline, _ := ctx.Deadline()
		assert.WithinDuration(t, time.Now().Add(3*time.Second), deadline, time.Second)
	})
	t.Run("several files are merged, and a relative one is the caller's", func(t *testing.T) {
		first := kubeconfig(t, "apiVersion: v1\nkind: Config\ncurrent-context: two\n")
		c, err := kube.Access{KubeconfigEnv: filepath.Base(first) + string(os.PathListSeparator) + file,
			Dir: filepath.Dir(first)}.Load()
		require.NoError(t, err)
		assert.Equal(t, "two", c.Context)
	})
	for message, access := range map[string]kube.Access{
		"unknown flag --colour":             {Flags: map[string]string{"colour": "red"}},
		"cannot read the kubeconfig":        {Flags: map[string]string{"kubeconfig": "/nowhere/config"}},
		"the kubeconfig does not work":      {Flags: map[string]string{"cluster": "five"}, KubeconfigEnv: file},
		`the kubeconfig has no context "x"`: {Flags: map[string]string{"context": "x"}, KubeconfigEnv: file},
	} {
		t.Run(message, func(t *testing.T) {
			_, err := access.Load()
			assert.ErrorContains(t, err, message)
			assert.Equal(t, reason.NoCluster, reason.Of(err))
		})
	}
}

func TestSource(t *testing.T) {
	file := kubeconfig(t, twoContexts)
	s := kube.NewSource(kube.Access{KubeconfigEnv: file})
	first, err := s.Cluster()
	require.NoError(t, err)
	same, err := s.Cluster()
	require.NoError(t, err)
	assert.Same(t, first, same, "as long as the file says the same, connections are kept")
	s.Use(kube.Access{KubeconfigEnv: file, Flags: map[string]string{"token": "new"}})
	next, err := s.Cluster()
	require.NoError(t, err)
	assert.Equal(t, "new", next.Config.BearerToken, "new credentials are used at once")
}

func TestExplain(t *testing.T) {
	c, err := kube.Access{KubeconfigEnv: kubeconfig(t, twoContexts)}.Load()
	require.NoError(t, err)
	dial := func(err error) error { return &net.OpError{Op: "dial", Net: "tcp", Err: err} }
	cases := []struct {
		name    string
		err     error
		reason  string
		message string
	}{
		{"refused", dial(os.NewSyscallError("connect", syscall.ECONNREFUSED)), reason.NoCluster,
			"cannot reach the Kubernetes API server https://one:6443: connection refused — check your kubeconfig or VPN"},
		{"unknown host", dial(&net.DNSError{Name: "one", IsNotFound: true}), reason.NoCluster,
			"no such host one"},
		{"timeout", context.DeadlineExceeded, reason.NoCluster, "no answer in time"},
		{"unknown authority", fmt.Errorf("tls: %w", x509.UnknownAuthorityError{}), reason.NoCluster,
			"signed by an authority that the kubeconfig does not trust"},
		{"unauthorized", apierrors.NewUnauthorized("no"), reason.Unauthorized,
			`does not accept the credentials of context "one" — log in again`},
		{"plugin", errors.New(`Get "https://one": getting credentials: exec: executable aws not found`),
			reason.Unauthorized, "executable aws not found"},
		{"forbidden", apierrors.NewForbidden(corev1.Resource("pods"), "x",
			errors.New(`User "ann" cannot list resource "pods" in API group "" in the namespace "shop"`)), reason.Forbidden,
			"ann may not list pods in namespace shop — ask for the ClusterRole sidestep-user"},
		{"forbidden everywhere", apierrors.NewForbidden(corev1.Resource("pods"), "x",
			errors.New(`User "ann" cannot list resource "pods" in API group "" at the cluster scope`)),
			reason.Forbidden, "ann may not list pods in all namespaces"},
		{"policy", apierrors.NewForbidden(corev1.Resource("pods"), "x", errors.New("policy says no")),
			reason.Forbidden, "the cluster does not allow it"},
		{"overloaded", apierrors.NewServiceUnavailable("starting"), reason.NoCluster, "is in trouble"},
	}
	for _, test := range cases {
		t.Run(test.name, func(t *testing.T) {
			got := c.Explain(test.err)
			assert.ErrorContains(t, got, test.message)
			assert.Equal(t, test.reason, reason.Of(got))
			assert.Equal(t, got, c.Explain(got), "once is enough")
		})
	}
	missing := apierrors.NewNotFound(corev1.Resource("pods"), "x")
	assert.Equal(t, error(missing), c.Explain(missing), "what is not about access is the caller's to explain")
	assert.NoError(t, c.Explain(nil))
}
