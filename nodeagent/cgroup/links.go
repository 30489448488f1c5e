// SPDX-License-Identifier: Apache-2.0

package cgroup

import (
	"errors"
	"fmt"
	"slices"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// ErrDisplaced says that a program of somebody else would not run any longer beside one of ours.
var ErrDisplaced = errors.New(
	"a program that is attached further up would not run here any longer (it was attached with BPF_F_ALLOW_OVERRIDE)")

// Program is one that can be attached to groups.
type Program struct {
	*ebpf.Program
	Attach ebpf.AttachType
}

// Links keeps programs at groups for as long as somebody wants them there: several pods have the
// same group where the node's unified hierarchy does not follow its pods. The links are not pinned,
// and so gone with the process. It is not safe for concurrent use.
type Links struct {
	programs []Program
	at       map[ID]*attached
}

type attached struct {
	links []link.Link
	refs  int
}

// NewLinks attaches nothing yet.
func NewLinks(programs ...Program) *Links {
	return &Links{programs: programs, at: map[ID]*attached{}}
}

// Attach attaches the programs to a group, unless they are there already. It is undone by as many
// calls of Detach. Programs of others go on running before and after ours; where that cannot be, it
// fails with ErrDisplaced.
func (l *Links) Attach(g *Group) error {
	a := l.at[g.ID]
	if a == nil {
		a = &attached{}
		for _, p := range l.programs {
			made, err := attach(p, g)
			if err != nil {
				return errors.Join(fmt.Errorf("attach %s to control group %s: %w", p.Attach, g.Path,
					err), a.close())
			}
			a.links = append(a.links, made)
		}
		l.at[g.ID] = a
	}
	a.refs++
	return nil
}

// Detach undoes one Attach.
func (l *Links) Detach(id ID) error {
	a := l.at[id]
	if a.refs--; a.refs > 0 {
		return nil
	}
	delete(l.at, id)
	return a.close()
}

func (a *attached) close() error {
	var errs []error
	for _, l := range a.links {
		errs = append(errs, l.Close())
	}
	return errors.Join(errs...)
}

// attach makes a link, which leaves the programs of others at the same group alone, and those of
// groups further up but for one kind: one that was attached to be overridden is, by whatever is
// attached below. That it runs is seen before it is attached and not after.
func attach(p Program, g *Group) (link.Link, error) {
	before, err := effective(p, g)
	if err != nil {
		return nil, err
	}
	l, err := link.AttachRawLink(link.RawLinkOptions{Target: int(g.Fd()), Program: p.Program, Attach: p.Attach})
	if err != nil {
		return nil, err
	}
	after, err := effective(p, g)
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	missing := slices.DeleteFunc(before, func(id ebpf.ProgramID) bool { return slices.Contains(after, id) })
	if len(missing) == 0 {
		return l, nil
	}
	if err := l.Close(); err != nil {
		return nil, err
	}
	again, err := effective(p, g)
	if err != nil {
		return nil, err
	}
	if slices.ContainsFunc(missing, func(id ebpf.ProgramID) bool { return slices.Contains(again, id) }) {
		return nil, ErrDisplaced
	}
	return attach(p, g) // its owner has taken it away at this very time
}

// queryEffective is BPF_F_QUERY_EFFECTIVE.
const queryEffective = 1 << 0

// effective lists the programs that run for a group, wherever they are attached.
func effective(p Program, g *Group) ([]ebpf.ProgramID, error) {
	found, err := link.QueryPrograms(link.QueryOptions{Target: int(g.Fd()), Attach: p.Attach,
		QueryFlags: queryEffective})
	if err != nil {
		return nil, fmt.Errorf("list the programs that run for the group: %w", err)
	}
	ids := make([]ebpf.ProgramID, 0, len(found.Programs))
	for _, one := range found.Programs {
		ids = append(ids, one.ID)
	}
	return ids, nil
}
