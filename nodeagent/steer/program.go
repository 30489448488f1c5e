package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"sidestep.dev/sidestep/bpf"
)

// Namespace is a network namespace to steer in.
type Namespace interface {
	Inode() uint64
	Control(fn func(fd int) error) error
	Do(fn func() error) error
}

// Program is the steering of one pod. Its methods must not be called concurrently, except for Outcomes.
type Program struct {
	node *Node
	kind Datapath
	objs *bpf.Steer
	id   ebpf.ProgramID
	held map[int]held // by device, those hooks where it was attached
}

// held is a hook of this program. It is held open besides being pinned, so that steering goes on when somebody removes the pin.
type held struct {
	pin
	hold
}

// SetListener names the listener of its address family. The kernel forgets it when it is closed.
func (p *Program) SetListener(l *net.TCPListener) error {
	slot := bpf.Listener6
	if l.Addr().(*net.TCPAddr).AddrPort().Addr().Is4() {
		slot = bpf.Listener4
	}
	raw, err := l.SyscallConn()
	if err != nil {
		return err
	}
	var put error
	err = raw.Control(func(fd uintptr) { put = p.objs.Listeners.Put(uint32(slot), uint64(fd)) })
	if err = errors.Join(err, put); err != nil {
		return fmt.Errorf("register the listener %s: %w", l.Addr(), err)
	}
	return nil
}

// Add steers new connections to addr, one of the pod's own addresses, to the listener of its family, if there is one.
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

// Outcomes counts what became of connections to targets, by bpf.Outcome.
func (p *Program) Outcomes() (map[bpf.Outcome]uint64, error) {
	counts := map[bpf.Outcome]uint64{}
	for _, o := range []bpf.Outcome{bpf.Steered, bpf.AgentSilent, bpf.NoListener, bpf.NotAssigned, bpf.TimeWait} {
		var perCPU []uint64
		if err := p.objs.Outcomes.Lookup(uint32(o), &perCPU); err != nil {
			return nil, fmt.Errorf("read outcomes: %w", err)
		}
		for _, n := range perCPU {
			counts[o] += n
		}
	}
	return counts, nil
}

// Close releases the program. If it is still attached and pinned, it goes on with what its maps say.
func (p *Program) Close() error {
	var errs []error
	for _, h := range p.held {
		errs = append(errs, h.Close())
	}
	return errors.Join(append(errs, p.objs.Close())...)
}
