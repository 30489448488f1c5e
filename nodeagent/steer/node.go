// SPDX-License-Identifier: Apache-2.0

// Package steer attaches the steering program to the network namespaces of pods, and lets go of
// them again.
//
// Every agent process loads a program and maps of its own for each pod; it never uses those of
// another process, whatever their version. There are three ways of steering, see Datapath: at the
// socket lookup of the namespace, or at the ingress of each of its devices, by links (tcx) or by
// filters (clsact). What outlives the process is pinned:
//
//	<bpffs>/sidestep/<node>/<inode of the namespace>-<epoch of the owner>                      a link
//	<bpffs>/sidestep/<node>/<inode>-<epoch>-tcx-<index of the device>                          a link
//	<bpffs>/sidestep/<node>/<inode>-<epoch>-clsact-<index of the device>[-made]                the program of a filter
//
// The epoch is the moment at which the owner started, so the names alone say who may do what. A
// younger agent takes a namespace over by exchanging the program of the link or filter, which
// happens at once for all new connections, and renames the pin; the older one sees that and keeps
// its hands off. The directory is changed under a lock, and exists only while something is pinned.
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

// ErrSuperseded says that a younger agent has taken over this node, or at least this pod.
var ErrSuperseded = errors.New("a newer node agent has taken over")

// Node is one agent's share in the steering of a node.
type Node struct {
	bpffs, name string
	log         *slog.Logger

	want Datapath
	proc string

	mu        sync.Mutex
	epoch     uint64
	heartbeat *ebpf.Map // nil until opened
	datapath  Datapath  // empty until opened
	why       string    // it is this one, or none
	locked    error     // why the limit on locked memory could not be lifted

	beaten atomic.Uint64 // what is in the heartbeat
}

// recent is how old a heartbeat may be that the programs go by for long enough: well below the
// second after which they do not.
const recent = 500 * time.Millisecond

// Option is something that most callers of NewNode need not say.
type Option func(*Node)

// WithDatapath chooses the way of steering. The default is Auto.
func WithDatapath(d Datapath) Option { return func(n *Node) { n.want = d } }

// WithProc names the directory where all processes of the node are seen. The default is /proc.
func WithProc(dir string) Option { return func(n *Node) { n.proc = dir } }

// NewNode describes the node called name, whose pins are below bpffs. Nothing is done before Open,
// or the first Load.
func NewNode(bpffs, name string, log *slog.Logger, options ...Option) *Node {
	n := &Node{bpffs: bpffs, name: name, log: log, want: Auto, proc: "/proc", why: "not tried yet",
		epoch: clock(unix.CLOCK_BOOTTIME)}
	for _, o := range options {
		o(n)
	}
	return n
}

// Datapath is the way of steering that Open has chosen, and why; without one, why there is none.
func (n *Node) Datapath() (chosen Datapath, why string) {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.datapath, n.why
}

// Epoch is when this agent came to be, in nanoseconds since the node's boot: of two agents the
// younger owns the node.
func (n *Node) Epoch() uint64 {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.epoch
}

// Renew makes this the youngest agent, to be called when the one that was younger has died. What is
// attached stays so, and is to be attached again.
func (n *Node) Renew() {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.epoch = clock(unix.CLOCK_BOOTTIME)
}

// Open prepares for steering: it asks the kernel for what is needed and mounts bpffs if nobody has.
// It may be called again after it failed.
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

// mount mounts bpffs if somebody has unmounted it, once for all pods that miss it.
func (n *Node) mount() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return ensureBPFFS(n.bpffs, n.log)
}

// limited adds to an error, if it has to do with the limit on locked memory, what to do.
func (n *Node) limited(err error) error {
	if n.locked == nil || !errors.Is(err, unix.EPERM) {
		return err
	}
	return fmt.Errorf("%w: before Linux 5.11, BPF takes locked memory, of which a container has little: set nodeagent.beforeLinux511=true in the chart, which gives the node agent CAP_SYS_RESOURCE", err)
}

// Beat tells the programs of this agent that it is alive. Without it they pass all connections to
// the app after a second.
func (n *Node) Beat() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat == nil {
		return nil
	}
	return n.sendHeartbeat()
}

// Hush has the programs of this agent pass all connections to the app at once, until the next Beat.
func (n *Node) Hush() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat == nil {
		return nil
	}
	return n.putHeartbeat(0)
}

// Beating says whether the programs of this agent steer connections at this moment, and will for
// the next half second.
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

// Sweep removes what agents before this one have left, except for the namespaces that keep names,
// and the pins of namespaces that are gone.
func (n *Node) Sweep(keep func(inode uint64) bool) error {
	epoch := n.Epoch()
	return n.unload(func(p pin, gone func() bool) bool {
		old := p.epoch < epoch
		// That a namespace is gone takes a search to find out where a filter is concerned; those of
		// this agent are their programs' business.
		return old && !keep(p.inode) || (old || p.kind != ClsAct) && gone()
	})
}

// Unload detaches everything but what a younger agent owns.
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

// Close releases what Open took. Pins stay.
func (n *Node) Close() error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.heartbeat == nil {
		return nil
	}
	return n.heartbeat.Close()
}

func (n *Node) dir() string {
	// bpffs refuses names with dots.
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
