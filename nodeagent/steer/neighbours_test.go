// SPDX-License-Identifier: Apache-2.0

package steer_test

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"
	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"sidestep.dev/sidestep/internal/testnet"
	"sidestep.dev/sidestep/nodeagent/steer"
)

// counter is a foreign program at the ingress of a device. It counts packets and returns a verdict.
type counter struct {
	*ebpf.Program
	packets *ebpf.Map
}

func newCounter(t *testing.T, verdict int32) *counter {
	t.Helper()
	m, err := ebpf.NewMap(&ebpf.MapSpec{Type: ebpf.Array, KeySize: 4, ValueSize: 8, MaxEntries: 1})
	require.NoError(t, err)
	t.Cleanup(func() { _ = m.Close() })
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{Type: ebpf.SchedCLS, License: "GPL",
		Instructions: asm.Instructions{
			asm.StoreImm(asm.R10, -4, 0, asm.Word),
			asm.LoadMapPtr(asm.R1, m.FD()),
			asm.Mov.Reg(asm.R2, asm.R10),
			asm.Add.Imm(asm.R2, -4),
			asm.FnMapLookupElem.Call(),
			asm.JEq.Imm(asm.R0, 0, "out"),
			asm.Mov.Imm(asm.R1, 1),
			asm.StoreXAdd(asm.R0, asm.R1, asm.DWord),
			asm.Mov.Imm(asm.R0, verdict).WithSymbol("out"),
			asm.Return(),
		}})
	require.NoError(t, err)
	t.Cleanup(func() { _ = p.Close() })
	return &counter{p, m}
}

func (c *counter) count(t *testing.T) uint64 {
	t.Helper()
	value, err := c.packets.LookupBytes(uint32(0))
	require.NoError(t, err)
	return binary.NativeEndian.Uint64(value)
}

// addFilter adds a foreign filter at the ingress of the pod's device.
func addFilter(t *testing.T, pod *testnet.Pod, priority uint16, p *ebpf.Program) {
	t.Helper()
	require.NoError(t, pod.Do(func() error {
		return netlink.FilterAdd(&netlink.BpfFilter{
			FilterAttrs: netlink.FilterAttrs{
				LinkIndex: eth0(t).Attrs().Index, Parent: netlink.HANDLE_MIN_INGRESS, Handle: 1,
				Protocol: unix.ETH_P_ALL, Priority: priority,
			},
			Fd: p.FD(), Name: "theirs", DirectAction: true,
		})
	}))
}

func addQdisc(t *testing.T, pod *testnet.Pod, kind string, parent uint32) {
	t.Helper()
	require.NoError(t, pod.Do(func() error {
		return netlink.QdiscAdd(&netlink.GenericQdisc{QdiscType: kind, QdiscAttrs: netlink.QdiscAttrs{
			LinkIndex: eth0(t).Attrs().Index, Handle: netlink.MakeHandle(0xffff, 0), Parent: parent,
		}})
	}))
}

func eth0(t *testing.T) netlink.Link {
	t.Helper()
	l, err := netlink.LinkByName("eth0")
	require.NoError(t, err)
	return l
}

const (
	next = -1 // to the next program
	ok   = 0  // ends the chain
)

