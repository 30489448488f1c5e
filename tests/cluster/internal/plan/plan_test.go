// SPDX-License-Identifier: Apache-2.0

package plan

import (
	"net/netip"
	"testing"

	"github.com/stretchr/testify/assert"
)

func largest(family Family) Plan {
	return Plan{Name: "elevenchars", Nodes: MaxNodes, Family: family, HostLink: true}
}

func TestCheckRefusesWhatCannotBe(t *testing.T) {
	good := Plan{Name: "sidestep", Nodes: 2, Family: Dual}
	for name, test := range map[string]struct {
		change func(*Plan)
		says   string
	}{
		"the usual plan is good":            {func(*Plan) {}, ""},
		"a name must fit a device":          {func(p *Plan) { p.Name = "twelve-chars" }, "at most 11"},
		"a name begins with a letter":       {func(p *Plan) { p.Name = "1st" }, "a letter first"},
		"a name is no path":                 {func(p *Plan) { p.Name = "../etc" }, "lower-case letters"},
		"a cluster has a node":              {func(p *Plan) { p.Nodes = 0 }, "choose a number"},
		"a cluster has not too many nodes":  {func(p *Plan) { p.Nodes = MaxNodes + 1 }, "choose a number"},
		"a family is one that is supported": {func(p *Plan) { p.Family = "ipv6" }, "choose ipv4 or dual"},
	} {
		t.Run(name, func(t *testing.T) {
			p := good
			test.change(&p)
			if test.says == "" {
				assert.NoError(t, p.Check())
			} else {
				assert.ErrorContains(t, p.Check(), test.says)
			}
		})
	}
}

func TestNetworksDoNotOverlap(t *testing.T) {
	p := largest(Dual)
	var networks []netip.Prefix
	for _, prefixes := range [][]netip.Prefix{
		p.ControlPlaneAddresses(), p.LaptopLink().Near, p.RootLink().Near, p.PodNetworks(), p.ServiceNetworks(),
	} {
		networks = append(networks, prefixes...)
	}
	for i, one := range networks {
		for _, other := range networks[i+1:] {
			assert.False(t, one.Overlaps(other), "%s and %s", one, other)
		}
	}
}

func TestAllAddressesAreOfTestNetworks(t *testing.T) {
	p := largest(Dual)
	allowed := []netip.Prefix{netip.MustParsePrefix("198.18.0.0/15"), netip.MustParsePrefix("fc00::/7")}
	check := func(address netip.Addr) {
		assert.True(t, allowed[0].Contains(address) || allowed[1].Contains(address), address)
	}
	for _, node := range p.AllNodes() {
		for _, prefix := range append(node.Addresses, node.Pods...) {
			check(prefix.Addr())
		}
	}
	for _, address := range append(p.DNSService(), p.APIAddress(), p.APIService()) {
		check(address)
	}
}

func TestEveryNodeHasItsOwnPlace(t *testing.T) {
	p := largest(Dual)
	seen := map[string]string{}
	for _, prefix := range p.ControlPlaneAddresses() {
		seen[prefix.String()] = ControlPlane
	}
	for _, node := range p.AllNodes() {
		assert.Len(t, node.Addresses, 2)
		assert.Len(t, node.Pods, 2)
		for i, prefix := range append(node.Addresses, node.Pods...) {
			assert.NotContains(t, seen, prefix.String(), node.Name)
			seen[prefix.String()] = node.Name
			if i >= len(node.Addresses) {
				pods := p.PodNetworks()[i-len(node.Addresses)]
				assert.True(t, pods.Overlaps(prefix) && pods.Bits() <= prefix.Bits(), "%s is in %s",
					prefix, pods)
				assert.Equal(t, prefix.Masked(), prefix)
			} else {
				subnet := p.ControlPlaneAddresses()[i]
				assert.Equal(t, subnet.Masked(), prefix.Masked(),
					"%s is a neighbour of the control plane", prefix)
			}
		}
	}
}

func TestDNSIsInTheServiceNetworks(t *testing.T) {
	p := largest(Dual)
	for i, address := range p.DNSService() {
		assert.True(t, p.ServiceNetworks()[i].Contains(address), address)
		assert.NotEqual(t, p.APIService(), address)
	}
}

func TestOneFamilyMeansOneAddress(t *testing.T) {
	p := Plan{Name: "sidestep", Nodes: 2, Family: IPv4}
	assert.Equal(t, "198.18.0.1/24", Strings(p.ControlPlaneAddresses()))
	assert.Equal(t, "198.19.0.10", Strings(p.DNSService()))
	assert.Equal(t, "https://198.18.0.1:6443", p.Server())
	for _, node := range p.AllNodes() {
		assert.Len(t, node.Addresses, 1)
		assert.Len(t, node.Pods, 1)
	}
}

func TestNamesFitTheKernel(t *testing.T) {
	p := largest(IPv4)
	assert.NoError(t, p.Check())
	assert.LessOrEqual(t, len(p.HostDevice()), 15)
	assert.Equal(t, []string{"control-plane", "node1", "node2", "laptop"},
		Plan{Nodes: 2, Family: IPv4}.Machines())
	assert.Equal(t, "elevenchars-node1", p.Netns("node1"))
}

func TestStringsJoinsWithCommas(t *testing.T) {
	addresses := Addrs(largest(Dual).ControlPlaneAddresses())
	assert.Equal(t, "198.18.0.1,fd5d:57e9:c10c::1", Strings(addresses))
	assert.Empty(t, Strings([]netip.Addr{}))
}
