// SPDX-License-Identifier: Apache-2.0

// Package steer attaches the steering program to the network namespaces of pods, and detaches it.
//
// Every agent process loads its own program and maps for each pod. It never uses those of another
// process, whatever its version. Datapath lists the three ways of steering: at the socket lookup of
// the namespace, or at the ingress of each of its devices, with links (tcx) or with filters (clsact).
// What outlives the process is pinned:
//
//	<bpffs>/sidestep/<node>/<inode of the namespace>-<epoch of the owner>                      a link
//	<bpffs>/sidestep/<node>/<inode>-<epoch>-tcx-<index of the device>                          a link
//	<bpffs>/sidestep/<node>/<inode>-<epoch>-clsact-<index of the device>[-made]                the program of a filter
//
// The epoch is when the owner started, so the name alone tells who may change a pin. A younger agent
// takes a namespace over by exchanging the program of the link or filter, which takes effect at once
// for all new connections, and renames the pin. The older agent sees the new name and leaves it
// alone. The directory is changed under a lock, and exists only while something is pinned.
//
// <bpffs>/sidestep may be all that is mounted of the node's bpffs: see HasOwnMount.
package steer

import (
	"encoding/binary"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/bpf"
)

// ErrSuperseded means that a younger agent has taken over this node, or at least this pod.
var ErrSuperseded = errors.New("a newer node agent has taken over")

// Node is one agent's part in the steering of a node.
type Node struct {
	bpffs, name string
	log         *slog.Logger

	want Datapath
	proc string

	mu        sync.Mutex
	epoch     uint64
	heartbeat *ebpf.Map // nil until opened
	datapath  Datapath  // empty until opened
	why       string    // why datapath was chosen, or why none works
	locked    error     // why RLIMIT_MEMLOCK could not be raised

	beaten atomic.Uint64 // the time in heartbeat
}

// recent is the greatest age of a heartbeat with which Beating is true: well below the second after
// which the programs bypass the agent.
const recent = 500 * time.Millisecond

// Option is a setting that most callers of NewNode leave out.
type Option func(*Node)

// WithDatapath sets the way of steering. The default is Auto.
func WithDatapath(d Datapath) Option { return func(n *Node) { n.want = d } }

// WithProc sets the directory that shows all processes of the node. The default is /proc.
func WithProc(dir string) Option { return func(n *Node) { n.proc = dir } }

// NewNode describes the node called name, whose pins are below bpffs. It does nothing before Open,
// or the first Load.
func NewNode(bpffs, name string, log *slog.Logger, options ...Option) *Node {
	n := &Node{bpffs: bpffs, name: name, log: log, want: Auto, proc: "/proc", why: "not tried yet",
		epoch: clock(unix.CLOCK_BOOTTIME)}
	for _, o := range options {
		o(n)
	}
	return n
}

// Datapath returns the way of steering that Open has chosen, and why. If there is none, why is the
// reason.
func (n *Node) Datapath() (chosen Datapath, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.datapath, n.why
}

// Epoch returns when this agent started, in nanoseconds since the node's boot. Of two agents the
// younger owns the node.
func (n *Node) Epoch() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.epoch
}

// Renew makes this agent the youngest. It is called when the younger agent has died. Attachments
// stay, and the caller attaches them again.
func (n *Node) Renew() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.epoch = clock(unix.CLOCK_BOOTTIME)
}

// Open prepares for steering: it probes the kernel for what is needed, and mounts bpffs if it is
// not mounted. It may be called again after it has failed.
func (n *Node) Open() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat != nil {
		return nil
	}
	err := n.limited(n.open())
	if err != nil {
		n.why = strings.ReplaceAll(err.Error(), "\n", "; ")
	}
	return err
}

func (n *Node) open() error {
	if n.locked = rlimit.RemoveMemlock(); n.locked != nil {
		// Not fatal: a few pods may fit into the limit.
		n.log.Warn("the limit on locked memory counts against maps before Linux 5.11, and cannot be lifted without CAP_SYS_RESOURCE; set nodeagent.beforeLinux511 in the chart", "error", n.locked)
	}
	chosen, why, err := choose(n.want)
	if err != nil {
		return err
	}
	if err := ensureBPFFS(n.bpffs, n.log); err != nil {
		return err
	}
	heartbeat, err := bpf.NewHeartbeat()
	if err != nil {
		return err
	}
	n.heartbeat, n.datapath, n.why = heartbeat, chosen, why
	return n.sendHeartbeat()
}

