// SPDX-License-Identifier: Apache-2.0

package upstream

import (
	_ "embed"
	"strings"
)

// Source is a Go module with programs to build.
type Source struct {
	// Name is the project's name.
	Name string
	// Module and Version are its coordinates; a source without them consists of Files alone.
	Module, Version string
	// Siblings is the version of the modules from the same repository, where Module does not name
	// it.
	Siblings string
	// Programs maps the names of programs to their packages.
	Programs map[string]string
	// Files are added to the build's module.
	Files map[string][]byte
	// LinkerFlags are added to those that every program gets.
	LinkerFlags []string
}

// Versions of what a cluster runs.
const (
	KubernetesVersion = "v1.34.4"
	EtcdVersion       = "v3.6.16"
	CoreDNSVersion    = "v1.14.7"
	PauseVersion      = "v1"
)

// Kubernetes is the control plane, the node programs and kubectl.
func Kubernetes() Source {
	programs := map[string]string{}
	for _, name := range []string{
		"kube-apiserver", "kube-controller-manager", "kube-proxy", "kube-scheduler", "kubectl", "kubelet",
	} {
		programs[name] = "k8s.io/kubernetes/cmd/" + name
	}
	parts := strings.SplitN(strings.TrimPrefix(KubernetesVersion, "v"), ".", 3)
	const variables = "-X k8s.io/component-base/version."
	return Source{
		Name:     "Kubernetes",
		Module:   "k8s.io/kubernetes",
		Version:  KubernetesVersion,
		Siblings: "v0." + parts[1] + "." + parts[2],
		Programs: programs,
		LinkerFlags: []string{
			variables + "gitVersion=" + KubernetesVersion,
			variables + "gitMajor=" + parts[0],
			variables + "gitMinor=" + parts[1],
			variables + "gitTreeState=clean",
		},
	}
}

// Etcd is the API server's store.
func Etcd() Source {
	return Source{
		Name:     "etcd",
		Module:   "go.etcd.io/etcd/server/v3",
		Version:  EtcdVersion,
		Programs: map[string]string{"etcd": "go.etcd.io/etcd/server/v3"},
	}
}

//go:embed coredns/main.go
var coreDNSMain []byte

// CoreDNS is the cluster's DNS with the few plugins that it needs: a fraction of the whole one's
// size and build time.
func CoreDNS() Source {
	return Source{
		Name:     "CoreDNS",
		Module:   "github.com/coredns/coredns",
		Version:  CoreDNSVersion,
		Programs: map[string]string{"coredns": "."},
		Files:    map[string][]byte{"main.go": coreDNSMain},
	}
}

//go:embed pause/main.go
var pauseMain []byte

// Pause is the program that holds a pod's namespaces open.
func Pause() Source {
	return Source{
		Name:     "pause",
		Version:  PauseVersion,
		Programs: map[string]string{"pause": "."},
		Files: map[string][]byte{
			"main.go": pauseMain,
			"go.mod":  []byte("module sidestep.dev/sidestep/tests/cluster/pause\n\ngo 1.26.0\n"),
		},
	}
}
