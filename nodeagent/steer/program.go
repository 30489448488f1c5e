package steer

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
)

// Namespace is a network namespace to steer in.
type Namespace interface {
	Inode() uint64
	Control(fn func(fd int) error) error
}

// Program is the steering of one pod. Its methods must not be called concurrently, except for Outcomes.
type Program struct {
	node *Node
	objs *bpf.Steer
	id   ebpf.ProgramID
	own  pin       // under which it was attached; empty if it was not
	link link.Link // held, so that steering goes on when somebody removes the pin; nil if it was not attached
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

// Attach makes this program the one of the namespace. If another agent's is there, all of its state is replaced at once: fill
// the maps first. It gives ErrSuperseded if that agent is younger. It may be called again, and as often as one likes, to mend
// what others have broken: while nothing is, it costs three system calls.
func (p *Program) Attach(ns Namespace) error {
	if own := newPin(p.node.dir(), ns.Inode(), p.node.Epoch()); p.own == own && p.inForce() && own.exists() {
		return nil
	}
	if err := ensureBPFFS(p.node.bpffs, p.node.log); err != nil {
		return err
	}
	return inDirectory(p.node.dir(), true, func(pins []pin) error {
		own := newPin(p.node.dir(), ns.Inode(), p.node.Epoch())
		if slices.ContainsFunc(pins, func(o pin) bool { return o.epoch > own.epoch && o.inode == own.inode }) {
			return ErrSuperseded
		}
		for _, found := range pins {
			if found.inode != own.inode {
				continue
			}
			if taken, err := p.takeOver(found, own); taken || err != nil {
				return err
			}
		}
		if p.inForce() && p.own.inode == own.inode {
			p.node.log.Warn("somebody has removed a pin, pinned again", "netns", own.inode)
			return p.hold(p.link, own)
		}
		return p.attach(ns, own)
	})
}

// inForce says whether the held link still steers a namespace to this program.
func (p *Program) inForce() bool {
	if p.link == nil {
		return false
	}
	info, err := p.link.Info()
	return err == nil && info.Program == p.id && info.NetNs() != nil && info.NetNs().NetnsInode != 0
}

// takeOver exchanges the program of a pinned link, if its namespace still exists; else it removes the pin, and so it does with one
// that pins no link.
func (p *Program) takeOver(found, own pin) (bool, error) {
	l, gone, err := found.open()
	if errors.Is(err, errNoLink) {
		p.node.log.Warn("removed a pin that steers nothing", "error", err)
		return false, os.Remove(found.path)
	}
	if err != nil {
		return false, err
	}
	if !gone {
		err = l.Update(p.objs.Steer)
	}
	switch {
	case gone || errors.Is(err, unix.ENOLINK): // the inode number of a namespace that is gone was given to ours
		return false, errors.Join(l.Close(), os.Remove(found.path))
	case err != nil:
		return false, errors.Join(fmt.Errorf("replace the program of network namespace %d: %w", own.inode, err), l.Close())
	}
	if found != own {
		if err := os.Rename(found.path, own.path); err != nil {
			return false, errors.Join(fmt.Errorf("take over pin: %w", err), l.Close())
		}
	}
	p.keep(l, own)
	return true, nil
}

func (p *Program) attach(ns Namespace, own pin) error {
	var l *link.NetNsLink
	err := ns.Control(func(fd int) (err error) {
		l, err = link.AttachNetNs(fd, p.objs.Steer)
		return err
	})
	if err != nil {
		return fmt.Errorf("attach to network namespace %d: %w", own.inode, err)
	}
	if err := p.hold(l, own); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// hold pins a link.
func (p *Program) hold(l link.Link, own pin) error {
	_ = l.Unpin() // from where it is no longer; else it would be taken for pinned
	if err := l.Pin(own.path); err != nil {
		return fmt.Errorf("pin the link: %w", err)
	}
	p.keep(l, own)
	return nil
}

func (p *Program) keep(l link.Link, own pin) {
	if p.link != nil && p.link != l {
		_ = p.link.Close()
	}
	p.link, p.own = l, own
}

// Detach leaves all new connections of the pod to the app, unless a younger agent has taken over, whose business it is now.
func (p *Program) Detach() error {
	if p.link == nil {
		return nil
	}
	err := inDirectory(p.node.dir(), false, func(pins []pin) error {
		if !slices.Contains(pins, p.own) {
			return nil
		}
		return p.own.unloadIf(func(pin, bool) bool { return true })
	})
	if p.inForce() { // without a pin
		err = errors.Join(err, p.link.Detach())
	}
	if err == nil {
		err = p.link.Close()
		p.link, p.own = nil, pin{}
	}
	return err
}

// Outcomes counts what became of connections to targets, by bpf.Outcome.
func (p *Program) Outcomes() (map[bpf.Outcome]uint64, error) {
	counts := map[bpf.Outcome]uint64{}
	for _, o := range []bpf.Outcome{bpf.Steered, bpf.AgentSilent, bpf.NoListener, bpf.NotAssigned} {
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
	var err error
	if p.link != nil {
		err = p.link.Close()
	}
	return errors.Join(err, p.objs.Close())
}
