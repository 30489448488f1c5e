// SPDX-License-Identifier: Apache-2.0

package pki

import (
	"fmt"

	"k8s.io/client-go/tools/clientcmd"
	"k8s.io/client-go/tools/clientcmd/api"
)

// Kubeconfig is a client's configuration with everything in it, so that it works wherever it is
// copied.
func (a *Authority) Kubeconfig(cluster, server, user string, credentials Pair) ([]byte, error) {
	config := api.NewConfig()
	config.Clusters[cluster] = &api.Cluster{Server: server, CertificateAuthorityData: a.pem}
	config.AuthInfos[user] = &api.AuthInfo{
		ClientCertificateData: credentials.Certificate,
		ClientKeyData:         credentials.Key,
	}
	config.Contexts[cluster] = &api.Context{Cluster: cluster, AuthInfo: user}
	config.CurrentContext = cluster
	text, err := clientcmd.Write(*config)
	if err != nil {
		return nil, fmt.Errorf("write kubeconfig of %s: %w", user, err)
	}
	return text, nil
}

// ClientKubeconfig signs a certificate for a user and wraps it up.
func (a *Authority) ClientKubeconfig(cluster, server, user string, groups ...string) ([]byte, error) {
	credentials, err := a.Client(user, groups...)
	if err != nil {
		return nil, err
	}
	return a.Kubeconfig(cluster, server, user, credentials)
}
