// SPDX-License-Identifier: Apache-2.0

// Package kube connects the laptop to a Kubernetes API server: which one, as whom, and what to tell
// users when it does not work.
package kube

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"k8s.io/client-go/tools/clientcmd"
	clientcmdapi "k8s.io/client-go/tools/clientcmd/api"
)

// Access says which cluster and which account, as kubectl's flags and environment do. A session
// keeps it on disk to find its cluster again. The kubeconfig itself is read each time.
type Access struct {
	// Flags are kubectl's, without dashes, and only those that were given.
	Flags map[string]string `json:"flags,omitempty"`
	// KubeconfigEnv is $KUBECONFIG of the caller.
	KubeconfigEnv string `json:"kubeconfigEnv,omitempty"`
	// Dir is the caller's working directory, for relative paths.
	Dir string `json:"dir,omitempty"`
}

// flagSetters says what each flag overrides. kubectl's flags about printing and caching are
// accepted and have no effect.
var flagSetters = map[string]func(o *clientcmd.ConfigOverrides, value string) error{
	"kubeconfig":           func(*clientcmd.ConfigOverrides, string) error { return nil },
	"cache-dir":            func(*clientcmd.ConfigOverrides, string) error { return nil },
	"match-server-version": func(*clientcmd.ConfigOverrides, string) error { return nil },
	"context": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.CurrentContext = v
		return nil
	},
	"cluster": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.Context.Cluster = v
		return nil
	},
	"user": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.Context.AuthInfo = v
		return nil
	},
	"namespace": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.Context.Namespace = v
		return nil
	},
	"server": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.ClusterInfo.Server = v
		return nil
	},
	"tls-server-name": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.ClusterInfo.TLSServerName = v
		return nil
	},
	"certificate-authority": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.ClusterInfo.CertificateAuthority = v
		return nil
	},
	"insecure-skip-tls-verify": func(o *clientcmd.ConfigOverrides, v string) (err error) {
		o.ClusterInfo.InsecureSkipTLSVerify, err = strconv.ParseBool(v)
		return err
	},
	"disable-compression": func(o *clientcmd.ConfigOverrides, v string) (err error) {
		o.ClusterInfo.DisableCompression, err = strconv.ParseBool(v)
		return err
	},
	"client-certificate": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.ClientCertificate = v
		return nil
	},
	"client-key": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.ClientKey = v
		return nil
	},
	"token": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.Token = v
		return nil
	},
	"username": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.Username = v
		return nil
	},
	"password": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.Password = v
		return nil
	},
	"as": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.Impersonate = v
		return nil
	},
	"as-uid": func(o *clientcmd.ConfigOverrides,
		v string) error {
		o.AuthInfo.ImpersonateUID = v
		return nil
	},
	"as-group": func(o *clientcmd.ConfigOverrides, v string) error {
		o.AuthInfo.ImpersonateGroups = strings.Split(v, ",")
		return nil
	},
	"request-timeout": func(o *clientcmd.ConfigOverrides, v string) error {
		if _, err := clientcmd.ParseTimeout(v); err != nil {
			return err
		}
		o.Timeout = v
		return nil
	},
}

// pathFlags are relative to the caller's directory.
var pathFlags = []string{"kubeconfig", "certificate-authority", "client-certificate", "client-key"}

func (a Access) abs(path string) string {
	if path == "" || filepath.IsAbs(path) || a.Dir == "" {
		return path
	}
	return filepath.Join(a.Dir, path)
}

// overrides returns what the flags change in the kubeconfig.
func (a Access) overrides() (*clientcmd.ConfigOverrides, error) {
	o := &clientcmd.ConfigOverrides{ClusterDefaults: clientcmdapi.Cluster{Server: ""}}
	for name, value := range a.Flags {
		set, ok := flagSetters[name]
		if !ok {
			return nil, fmt.Errorf("unknown flag --%s for the Kubernetes API", name)
		}
		if slices.Contains(pathFlags, name) {
			value = a.abs(value)
		}
		if err := set(o, value); err != nil {
			return nil, fmt.Errorf("--%s %s: %w", name, value, err)
		}
	}
	return o, nil
}

// rules returns which kubeconfig files are read, with kubectl's precedence.
func (a Access) rules() *clientcmd.ClientConfigLoadingRules {
	if explicit := a.Flags["kubeconfig"]; explicit != "" {
		return &clientcmd.ClientConfigLoadingRules{ExplicitPath: a.abs(explicit)}
	}
	var files []string
	for _, file := range filepath.SplitList(a.KubeconfigEnv) {
		if file != "" && !slices.Contains(files, a.abs(file)) {
			files = append(files, a.abs(file))
		}
	}
	if len(files) == 0 {
		files = []string{clientcmd.RecommendedHomeFile}
	}
	return &clientcmd.ClientConfigLoadingRules{Precedence: files}
}

// loader reads the kubeconfig, lazily.
func (a Access) loader() (clientcmd.ClientConfig, *clientcmd.ConfigOverrides, error) {
	o, err := a.overrides()
	if err != nil {
		return nil, nil, err
	}
	return clientcmd.NewNonInteractiveDeferredLoadingClientConfig(a.rules(), o), o, nil
}