// mount mounts bpffs again if someone has unmounted it, once for all pods that miss it.
func (n *Node) mount() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return ensureBPFFS(n.bpffs, n.log)
}

// limited adds advice to an error that the limit on locked memory causes.
func (n *Node) limited(err error) error {
	if n.locked == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	return fmt.Errorf("%w: before Linux 5.11, BPF takes locked memory, of which a container has little: set nodeagent.beforeLinux511=true in the chart, which gives the node agent CAP_SYS_RESOURCE", err)
}

// Beat writes the heartbeat, which tells the programs that this agent is alive. A second after the
// last one, they pass all connections to the app.
func (n *Node) Beat() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat == nil {
		return nil
	}
	return n.sendHeartbeat()
}

// Hush makes the programs of this agent pass all connections to the app at once, until the next
// Beat.
func (n *Node) Hush() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat == nil {
		return nil
	}
	return n.putHeartbeat(0)
}

// Beating reports whether the programs of this agent steer connections now, and will for the next
// half second.
func (n *Node) Beating() bool {
	beaten := n.beaten.Load()
	return beaten != 0 && clock(unix.CLOCK_MONOTONIC)-beaten < uint64(recent)
}

func (n *Node) sendHeartbeat() error { return n.putHeartbeat(clock(unix.CLOCK_MONOTONIC)) }

func (n *Node) putHeartbeat(at uint64) error {
	if err := n.heartbeat.Put(uint32(0), binary.NativeEndian.AppendUint64(nil, at)); err != nil {
		return fmt.Errorf("write the heartbeat: %w", err)
	}
	n.beaten.Store(at)
	return nil
}

// Load loads a steering program with empty maps.
func (n *Node) Load() (*Program, error) {
	if err := n.Open(); err != nil {
		return nil, err
	}
	load := bpf.LoadSteerTC
	if n.datapath == SkLookup {
		load = bpf.LoadSteer
	}
	objs, err := load(n.heartbeat)
	if err != nil {
		return nil, n.limited(err)
	}
	id, err := idOf(objs.Program)
	if err != nil {
		return nil, errors.Join(err, objs.Close())
	}
	return &Program{node: n, kind: n.datapath, objs: objs, id: id, held: map[int]held{}}, nil
}

// Sweep removes what earlier agents have left, except in the namespaces for which keep is true, and
// the pins of namespaces that are gone.
func (n *Node) Sweep(keep func(inode uint64) bool) error {
	epoch := n.Epoch()
	return n.unload(func(p pin, gone func() bool) bool {
		old := p.epoch < epoch
		// For a filter it takes a search to find out that the namespace is gone. The programs of
		// this agent look after their own filters.
		return old && !keep(p.inode) || (old || p.kind != ClsAct) && gone()
	})
}

// Unload detaches everything that no younger agent owns.
func (n *Node) Unload() error {
	epoch := n.Epoch()
	return n.unload(func(p pin, _ func() bool) bool { return p.epoch <= epoch })
}

func (n *Node) unload(which func(p pin, gone func() bool) bool) error {
	return inDirectory(n.dir(), false, func(pins []pin) error {
		var errs []error
		for _, p := range pins {
			errs = append(errs, p.unloadIf(searcher(n.proc, p.inode), which))
		}
		return errors.Join(errs...)
	})
}

// Close releases what Open has opened. Pins stay.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat == nil {
		return nil
	}
	return n.heartbeat.Close()
}

func (n *Node) dir() string {
	// bpffs rejects names with dots.
	return filepath.Join(n.bpffs, root, strings.ReplaceAll(n.name, ".", "_"))
}

// clock reads a clock that every kernel has.
func clock(id int32) uint64 {
	var ts unix.Timespec
	if err := unix.ClockGettime(id, &ts); err != nil {
		panic(fmt.Sprintf("read clock %d: %v", id, err))
	}
	return uint64(ts.Nano())
}
