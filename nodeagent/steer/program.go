// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"syscall"

	"github.com/cilium/ebpf"

	"sidestep.dev/sidestep/bpf"
)

// Namespace is a network namespace to steer in.
type Namespace interface {
	Inode() uint64
	Control(fn func(fd int) error) error
	Do(fn func() error) error
}

// Program steers one pod. Its methods must not be called concurrently, except for Outcomes and
// those about datagrams.
type Program struct {
	node *Node
	kind Datapath
	objs *bpf.Steer
	id   ebpf.ProgramID
	held map[int]held // the hooks where it was attached, by device
}

// held is an attachment of this program. It is open as well as pinned, so that steering goes on if
// someone removes the pin.
type held struct {
	pin
	attachment
}

// SetListener sets the listener of l's address family. The kernel removes it from the map when it
// is closed.
func (p *Program) SetListener(l *net.TCPListener) error {
	slot := bpf.Listener6
	if l.Addr().(*net.TCPAddr).AddrPort().Addr().Is4() {
		slot = bpf.Listener4
	}
	if err := p.register(l, uint32(slot)); err != nil {
		return fmt.Errorf("register the listener %s: %w", l.Addr(), err)
	}
	return nil
}

// SetDatagrams sets the UDP socket of c's address family, which receives datagrams. The kernel
// removes it from the map when it is closed.
func (p *Program) SetDatagrams(c *net.UDPConn) error {
	slot := bpf.Datagrams6
	if c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Is4() {
		slot = bpf.Datagrams4
	}
	if err := p.register(c, uint32(slot)); err != nil {
		return fmt.Errorf("register the socket %s: %w", c.LocalAddr(), err)
	}
	return nil
}

func (p *Program) register(socket syscall.Conn, slot uint32) error {
	raw, err := socket.SyscallConn()
	if err != nil {
		return err
	}
	var put error
	err = raw.Control(func(fd uintptr) { put = p.objs.Listeners.Put(slot, uint64(fd)) })
	return errors.Join(err, put)
}

// Datagrams returns nil if this program can steer datagrams, else why not. At the ingress of a
// device, a datagram that arrived in fragments cannot be told from others.
func (p *Program) Datagrams() error {
	if p.kind != SkLookup {
		return fmt.Errorf("UDP is steered by sk_lookup alone, and this node steers by %s: it takes Linux 5.9, and --datapath=auto or sk_lookup", p.kind)
	}
	return nil
}

// AddDatagrams steers datagrams to addr, one of the pod's own addresses, to the UDP socket of its
// family, if there is one.
func (p *Program) AddDatagrams(addr netip.AddrPort) error {
	key, value := bpf.DatagramTarget(addr)
	if err := p.objs.Targets.Put(key, value); err != nil {
		return fmt.Errorf("add UDP target %s: %w", addr, err)
	}
	return nil
}

// RemoveDatagrams leaves datagrams to addr to the app again.
func (p *Program) RemoveDatagrams(addr netip.AddrPort) error {
	key, _ := bpf.DatagramTarget(addr)
	if err := p.objs.Targets.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove UDP target %s: %w", addr, err)
	}
	return nil
}

// Add steers new connections to addr, one of the pod's own addresses, to the listener of its
// family, if there is one.
func (p *Program) Add(addr netip.AddrPort) error {
	key, value := bpf.Target(addr)
	if err := p.objs.Targets.Put(key, value); err != nil {
		return fmt.Errorf("add target %s: %w", addr, err)
	}
	return nil
}

// Remove leaves new connections to addr to the app again.
func (p *Program) Remove(addr netip.AddrPort) error {
	key, _ := bpf.Target(addr)
	if err := p.objs.Targets.Delete(key); err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
		return fmt.Errorf("remove target %s: %w", addr, err)
	}
	return nil
}

// Outcomes returns the number of connections to targets, by outcome.
func (p *Program) Outcomes() (map[bpf.Outcome]uint64, error) {
	counts := map[bpf.Outcome]uint64{}
	for _, o := range []bpf.Outcome{bpf.Steered, bpf.AgentSilent, bpf.NoListener, bpf.NotAssigned,
		bpf.TimeWait} {
		n, err := p.outcome(o)
		if err != nil {
			return nil, err
		}
		counts[o] = n
	}
	return counts, nil
}

// DatagramOutcomes returns the number of datagrams to targets, by outcome.
func (p *Program) DatagramOutcomes() (map[bpf.Outcome]uint64, error) {
	counts := map[bpf.Outcome]uint64{}
	for _, o := range []bpf.Outcome{bpf.DatagramSteered, bpf.DatagramAgentSilent,
		bpf.DatagramNoListener, bpf.DatagramNotAssigned, bpf.DatagramProbed} {
		n, err := p.outcome(o)
		if err != nil {
			return nil, err
		}
		counts[o] = n
	}
	return counts, nil
}

// DatagramsProbed returns the number of datagrams that were steered from a loopback address.
func (p *Program) DatagramsProbed() (uint64, error) { return p.outcome(bpf.DatagramProbed) }

func (p *Program) outcome(o bpf.Outcome) (uint64, error) {
	var perCPU []uint64
	if err := p.objs.Outcomes.Lookup(uint32(o), &perCPU); err != nil {
		return 0, fmt.Errorf("read outcomes: %w", err)
	}
	var n uint64
	for _, one := range perCPU {
		n += one
	}
	return n, nil
}

// Close releases the program. If it is still attached and pinned, it keeps running with what is in
// its maps.
func (p *Program) Close() error {
	var errs []error
	for _, h := range p.held {
		errs = append(errs, h.Close())
	}
	return errors.Join(append(errs, p.objs.Close())...)
}