func TestOtherProgramsOnTheDeviceGoOnWorking(t *testing.T) {
	for _, tc := range []struct {
		name string
		add  func(t *testing.T, pod *testnet.Pod, theirs *counter)
	}{
		{"their filter with a later priority, in their qdisc",
			func(t *testing.T, pod *testnet.Pod, theirs *counter) {
				addQdisc(t, pod, "clsact", netlink.HANDLE_CLSACT)
				addFilter(t, pod, 7, theirs.Program)
			}},
		{"their filter in the older qdisc ingress", func(t *testing.T, pod *testnet.Pod, theirs *counter) {
			addQdisc(t, pod, "ingress", netlink.HANDLE_INGRESS)
			addFilter(t, pod, 7, theirs.Program)
		}},
		{"their tcx program", func(t *testing.T, pod *testnet.Pod, theirs *counter) {
			if !testnet.KernelAtLeast(t, 6, 6) {
				addQdisc(t, pod, "clsact", netlink.HANDLE_CLSACT)
				addFilter(t, pod, 0xc000, theirs.Program)
				return
			}
			var l link.Link
			require.NoError(t, pod.Do(func() (err error) {
				l, err = link.AttachTCX(link.TCXOptions{Interface: eth0(t).Attrs().Index,
					Program: theirs.Program, Attach: ebpf.AttachTCXIngress})
				return err
			}))
			t.Cleanup(func() { _ = l.Close() })
		}},
	} {
		for verdict, name := range map[int32]string{next: " that passes on", ok: " that ends the chain"} {
			t.Run(tc.name+name, func(t *testing.T) {
				everyDatapath(t, func(t *testing.T, w *world) {
					if w.datapath == steer.ClsAct && verdict == ok && tc.name == "their tcx program" &&
						testnet.KernelAtLeast(t, 6, 6) {
						// filters come after what ends the chain of tcx, and nothing can be done
						// about that
						return
					}
					theirs := newCounter(t, verdict)
					tc.add(t, w.pod, theirs)
					before, places := w.attached(t), qdiscs(t, w.pod)
					require.Len(t, before, 1)
					a := w.start(t, "agent")
					seen := theirs.count(t)
					assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP4))
					assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP6))
					assert.GreaterOrEqual(t, theirs.count(t)-seen, uint64(8), "they see every packet")
					require.NoError(t, a.program.Detach())
					assert.Equal(t, before, w.attached(t), "theirs is left as it was")
					assert.Equal(t, places, qdiscs(t, w.pod))
				})
			})
		}
	}
}

func TestFirstPriorityIsTaken(t *testing.T) {
	w := newWorld(t, steer.ClsAct)
	theirs := newCounter(t, next)
	addQdisc(t, w.pod, "clsact", netlink.HANDLE_CLSACT)
	addFilter(t, w.pod, 1, theirs.Program)
	before := w.attached(t)
	a := w.start(t, "agent")
	assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP4))
	younger := w.start(t, "younger")
	assert.Equal(t, "younger", ask(t, w.node.Namespace, w.pod.IP4))
	assert.Len(t, w.attached(t), 1+w.hooks(t))
	require.NoError(t, a.program.Detach())
	require.NoError(t, younger.program.Detach())
	assert.Equal(t, before, w.attached(t))
}

func TestQdiscStaysForThoseWhoHaveComeSince(t *testing.T) {
	w := newWorld(t, steer.ClsAct)
	a := w.start(t, "agent")
	theirs := newCounter(t, next)
	addFilter(t, w.pod, 7, theirs.Program)
	require.NoError(t, a.program.Detach())
	assert.Len(t, w.attached(t), 1, "theirs")
	assert.Len(t, qdiscs(t, w.pod), 1)
	seen := theirs.count(t)
	assert.Equal(t, "app", ask(t, w.node.Namespace, w.pod.IP4))
	assert.Greater(t, theirs.count(t), seen)
}

func TestFilterThatSomebodyRemovedIsMended(t *testing.T) {
	for _, tc := range []struct {
		name   string
		remove func(w *world) error
	}{
		{"the filter", func(w *world) error {
			return w.pod.Do(func() error {
				filters, err := netlink.FilterList(eth0(t), netlink.HANDLE_MIN_INGRESS)
				if err != nil {
					return err
				}
				return netlink.FilterDel(filters[0])
			})
		}},
		{"the qdisc", func(w *world) error {
			return w.pod.Do(func() error {
				qdiscs, err := netlink.QdiscList(eth0(t))
				for _, q := range qdiscs {
					if q.Type() == "clsact" {
						return netlink.QdiscDel(q)
					}
				}
				return err
			})
		}},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, steer.ClsAct)
			a := w.start(t, "agent")
			require.NoError(t, tc.remove(w))
			require.Equal(t, "app", ask(t, w.node.Namespace, w.pod.IP4))
			require.NoError(t, a.program.Attach(w.pod))
			assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP4))
			assert.Len(t, w.pins(t), w.hooks(t))
			require.NoError(t, a.program.Detach())
			w.nothingLeft(t)
		})
	}
}

