// SPDX-License-Identifier: Apache-2.0

// Package render writes the configuration of the programs that a cluster consists of. Paths in it
// are as the machines see them: each has a /var and /run of its own.
package render

import (
	"encoding/json"
	"fmt"
	"path"

	"sigs.k8s.io/yaml"

	"sidestep.dev/sidestep/tests/cluster/internal/plan"
)

// Places on every machine.
const (
	ConfigDir        = "/var/lib/cluster"
	ContainerdSocket = "/run/containerd/containerd.sock"
	cniDir           = ConfigDir + "/cni"
)

// Files below ConfigDir that are secrets or certificates.
const (
	CACertificate     = "ca.crt"
	KubeletCert       = "kubelet.crt"
	KubeletKey        = "kubelet.key"
	KubeletKubeconfig = "kubelet.kubeconfig"
	ProxyKubeconfig   = "kube-proxy.kubeconfig"
)

// In is the path of a file in ConfigDir.
func In(name string) string { return path.Join(ConfigDir, name) }

// Facts are what the configuration depends on besides the plan.
type Facts struct {
	// PauseImage is the reference of the image that holds a pod's namespaces.
	PauseImage string
	// CNIPlugins is the directory of the CNI plugins.
	CNIPlugins string
}

// Node has the configuration files of a node by their paths below ConfigDir.
func Node(p plan.Plan, node plan.Node, facts Facts) (map[string][]byte, error) {
	files := map[string][]byte{"containerd.toml": []byte(containerd(facts))}
	for name, content := range map[string]any{
		"kubelet.yaml":         kubelet(p, node),
		"kube-proxy.yaml":      proxy(p, node),
		"cni/10-pods.conflist": cni(p, node),
	} {
		marshal := yaml.Marshal
		if path.Dir(name) == "cni" {
			marshal = json.Marshal
		}
		text, err := marshal(content)
		if err != nil {
			return nil, fmt.Errorf("write %s of %s: %w", name, node.Name, err)
		}
		files[name] = text
	}
	return files, nil
}

// containerd is configured in the version that 1.6 reads and 2.x converts.
//
// Without CAP_SYS_RESOURCE, as in many sandboxes, scores below one's own cannot be set:
// restrict_oom_score_adj.
func containerd(facts Facts) string {
	return fmt.Sprintf(`version = 2
root = "/var/lib/containerd"
state = "/run/containerd"

[grpc]
  address = %q

[plugins."io.containerd.grpc.v1.cri"]
  sandbox_image = %q
  restrict_oom_score_adj = true
  [plugins."io.containerd.grpc.v1.cri".cni]
    bin_dir = %q
    conf_dir = %q
  [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc]
    runtime_type = "io.containerd.runc.v2"
    [plugins."io.containerd.grpc.v1.cri".containerd.runtimes.runc.options]
      SystemdCgroup = false

[plugins."io.containerd.internal.v1.opt"]
  path = "/var/lib/containerd/opt"
`, ContainerdSocket, facts.PauseImage, facts.CNIPlugins, cniDir)
}

type object = map[string]any

func kubelet(p plan.Plan, _ plan.Node) object {
	return object{
		"apiVersion": "kubelet.config.k8s.io/v1beta1",
		"kind":       "KubeletConfiguration",
		"authentication": object{
			"anonymous": object{"enabled": false},
			"webhook":   object{"enabled": true},
			"x509":      object{"clientCAFile": In(CACertificate)},
		},
		"authorization":            object{"mode": "Webhook"},
		"tlsCertFile":              In(KubeletCert),
		"tlsPrivateKeyFile":        In(KubeletKey),
		"containerRuntimeEndpoint": "unix://" + ContainerdSocket,
		"clusterDNS":               []string{p.DNSService()[0].String()},
		"clusterDomain":            "cluster.local",
		"resolvConf":               "", // nothing leads to the computer's own name servers

		// The node is a cgroup namespace, so its root is not the computer's.
		"cgroupDriver":           "cgroupfs",
		"cgroupRoot":             "/",
		"failCgroupV1":           false,
		"enforceNodeAllocatable": []string{"pods"},

		// The disk is the user's, and images come from nowhere but load-image: evict late and
		// collect nothing.
		"evictionHard": object{
			"nodefs.available": "1%", "imagefs.available": "1%", "nodefs.inodesFree": "1%",
			"memory.available": "50Mi",
		},
		"imageGCHighThresholdPercent": 100,
		"failSwapOn":                  false,
		"volumePluginDir":             "/var/lib/kubelet/volume-plugins",

		// Tests kill containers again and again, and must not wait for minutes then.
		"featureGates":     object{"KubeletCrashLoopBackOffMax": true},
		"crashLoopBackOff": object{"maxContainerRestartPeriod": "1s"},

		"logging": object{"flushFrequency": "1s"},
	}
}

func proxy(p plan.Plan, node plan.Node) object {
	return object{
		"apiVersion":         "kubeproxy.config.k8s.io/v1alpha1",
		"kind":               "KubeProxyConfiguration",
		"mode":               "iptables",
		"hostnameOverride":   node.Name,
		"clusterCIDR":        plan.Strings(p.PodNetworks()),
		"metricsBindAddress": "127.0.0.1:10249",
		"clientConnection":   object{"kubeconfig": In(ProxyKubeconfig)},
		"oomScoreAdj":        0,
		// These belong to the whole computer, not to a network namespace.
		"conntrack": object{"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s",
			"tcpCloseWaitTimeout": "0s"},
	}
}

// cni has a veth pair for each pod and no bridge: all of a pod's traffic passes the node's routing,
// so answers to a service's address are translated back even between two pods of one node.
func cni(p plan.Plan, node plan.Node) object {
	ranges := make([][]object, len(node.Pods))
	routes := make([]object, len(node.Pods))
	for i, pods := range node.Pods {
		ranges[i] = []object{{"subnet": pods.String()}}
		routes[i] = object{"dst": "0.0.0.0/0"}
		if pods.Addr().Is6() {
			routes[i]["dst"] = "::/0"
		}
	}
	return object{
		"cniVersion": "1.0.0",
		"name":       "pods",
		"plugins": []object{
			{
				"type": "ptp", "ipMasq": false,
				"ipam": object{"type": "host-local", "dataDir": "/run/cni/addresses", "ranges": ranges,
					"routes": routes},
			},
			{"type": "portmap", "capabilities": object{"portMappings": true}},
		},
	}
}
