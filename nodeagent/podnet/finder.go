// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"sidestep.dev/sidestep/internal/netns"
)

// ErrNotFound says that no process of the pod was found in a namespace that has one of the pod's
// addresses.
var ErrNotFound = errors.New("no process of the pod was found on this node")

// scanInterval bounds how often all of /proc is read, however many pods are looked for.
const scanInterval = 200 * time.Millisecond

// podUID finds the pod in the path of a cgroup: /kubepods/burstable/pod<uid>/<container> (cgroupfs
// driver), or /kubepods.slice/.../kubepods-burstable-pod<uid with
// underscores>.slice/<runtime>-<container>.scope (systemd driver).
var podUID = regexp.MustCompile(
	`(?m)pod([0-9a-fA-F]{8}(?:[-_][0-9a-fA-F]{4}){3}[-_][0-9a-fA-F]{12})(?:[./:]|$)`)

// Finder finds the network namespaces of pods by reading /proc, which works with any container
// runtime. The process that reads must see all of the node's processes (hostPID).
type Finder struct {
	root string
	proc fs.FS
	open func(path string) (*Namespace, error)

	mu      sync.Mutex
	scanned time.Time
	pods    map[string][]process // oldest first
}

type process struct {
	pid     string
	started uint64 // clock ticks since boot
}

// NewFinder makes a Finder that reads root, which is /proc or where the node's /proc is mounted.
func NewFinder(root string) *Finder {
	return &Finder{root: root, proc: os.DirFS(root), open: Open}
}

// Find opens the network namespace of the pod: that of the oldest of its processes whose namespace
// has one of the pod's addresses. The addresses are asked for because a process may be visiting
// another namespace.
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

// Alive says whether some process of the pod is still in the namespace.
func (f *Finder) Alive(uid string, id netns.ID) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.inhabited(uid, id) {
		return true
	}
	// When /proc cannot be read, nothing is known about the pod, and a working one must not be
	// given up.
	return f.scan() != nil || f.inhabited(uid, id)
}

// Processes is the numbers of the pod's processes in the namespace, as far as they were there when
// /proc was last read.
func (f *Finder) Processes(uid string, id netns.ID) []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	var pids []string
	for _, p := range f.pods[normal(uid)] {
		if at, err := f.namespaceOf(p.pid); err == nil && at == id && f.belongs(p.pid, uid) {
			pids = append(pids, p.pid)
		}
	}
	return pids
}

func (f *Finder) inhabited(uid string, id netns.ID) bool {
	return slices.ContainsFunc(f.pods[normal(uid)], func(p process) bool {
		at, err := f.namespaceOf(p.pid)
		return err == nil && at == id && f.belongs(p.pid, uid)
	})
}

func (f *Finder) pick(uid string, ips []netip.Addr) (*Namespace, error) {
	var refused []error
	tried := map[netns.ID]bool{}
	for _, p := range f.pods[normal(uid)] {
		id, err := f.namespaceOf(p.pid)
		if err != nil {
			if !errors.Is(err, fs.ErrNotExist) {
				refused = append(refused, err)
			}
			continue
		}
		if tried[id] || !f.belongs(p.pid, uid) { // a new process may have the number of an old one
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

// scan reads which processes belong to which pods, unless that was done a moment ago.
func (f *Finder) scan() error {
	if time.Since(f.scanned) < scanInterval {
		return nil
	}
	entries, err := fs.ReadDir(f.proc, ".")
	if err != nil {
		return fmt.Errorf("list the node's processes: %w", err)
	}
	pods := map[string][]process{}
	for _, e := range entries {
		if _, err := strconv.ParseUint(e.Name(), 10, 32); err != nil {
			continue
		}
		uids := f.podsOf(e.Name())
		if len(uids) == 0 {
			continue
		}
		started, err := f.startOf(e.Name())
		if err != nil {
			continue // it has ended
		}
		for _, uid := range uids {
			pods[uid] = append(pods[uid], process{pid: e.Name(), started: started})
		}
	}
	for _, ps := range pods {
		slices.SortFunc(ps, func(a, b process) int { return cmp.Compare(a.started, b.started) })
	}
	f.pods, f.scanned = pods, time.Now()
	return nil
}

// podsOf is the UIDs of the pods that the process belongs to: several where a pod of the node is
// itself a node of a cluster.
func (f *Finder) podsOf(pid string) []string {
	text, err := fs.ReadFile(f.proc, pid+"/cgroup")
	if err != nil {
		return nil
	}
	var uids []string
	for _, m := range podUID.FindAllSubmatch(text, -1) {
		if uid := normal(string(m[1])); !slices.Contains(uids, uid) {
			uids = append(uids, uid)
		}
	}
	return uids
}

func (f *Finder) belongs(pid, uid string) bool { return slices.Contains(f.podsOf(pid), normal(uid)) }

// startOf is field 22 of /proc/PID/stat (proc_pid_stat(5)). The second, in parentheses, may hold
// anything.
func (f *Finder) startOf(pid string) (uint64, error) {
	text, err := fs.ReadFile(f.proc, pid+"/stat")
	if err != nil {
		return 0, err
	}
	fields := bytes.Fields(text[bytes.LastIndexByte(text, ')')+1:])
	const afterCommand = 22 - 3
	if len(fields) <= afterCommand {
		return 0, fmt.Errorf("/proc/%s/stat has %d fields after the command's name", pid, len(fields))
	}
	return strconv.ParseUint(string(fields[afterCommand]), 10, 64)
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

func normal(uid string) string {
	return strings.ToLower(strings.ReplaceAll(uid, "_", "-"))
}
