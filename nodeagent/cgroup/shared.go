// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"io"
	"sync"
)

// Shared is a set of programs and maps that is loaded while somebody uses it: most pods of a node
// have the same, and a node without any has none.
type Shared[Objects io.Closer] struct {
	proc string
	load func() (Objects, []Program, error)

	mu     sync.Mutex
	loaded *loaded[Objects] // nil while there is no Use
}

// loaded is what all Uses have in common. Shared.mu guards it.
type loaded[Objects io.Closer] struct {
	objects Objects
	tree    *Tree
	links   *Links
	uses    int
}

// NewShared returns a Shared of what load returns. proc is where all processes of the node are seen.
func NewShared[Objects io.Closer](proc string, load func() (Objects, []Program, error)) *Shared[Objects] {
	return &Shared[Objects]{proc: proc, load: load}
}

// Use loads the programs unless they are. Nothing is attached yet.
func (s *Shared[Objects]) Use() (*Use[Objects], error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.loaded == nil {
		tree, err := Open(s.proc)
		if err != nil {
			return nil, err
		}
		objects, programs, err := s.load()
		if err != nil {
			return nil, errors.Join(err, tree.Close())
		}
		s.loaded = &loaded[Objects]{objects: objects, tree: tree, links: NewLinks(programs...)}
	}
	s.loaded.uses++
	return &Use[Objects]{Objects: s.loaded.objects, shared: s}, nil
}

// Use is one user's share. Its methods must not be called concurrently.
type Use[Objects io.Closer] struct {
	Objects Objects
	shared  *Shared[Objects]
	groups  []ID // where the programs are attached for this use
	closed  bool
}

// AttachPod attaches the programs to the control group of the pod with the UID, of which some
// processes are given. It attaches them to as many groups as it can.
func (u *Use[Objects]) AttachPod(uid string, pids []string) error {
	s := u.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	groups, err := s.loaded.tree.OfPod(uid, pids)
	if err != nil {
		return fmt.Errorf("find the pod's control group: %w", err)
	}
	for _, g := range groups {
		err = errors.Join(err, u.attach(g))
	}
	return err
}

// AttachOwn attaches the programs to the control group of this process.
func (u *Use[Objects]) AttachOwn() error {
	s := u.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	g, err := s.loaded.tree.Own()
	if err != nil {
		return fmt.Errorf("find the node agent's control group: %w", err)
	}
	return u.attach(g)
}

// attach attaches the programs to a group and closes it. Shared.mu must be held.
func (u *Use[Objects]) attach(g *Group) error {
	err := u.shared.loaded.links.Attach(g)
	if err == nil {
		u.groups = append(u.groups, g.ID)
	}
	return errors.Join(err, g.Close())
}

// Close detaches what this use has attached. With the last one, the programs are unloaded.
func (u *Use[Objects]) Close() error {
	s := u.shared
	s.mu.Lock()
	defer s.mu.Unlock()
	if u.closed {
		return nil
	}
	u.closed = true
	var errs []error
	for _, id := range u.groups {
		errs = append(errs, s.loaded.links.Detach(id))
	}
	if s.loaded.uses--; s.loaded.uses == 0 {
		errs = append(errs, s.loaded.objects.Close(), s.loaded.tree.Close())
		s.loaded = nil
	}
	return errors.Join(errs...)
}
