// SPDX-License-Identifier: Apache-2.0

package steer

import (
	"errors"
	"fmt"
	"os"
	"slices"

	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/nodeagent/tc"
)

// Attach attaches this program to the namespace. If another agent's program is there, all of its
// state is replaced at once, so fill the maps first. It returns ErrSuperseded if that agent is
// younger.
//
// It may be called repeatedly, to attach to new devices and to repair what others have broken. If
// there is nothing to do, it costs three system calls for each hook.
func (p *Program) Attach(ns Namespace) error {
	hooks, err := p.hooks(ns)
	if err != nil {
		return fmt.Errorf("see where to attach in network namespace %d: %w", ns.Inode(), err)
	}
	if p.complete(ns, hooks) {
		return nil
	}
	if p.kind != SkLookup && len(p.held) == 0 {
		if err := ns.Do(redirected); err != nil {
			return fmt.Errorf("attach to network namespace %d: %w", ns.Inode(), err)
		}
	}
	if err := p.node.mount(); err != nil {
		return err
	}
	return inDirectory(p.node.dir(), true, func(pins []pin) error {
		pins = slices.DeleteFunc(pins, func(o pin) bool { return o.inode != ns.Inode() })
		if epoch := p.node.Epoch(); slices.ContainsFunc(pins, func(o pin) bool { return o.epoch > epoch }) {
			return ErrSuperseded
		}
		var errs []error
		for _, h := range hooks {
			// A device may disappear at any time. The next call will not list it.
			if err := p.attachAt(ns, h, pins); !errors.Is(err, unix.ENODEV) {
				errs = append(errs, err)
			}
		}
		if err := errors.Join(errs...); err != nil {
			return err
		}
		return p.tidy(ns, hooks, pins)
	})
}

// hooks returns the hooks to which this program belongs.
func (p *Program) hooks(ns Namespace) (hooks []hook, err error) {
	if p.kind == SkLookup {
		return []hook{{kind: SkLookup}}, nil
	}
	err = ns.Do(func() error {
		// lo is included: a mesh's proxy in the pod dials the app there.
		devices, err := tc.Devices()
		for _, d := range devices {
			hooks = append(hooks, hook{p.kind, d.Index})
		}
		return err
	})
	return hooks, err
}

// complete reports whether everything is attached as Attach would leave it.
func (p *Program) complete(ns Namespace, hooks []hook) bool {
	for _, at := range hooks {
		own := newPin(p.node.dir(), ns.Inode(), p.node.Epoch(), at, false)
		h, ok := p.held[at.device]
		if !ok || h.inode != own.inode || h.epoch != own.epoch || !h.leadsTo(p.id) || !h.exists() {
			return false
		}
	}
	return len(p.held) == len(hooks)
}

func (p *Program) attachAt(ns Namespace, at hook, pins []pin) error {
	own := newPin(p.node.dir(), ns.Inode(), p.node.Epoch(), at, false)
	for _, found := range pins {
		if found.hook != at {
			continue
		}
		if taken, err := p.takeOver(ns, found, own); taken || err != nil {
			return err
		}
	}
	if h, ok := p.held[at.device]; ok && h.inode == own.inode && h.leadsTo(p.id) {
		p.node.log.Warn("somebody has removed a pin, pinned again", "netns", own.inode)
		own = newPin(p.node.dir(), own.inode, own.epoch, at, h.made)
		return p.keep(h.attachment, own)
	}
	if at.kind == ClsAct {
		return p.filter(ns, own)
	}
	return p.link(ns, own)
}

// takeOver exchanges the program of the pinned attachment found. If its hook no longer exists, or
// the pin is not what its name says, takeOver removes the pin instead.
func (p *Program) takeOver(ns Namespace, found, own pin) (bool, error) {
	if found.kind == ClsAct {
		// Adding a filter replaces whatever filter is there.
		return true, p.takeOverFilter(ns, found)
	}
	h, err := found.open(visitor(ns))
	if errors.Is(err, errForeign) {
		p.node.log.Warn("removed a pin that steers nothing", "error", err)
		return false, os.Remove(found.path)
	}
	if err != nil {
		return false, err
	}
	gone := h.gone()
	if !gone {
		err = h.(linkAttachment).Update(p.objs.Program)
	}
	switch {
	// the namespace of the link is gone, and ours has got its inode number
	case gone || errors.Is(err, unix.ENOLINK):
		return false, errors.Join(h.Close(), os.Remove(found.path))
	case err != nil:
		return false, errors.Join(fmt.Errorf("replace the program of network namespace %d: %w",
			own.inode, err), h.Close())
	}
	if found != own {
		if err := os.Rename(found.path, own.path); err != nil {
			return false, errors.Join(fmt.Errorf("take over pin: %w", err), h.Close())
		}
	}
	p.keepOpen(h, own)
	return true, nil
}

