// SPDX-License-Identifier: Apache-2.0

package install

import (
	"sync"

	"k8s.io/apimachinery/pkg/api/meta"
	"k8s.io/cli-runtime/pkg/genericclioptions"
	"k8s.io/client-go/discovery"
	"k8s.io/client-go/discovery/cached/memory"
	"k8s.io/client-go/restmapper"
)

// clusterGetter is kubectl's access to a cluster, without the files in ~/.kube/cache. Nothing may
// be left on a laptop, and cached types of an earlier installation are useless for the next.
type clusterGetter struct {
	*genericclioptions.ConfigFlags
	once      sync.Once
	discovery discovery.CachedDiscoveryInterface
	err       error
}

func (g *clusterGetter) ToDiscoveryClient() (discovery.CachedDiscoveryInterface, error) {
	g.once.Do(func() {
		config, err := g.ToRESTConfig()
		if err != nil {
			g.err = err
			return
		}
		client, err := discovery.NewDiscoveryClientForConfig(config)
		if err != nil {
			g.err = err
			return
		}
		g.discovery = memory.NewMemCacheClient(client)
	})
	return g.discovery, g.err
}

func (g *clusterGetter) ToRESTMapper() (meta.RESTMapper, error) {
	client, err := g.ToDiscoveryClient()
	if err != nil {
		return nil, err
	}
	mapper := restmapper.NewDeferredDiscoveryRESTMapper(client)
	return restmapper.NewShortcutExpander(mapper, client, nil), nil
}
