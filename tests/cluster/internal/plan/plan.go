// SPDX-License-Identifier: Apache-2.0

// Package plan decides what a cluster consists of and which names and addresses its parts have.
//
// IPv4 addresses come from 198.18.0.0/15, which is set aside for tests of this kind and routed
// nowhere, IPv6 addresses from a unique local prefix.
package plan

import (
	"fmt"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// Family says which IP families nodes, pods and services have.
type Family string

// The families a cluster can have.
const (
	IPv4 Family = "ipv4"
	Dual Family = "dual"
)

// Names of the machines that are not nodes.
const (
	ControlPlane = "control-plane"
	Laptop       = "laptop"
	Fabric       = "fabric" // holds only the bridge between the others
)

// MaxNodes is bounded by the address layout.
const MaxNodes = 50

// APIPort is the API server's port on all addresses of the control plane.
const APIPort = 6443

// Plan is what the user chose. Everything else follows from it.
type Plan struct {
	// Name begins the name of every namespace, cgroup and device, so that two clusters can live
	// side by side.
	Name string `json:"name"`
	// Nodes is the number of nodes.
	Nodes int `json:"nodes"`
	// Family is the IP families in use.
	Family Family `json:"family"`
	// HostLink joins the machine's own network namespace to the API server.
	HostLink bool `json:"hostLink"`
}

// An interface name has 15 bytes, and "-api" is the longest ending.
var validName = regexp.MustCompile(`^[a-z][a-z0-9-]{0,10}$`)

// Check refuses a plan that cannot be carried out.
func (p Plan) Check() error {
	if !validName.MatchString(p.Name) {
		return fmt.Errorf("cluster name %q: use at most 11 lower-case letters, digits and dashes, a letter first", p.Name)
	}
	if p.Nodes < 1 || p.Nodes > MaxNodes {
		return fmt.Errorf("%d nodes: choose a number from 1 to %d", p.Nodes, MaxNodes)
	}
	if p.Family != IPv4 && p.Family != Dual {
		return fmt.Errorf("ip family %q: choose %s or %s", p.Family, IPv4, Dual)
	}
	return nil
}

// Node is one node's place in the network.
type Node struct {
	Name string
	// Addresses has one address for each family, IPv4 first, with the length of the nodes' subnet.
	Addresses []netip.Prefix
	// Pods has the subnet of the node's pods for each family, in the same order.
	Pods []netip.Prefix
}

// AllNodes lists the nodes in order.
func (p Plan) AllNodes() []Node {
	nodes := make([]Node, p.Nodes)
	for i := range nodes {
		number := i + 1
		nodes[i] = Node{
			Name: "node" + strconv.Itoa(number),
			Addresses: p.families(fmt.Sprintf("198.18.0.%d/24", 10+number),
				fmt.Sprintf("%s::%x/64", ula(0), 0x10+number)),
			Pods: p.families(fmt.Sprintf("198.18.%d.0/24", 64+number),
				fmt.Sprintf("%s::/64", ula(0x100+number))),
		}
	}
	return nodes
}

// Machines lists the names of all machines, the fabric not among them.
func (p Plan) Machines() []string {
	names := []string{ControlPlane}
	for _, node := range p.AllNodes() {
		names = append(names, node.Name)
	}
	return append(names, Laptop)
}

// Netns is the name of a machine's network namespace under /run/netns.
func (p Plan) Netns(machine string) string { return p.Name + "-" + machine }

// Cgroup is the name of the cgroup that holds everything on a node.
func (p Plan) Cgroup(node string) string { return p.Name + "-" + node }

// HostDevice is the end of the host link in the machine's own network namespace.
func (p Plan) HostDevice() string { return p.Name + "-api" }

// ControlPlaneAddresses returns the addresses of the control plane on the nodes' subnet.
func (p Plan) ControlPlaneAddresses() []netip.Prefix {
	return p.families("198.18.0.1/24", ula(0)+"::1/64")
}

// APIAddress returns the address of the API server for all.
func (p Plan) APIAddress() netip.Addr { return p.ControlPlaneAddresses()[0].Addr() }

// Server is the URL of the API server.
func (p Plan) Server() string {
	return "https://" + netip.AddrPortFrom(p.APIAddress(), APIPort).String()
}

// Link is a point-to-point connection between the control plane and a machine that may reach it and
// nothing behind it.
type Link struct {
	Near, Far []netip.Prefix // the control plane's end, and the other
}

// LaptopLink joins the laptop to the control plane.
func (p Plan) LaptopLink() Link {
	return Link{
		Near: p.families("198.18.1.1/30", ula(1)+"::1/64"),
		Far:  p.families("198.18.1.2/30", ula(1)+"::2/64"),
	}
}

// RootLink joins the machine's own network namespace to the control plane.
func (p Plan) RootLink() Link {
	return Link{
		Near: p.families("198.18.1.5/30", ula(2)+"::1/64"),
		Far:  p.families("198.18.1.6/30", ula(2)+"::2/64"),
	}
}

// PodNetworks covers the pods of all nodes, one prefix for each family.
func (p Plan) PodNetworks() []netip.Prefix {
	return p.families("198.18.64.0/18", ula(0x100)+"::/56")
}

// ServiceNetworks has the service range for each family.
func (p Plan) ServiceNetworks() []netip.Prefix {
	return p.families("198.19.0.0/20", ula(0xffff)+"::/112")
}

// APIService is the address of the service "kubernetes".
func (p Plan) APIService() netip.Addr { return p.ServiceNetworks()[0].Addr().Next() }

// DNSService has the address of the cluster's DNS for each family.
func (p Plan) DNSService() []netip.Addr {
	addresses := []netip.Addr{netip.MustParseAddr("198.19.0.10")}
	if p.Family == Dual {
		addresses = append(addresses, netip.MustParseAddr(ula(0xffff)+"::a"))
	}
	return addresses
}

// families keeps the prefixes of the families in use.
func (p Plan) families(v4, v6 string) []netip.Prefix {
	prefixes := []netip.Prefix{netip.MustParsePrefix(v4)}
	if p.Family == Dual {
		prefixes = append(prefixes, netip.MustParsePrefix(v6))
	}
	return prefixes
}

// ula is a subnet of the cluster's unique local prefix, without the interface part.
func ula(subnet int) string { return fmt.Sprintf("fd5d:57e9:c10c:%x", subnet) }

// Strings joins the textual forms of addresses or prefixes with commas, as Kubernetes' flags want
// them.
func Strings[T fmt.Stringer](values []T) string {
	texts := make([]string, len(values))
	for i, value := range values {
		texts[i] = value.String()
	}
	return strings.Join(texts, ",")
}

// Addrs drops the lengths of prefixes.
func Addrs(prefixes []netip.Prefix) []netip.Addr {
	addresses := make([]netip.Addr, len(prefixes))
	for i, prefix := range prefixes {
		addresses[i] = prefix.Addr()
	}
	return addresses
}