// link attaches to a hook that has no agent's program.
func (p *Program) link(ns Namespace, own pin) error {
	var l link.Link
	var err error
	if own.kind == TCX {
		err = ns.Do(func() (err error) {
			l, err = tc.Link(own.device, p.objs.Program)
			return err
		})
	} else {
		err = ns.Control(func(fd int) (err error) {
			l, err = link.AttachNetNs(fd, p.objs.Program)
			return err
		})
	}
	if err != nil {
		return fmt.Errorf("attach to network namespace %d: %w", own.inode, err)
	}
	if err := p.keep(linkAttachment{l}, own); err != nil {
		return errors.Join(err, l.Close())
	}
	return nil
}

// filter adds a filter, or exchanges the program of the one that is there. If the agent is killed
// before it has pinned the filter, the next agent finds it by its name.
func (p *Program) filter(ns Namespace, own pin) error {
	program, err := p.objs.Clone()
	if err != nil {
		return fmt.Errorf("duplicate the steering program: %w", err)
	}
	err = ns.Do(func() error {
		made, err := ourFilter.Attach(own.device, program)
		own = newPin(p.node.dir(), own.inode, own.epoch, own.hook, made || own.made)
		return err
	})
	if err != nil {
		return errors.Join(fmt.Errorf("attach to network namespace %d: %w", own.inode, err), program.Close())
	}
	h := &filterAttachment{program: program, id: p.id, device: own.device, made: own.made, visit: visitor(ns)}
	if err := p.keep(h, own); err != nil {
		return errors.Join(err, h.detach(), h.Close())
	}
	return nil
}

func (p *Program) takeOverFilter(ns Namespace, found pin) error {
	own := newPin(p.node.dir(), found.inode, p.node.Epoch(), found.hook, found.made)
	if found == own { // to be mended
		if err := os.Remove(found.path); err != nil {
			return fmt.Errorf("renew pin: %w", err)
		}
	}
	if err := p.filter(ns, own); err != nil {
		return err
	}
	if found == p.held[own.device].pin {
		return nil
	}
	if err := os.Remove(found.path); err != nil {
		return fmt.Errorf("take over pin: %w", err)
	}
	return nil
}

// keep pins an attachment and keeps it open.
func (p *Program) keep(h attachment, own pin) error {
	if err := h.pin(own.path); err != nil {
		return fmt.Errorf("pin what steers network namespace %d: %w", own.inode, err)
	}
	p.keepOpen(h, own)
	return nil
}

func (p *Program) keepOpen(h attachment, own pin) {
	if before, ok := p.held[own.device]; ok && before.attachment != h {
		_ = before.Close()
	}
	p.held[own.device] = held{own, h}
}

// tidy removes everything else of agents in the namespace: attachments of another datapath, and
// those of devices that are gone.
func (p *Program) tidy(ns Namespace, hooks []hook, pins []pin) error {
	for device, h := range p.held {
		if !slices.Contains(hooks, h.hook) || h.inode != ns.Inode() {
			_ = h.Close()
			delete(p.held, device)
		}
	}
	var errs []error
	for _, o := range pins {
		if h, ok := p.held[o.device]; ok && h.pin == o || !o.exists() {
			continue
		}
		errs = append(errs, o.unloadIf(visitor(ns), always))
	}
	return errors.Join(errs...)
}

// Detach leaves all new connections of the pod to the app. It does nothing if a younger agent has
// taken over.
func (p *Program) Detach() error {
	if len(p.held) == 0 {
		return nil
	}
	err := inDirectory(p.node.dir(), false, func(pins []pin) error {
		var errs []error
		for _, h := range p.held {
			if slices.Contains(pins, h.pin) {
				errs = append(errs, h.detach(), os.Remove(h.path))
			}
		}
		return errors.Join(errs...)
	})
	for device, h := range p.held {
		if h.leadsTo(p.id) { // without a pin
			err = errors.Join(err, h.detach())
		}
		if err == nil {
			err = h.Close()
			delete(p.held, device)
		}
	}
	return err
}