// addDevice adds a device with an address to the pod.
func addDevice(t *testing.T, w *world, name string) (netip.Addr, func()) {
	t.Helper()
	require.NoError(t, w.node.Do(func() error {
		return w.pod.Control(func(fd int) error {
			veth := &netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name,
				PeerNamespace: netlink.NsFd(fd)}
			if err := netlink.LinkAdd(veth); err != nil {
				return err
			}
			return addressed(name, "198.19.77.1/24")
		})
	}))
	require.NoError(t, w.pod.Do(func() error { return addressed(name, "198.19.77.2/24") }))
	return netip.MustParseAddr("198.19.77.2"), func() {
		require.NoError(t, w.pod.Do(func() error {
			l, err := netlink.LinkByName(name)
			if err != nil {
				return err
			}
			return netlink.LinkDel(l)
		}))
	}
}

func addressed(name, address string) error {
	l, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	a, err := netlink.ParseAddr(address)
	if err != nil {
		return err
	}
	if err := netlink.AddrAdd(l, a); err != nil {
		return err
	}
	return netlink.LinkSetUp(l)
}

func TestDevicesThatComeAndGo(t *testing.T) {
	everyDatapath(t, func(t *testing.T, w *world) {
		a := w.start(t, "agent")
		before := w.attached(t)
		ip, remove := addDevice(t, w, "net1")
		require.NoError(t, a.program.Add(netip.AddrPortFrom(ip, port)))
		require.NoError(t, a.program.Attach(w.pod))
		assert.Equal(t, "agent", ask(t, w.node.Namespace, ip))
		assert.Len(t, w.pins(t), w.hooks(t))
		remove()
		require.NoError(t, a.program.Attach(w.pod))
		assert.Len(t, w.pins(t), w.hooks(t))
		assert.Equal(t, before, w.attached(t))
		assert.Equal(t, "agent", ask(t, w.node.Namespace, w.pod.IP4))
		_, remove = addDevice(t, w, "net1")
		require.NoError(t, a.program.Attach(w.pod))
		remove()
		require.NoError(t, a.program.Detach(), "a device has gone unnoticed")
		w.nothingLeft(t)
	})
}

func TestYoungerAgentWithAnotherDatapathTakesOver(t *testing.T) {
	for _, from := range testnet.Datapaths(t) {
		for _, to := range testnet.Datapaths(t) {
			if from == to {
				continue
			}
			t.Run(from+" to "+to, func(t *testing.T) {
				w := newWorld(t, steer.Datapath(from))
				old := w.start(t, "old")
				require.Equal(t, "old", ask(t, w.node.Namespace, w.pod.IP4))
				w.datapath = steer.Datapath(to)
				young := w.start(t, "young")
				assert.Equal(t, "young", ask(t, w.node.Namespace, w.pod.IP4))
				assert.Equal(t, "young", ask(t, w.node.Namespace, w.pod.IP6))
				assert.Len(t, w.attached(t), w.hooks(t), "nothing of the older one is left")
				assert.Len(t, w.pins(t), w.hooks(t))
				assert.ErrorIs(t, old.program.Attach(w.pod), steer.ErrSuperseded)
				require.NoError(t, old.program.Detach())
				require.NoError(t, old.node.Unload())
				assert.Equal(t, "young", ask(t, w.node.Namespace, w.pod.IP4))
				require.NoError(t, young.program.Detach())
				w.nothingLeft(t)
			})
		}
	}
}
