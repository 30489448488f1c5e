// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"crypto/x509"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"

	"sidestep.dev/sidestep/tests/cluster/internal/debian"
	"sidestep.dev/sidestep/tests/cluster/internal/pki"
	"sidestep.dev/sidestep/tests/cluster/internal/plan"
	"sidestep.dev/sidestep/tests/cluster/internal/render"
)

// configure writes what the programs on all machines read. Credentials that are there stay as they
// are.
func (c *Cluster) configure(p plan.Plan) error {
	authority, err := c.Authority()
	if err != nil {
		return err
	}
	if err := c.configureControlPlane(p, authority); err != nil {
		return err
	}
	for _, node := range p.AllNodes() {
		if err := c.configureNode(p, node, authority); err != nil {
			return err
		}
	}
	if err := os.MkdirAll(c.varDir(plan.ControlPlane), 0o755); err != nil {
		return fmt.Errorf("make /var of the control plane: %w", err)
	}
	return nil
}

func (c *Cluster) configureControlPlane(p plan.Plan, authority *pki.Authority) error {
	w := writer{cluster: c, machine: plan.ControlPlane, plan: p, authority: authority}
	w.always(render.CACertificate, authority.Certificate())
	w.once([]string{render.APIServerCert, render.APIServerKey}, func() ([][]byte, error) {
		names := []string{
			"kubernetes", "kubernetes.default", "kubernetes.default.svc",
			"kubernetes.default.svc.cluster.local", "localhost",
		}
		addresses := []netip.Addr{netip.MustParseAddr("127.0.0.1"), netip.IPv6Loopback(), p.APIService()}
		for _, network := range p.ServiceNetworks() {
			addresses = append(addresses, network.Addr().Next())
		}
		for _, prefixes := range [][]netip.Prefix{p.ControlPlaneAddresses(), p.LaptopLink().Near,
			p.RootLink().Near} {
			addresses = append(addresses, plan.Addrs(prefixes)...)
		}
		return both(authority.Server("kube-apiserver", names, addresses))
	})
	w.once([]string{render.KubeletClientCert, render.KubeletClientKey}, func() ([][]byte, error) {
		return both(authority.Client("kube-apiserver-kubelet-client", "system:masters"))
	})
	w.once([]string{render.AccountKey, render.AccountPublicKey}, accountKeys)
	w.once([]string{render.CAKey}, func() ([][]byte, error) {
		key, err := os.ReadFile(filepath.Join(c.State, pkiDir, "ca.key"))
		return [][]byte{key}, err
	})
	w.kubeconfig(render.ManagerKubeconfig, "system:kube-controller-manager")
	w.kubeconfig(render.SchedulerKubeconfig, "system:kube-scheduler")
	w.kubeconfig(render.AdminKubeconfig, "admin", "system:masters")
	if w.err != nil {
		return w.err
	}
	admin, err := os.ReadFile(filepath.Join(c.State, configFile(plan.ControlPlane, render.AdminKubeconfig)))
	if err != nil {
		return fmt.Errorf("read kubeconfig of the administrator: %w", err)
	}
	return c.write(kubeconfigFile, admin, 0o600)
}

func (c *Cluster) configureNode(p plan.Plan, node plan.Node, authority *pki.Authority) error {
	files, err := render.Node(p, node, render.Facts{PauseImage: pauseImage(), CNIPlugins: debian.CNIPlugins})
	if err != nil {
		return err
	}
	w := writer{cluster: c, machine: node.Name, plan: p, authority: authority}
	for name, content := range files {
		w.always(name, content)
	}
	w.always(render.CACertificate, authority.Certificate())
	w.once([]string{render.KubeletCert, render.KubeletKey}, func() ([][]byte, error) {
		return both(authority.Server("system:node:"+node.Name, []string{node.Name}, plan.Addrs(node.Addresses)))
	})
	w.kubeconfig(render.KubeletKubeconfig, "system:node:"+node.Name, "system:nodes")
	w.kubeconfig(render.ProxyKubeconfig, "system:kube-proxy")
	return w.err
}

// writer writes files of one machine until the first failure.
type writer struct {
	cluster   *Cluster
	machine   string
	plan      plan.Plan
	authority *pki.Authority
	err       error
}

func (w *writer) always(name string, content []byte) {
	if w.err == nil {
		w.err = w.cluster.write(configFile(w.machine, name), content, 0o600)
	}
}

// once makes files that belong together, unless the last of them is there.
func (w *writer) once(names []string, create func() ([][]byte, error)) {
	if w.err != nil {
		return
	}
	last := filepath.Join(w.cluster.State, configFile(w.machine, names[len(names)-1]))
	if _, err := os.Stat(last); !errors.Is(err, fs.ErrNotExist) {
		w.err = err
		return
	}
	contents, err := create()
	if err != nil {
		w.err = err
		return
	}
	for i, name := range names {
		w.always(name, contents[i])
	}
}

func (w *writer) kubeconfig(name, user string, groups ...string) {
	w.once([]string{name}, func() ([][]byte, error) {
		text, err := w.authority.ClientKubeconfig(w.plan.Name, w.plan.Server(), user, groups...)
		return [][]byte{text}, err
	})
}

func both(pair pki.Pair, err error) ([][]byte, error) {
	return [][]byte{pair.Certificate, pair.Key}, err
}

// accountKeys are for the tokens of service accounts.
func accountKeys() ([][]byte, error) {
	key, private, err := pki.NewKey()
	if err != nil {
		return nil, fmt.Errorf("make key for service accounts: %w", err)
	}
	public, err := x509.MarshalPKIXPublicKey(key.Public())
	if err != nil {
		return nil, fmt.Errorf("make key for service accounts: %w", err)
	}
	return [][]byte{private, pem.EncodeToMemory(&pem.Block{Type: "PUBLIC KEY", Bytes: public})}, nil
}
