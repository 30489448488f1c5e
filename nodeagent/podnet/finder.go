// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"sidestep.dev/sidestep/internal/netns"
	"sidestep.dev/sidestep/nodeagent/procs"
)

// ErrNotFound means that no process of the pod is in a namespace that has one of the pod's
// addresses.
var ErrNotFound = errors.New("no process of the pod was found on this node")

// scanInterval is the shortest pause between two scans of /proc, however many pods are looked for.
const scanInterval = 200 * time.Millisecond

// Finder finds the network namespaces of pods by reading /proc, which works with any container
// runtime. It must see all processes of the node (hostPID).
type Finder struct {
	root string
	proc procs.FS
	open func(path string) (*Namespace, error)

	mu      sync.Mutex
	scanned time.Time
	pods    map[string][]process // oldest first
}

type process struct {
	pid     string
	started uint64 // clock ticks since boot
}

// NewFinder returns a Finder that reads root: /proc, or wherever the node's /proc is mounted.
func NewFinder(root string) *Finder {
	return &Finder{root: root, proc: procs.At(root), open: Open}
}

// Find opens the network namespace of the pod: the one of its oldest process whose namespace has
// one of the pod's addresses. The addresses are checked because a process may have entered another
// namespace.
func (f *Finder) Find(uid string, ips []netip.Addr) (*Namespace, error) {
	f.mu.Lock()
	defer f.mu.Unlock()
	if ns, err := f.pick(uid, ips); err == nil {
		return ns, nil
	}
	if err := f.scan(); err != nil {
		return nil, err
	}
	return f.pick(uid, ips)
}

// Alive reports whether any process of the pod is still in the namespace.
func (f *Finder) Alive(uid string, id netns.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inhabited(uid, id) {
		return true
	}
	// If /proc cannot be read, nothing is known about the pod, and a working pod must not be given
	// up.
	return f.scan() != nil || f.inhabited(uid, id)
}

// Processes returns the PIDs of the pod's processes in the namespace that the last scan found and
// that still run.
func (f *Finder) Processes(uid string, id netns.ID) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var pids []string
	for _, p := range f.pods[procs.NormalUID(uid)] {
		if at, err := f.namespaceOf(p.pid); err == nil && at == id && f.belongs(p.pid, uid) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func (f *Finder) inhabited(uid string, id netns.ID) bool {
	return slices.ContainsFunc(f.pods[procs.NormalUID(uid)], func(p process) bool {
		at, err := f.namespaceOf(p.pid)
		return err == nil && at == id && f.belongs(p.pid, uid)
	})
}

func (f *Finder) pick(uid string, ips []netip.Addr) (*Namespace, error) {
	var refused []error
	tried := map[netns.ID]bool{}
	for _, p := range f.pods[procs.NormalUID(uid)] {
		id, err := f.namespaceOf(p.pid)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				refused = append(refused, err)
			}
			continue
		}
		if tried[id] || !f.belongs(p.pid, uid) {
			continue
		}
		tried[id] = true
		ns, err := f.enterable(p.pid, id, ips)
		if err != nil {
			refused = append(refused, err)
			continue
		}
		return ns, nil
	}
	return nil, errors.Join(append([]error{ErrNotFound}, refused...)...)
}

func (f *Finder) enterable(pid string, id netns.ID, ips []netip.Addr) (*Namespace, error) {
	ns, err := f.open(filepath.Join(f.root, pid, "ns/net"))
	if err != nil {
		return nil, err
	}
	if ns.ID() != id {
		return nil, errors.Join(fmt.Errorf("process %s has left its network namespace", pid), ns.Close())
	}
	holds, err := ns.Holds(ips)
	if err == nil && !holds {
		err = fmt.Errorf("the network namespace of process %s has none of the pod's addresses %v", pid, ips)
	}
	if err != nil {
		return nil, errors.Join(err, ns.Close())
	}
	return ns, nil
}

// scan reads which processes belong to which pods, unless it has just done so.
func (f *Finder) scan() error {
	if time.Since(f.scanned) < scanInterval {
		return nil
	}
	pids, err := f.proc.PIDs()
	if err != nil {
		return err
	}
	pods := map[string][]process{}
	for _, pid := range pids {
		groups, err := f.proc.Cgroups(pid)
		if err != nil {
			continue // it has ended
		}
		for _, uid := range groups.Pods() {
			stat, err := f.proc.Stat(pid)
			if err != nil {
				break // it has ended meanwhile
			}
			pods[uid] = append(pods[uid], process{pid: pid, started: stat.Started})
		}
	}
	for _, ps := range pods {
		slices.SortFunc(ps, func(a, b process) int { return cmp.Compare(a.started, b.started) })
	}
	f.pods, f.scanned = pods, time.Now()
	return nil
}

// belongs reports whether the process still belongs to the pod. The kernel may have given the PID
// to a new process.
func (f *Finder) belongs(pid, uid string) bool {
	groups, err := f.proc.Cgroups(pid)
	return err == nil && groups.InPod(uid)
}

func (f *Finder) namespaceOf(pid string) (netns.ID, error) {
	info, err := fs.Stat(f.proc, pid+"/ns/net")
	if err != nil {
		if errors.Is(err, fs.ErrPermission) {
			err = fmt.Errorf("%w (the node agent needs CAP_SYS_PTRACE)", err)
		}
		return netns.ID{}, fmt.Errorf("identify the network namespace of process %s: %w", pid, err)
	}
	return netns.IDOf(info)
}
