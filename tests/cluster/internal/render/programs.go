// SPDX-License-Identifier: Apache-2.0

package render

import (
	"fmt"

	"sidestep.dev/sidestep/tests/cluster/internal/plan"
)

// Files below ConfigDir on the control plane.
const (
	APIServerCert       = "apiserver.crt"
	APIServerKey        = "apiserver.key"
	KubeletClientCert   = "kubelet-client.crt"
	KubeletClientKey    = "kubelet-client.key"
	CAKey               = "ca.key"
	AccountKey          = "accounts.key"
	AccountPublicKey    = "accounts.pub"
	ManagerKubeconfig   = "controller-manager.kubeconfig"
	SchedulerKubeconfig = "scheduler.kubeconfig"
	AdminKubeconfig     = "admin.kubeconfig"
)

const etcdURL = "http://127.0.0.1:2379"

// Etcd returns the program's command line. A cluster that lives for a test does not survive a power failure, so it does
// not wait for the disk.
func Etcd() []string {
	return []string{
		"etcd",
		"--data-dir=/var/lib/etcd",
		"--unsafe-no-fsync",
		"--listen-client-urls=" + etcdURL,
		"--advertise-client-urls=" + etcdURL,
		"--listen-peer-urls=http://127.0.0.1:2380",
		"--initial-advertise-peer-urls=http://127.0.0.1:2380",
		"--initial-cluster=default=http://127.0.0.1:2380",
		"--log-level=warn",
	}
}

// APIServer returns the program's command line.
func APIServer(p plan.Plan) []string {
	return []string{
		"kube-apiserver",
		"--etcd-servers=" + etcdURL,
		fmt.Sprintf("--secure-port=%d", plan.APIPort),
		"--advertise-address=" + p.APIAddress().String(),
		"--service-cluster-ip-range=" + plan.Strings(p.ServiceNetworks()),
		"--client-ca-file=" + In(CACertificate),
		"--tls-cert-file=" + In(APIServerCert),
		"--tls-private-key-file=" + In(APIServerKey),
		"--service-account-issuer=https://kubernetes.default.svc.cluster.local",
		"--service-account-key-file=" + In(AccountPublicKey),
		"--service-account-signing-key-file=" + In(AccountKey),
		"--authorization-mode=Node,RBAC",
		"--enable-admission-plugins=NodeRestriction",
		"--kubelet-client-certificate=" + In(KubeletClientCert),
		"--kubelet-client-key=" + In(KubeletClientKey),
		"--kubelet-certificate-authority=" + In(CACertificate),
		"--kubelet-preferred-address-types=InternalIP",
		"--allow-privileged",
		"--profiling=false",
	}
}

// ControllerManager returns the program's command line.
func ControllerManager(p plan.Plan) []string {
	return []string{
		"kube-controller-manager",
		"--kubeconfig=" + In(ManagerKubeconfig),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--node-monitor-period=1s", // until it has looked, a new node takes no pods
		"--use-service-account-credentials",
		"--root-ca-file=" + In(CACertificate),
		"--service-account-private-key-file=" + In(AccountKey),
		"--cluster-signing-cert-file=" + In(CACertificate),
		"--cluster-signing-key-file=" + In(CAKey),
		"--service-cluster-ip-range=" + plan.Strings(p.ServiceNetworks()),
		"--profiling=false",
	}
}

// Scheduler returns the program's command line.
func Scheduler() []string {
	return []string{
		"kube-scheduler",
		"--kubeconfig=" + In(SchedulerKubeconfig),
		"--bind-address=127.0.0.1",
		"--leader-elect=false",
		"--profiling=false",
	}
}

// Containerd returns the program's command line.
func Containerd() []string { return []string{"containerd", "--config", In("containerd.toml")} }

// Kubelet returns the program's command line.
func Kubelet(node plan.Node) []string {
	return []string{
		"kubelet",
		"--config=" + In("kubelet.yaml"),
		"--kubeconfig=" + In(KubeletKubeconfig),
		"--hostname-override=" + node.Name,
		"--node-ip=" + plan.Strings(plan.Addrs(node.Addresses)),
	}
}

// Proxy returns the program's command line.
func Proxy() []string { return []string{"kube-proxy", "--config=" + In("kube-proxy.yaml")} }
