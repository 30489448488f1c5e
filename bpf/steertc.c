//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// steer_tc does what steer does, at the ingress of each of a pod's devices, for kernels that
// cannot run steer or where it is not wanted. It sees every packet, so it first finds those that
// have no connection yet; the kernel delivers what it has assigned to a listener as if the socket
// lookup had found that.
//
// It never drops, and it never ends the chain: other programs on the device see all packets.
#include "packet.h"
#include "steer.h"
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#define NEXT TC_ACT_UNSPEC // the same number as TCX_NEXT

// Returns the slot of the listener that a connection between these addresses is for, or -1 if it is
// the app's alone.
static __always_inline int slot_of(struct flow_key *key)
{
	// From the pod to itself. The agent dials the app this way, so this is also what keeps it
	// from meeting itself.
	if (same_ip(key->remote, key->local))
		return -1;
	if (is_mapped(key->local))
		return is_loopback4(key->local[3]) ? -1 : LISTENER_IP4;
	return is_loopback6(key->local) ? -1 : LISTENER_IP6;
}

// Returns the state of the socket that the kernel would find.
static __always_inline __u32 state_of(struct __sk_buff *skb, struct flow_key *key, int slot)
{
	struct bpf_sock_tuple tuple = {};
	struct bpf_sock *sk;
	__u32 state, size;

	if (slot == LISTENER_IP4) {
		tuple.ipv4.saddr = key->remote[3];
		tuple.ipv4.daddr = key->local[3];
		tuple.ipv4.sport = bpf_htons(key->remote_port);
		tuple.ipv4.dport = bpf_htons(key->local_port);
		size = sizeof(tuple.ipv4);
	} else {
		__builtin_memcpy(tuple.ipv6.saddr, key->remote, sizeof(key->remote));
		__builtin_memcpy(tuple.ipv6.daddr, key->local, sizeof(key->local));
		tuple.ipv6.sport = bpf_htons(key->remote_port);
		tuple.ipv6.dport = bpf_htons(key->local_port);
		size = sizeof(tuple.ipv6);
	}
	sk = bpf_skc_lookup_tcp(skb, &tuple, size, BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return BPF_TCP_LISTEN; // nobody listens: as good as somebody, for us
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

SEC("tc")
int steer_tc(struct __sk_buff *skb)
{
	struct target_key to = { .protocol = IPPROTO_TCP };
	struct segment s = {};
	enum outcome became;
	__u32 state;
	int slot;

	// A bridge's port and the like also see what is not for the pod; a device of its own will
	// see what is in a VLAN.
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return NEXT;
	if (!read_segment(skb, &s))
		return NEXT;
	slot = slot_of(&s.key);
	if (slot < 0)
		return NEXT;
	// All that can make a connection: a SYN, or the ACK to a SYN cookie, with data or even a
	// FIN.
	if (s.flags & TCP_RST || !(s.flags & TCP_SYN) == !(s.flags & TCP_ACK))
		return NEXT;
	__builtin_memcpy(to.ip, s.key.local, sizeof(to.ip));
	to.port = s.key.local_port;
	if (!bpf_map_lookup_elem(&targets, &to))
		return NEXT; // not intercepted
	state = state_of(skb, &s.key, slot);
	// A socket in TIME-WAIT gives way to a SYN of the same addresses, but only if the kernel
	// finds it first: since Linux 6.10 (ff46e3b44219) a SYN that was assigned to a listener
	// past it would be dropped. So this connection is the app's.
	if (state == BPF_TCP_TIME_WAIT && s.flags & TCP_SYN)
		count(TIME_WAIT);
	// Packets of a connection must find its socket, be it only a request that waits for its
	// last ACK.
	if (state != BPF_TCP_LISTEN)
		return NEXT;
	became = hand_over(skb, slot);
	if (s.flags & TCP_SYN)
		count(became);
	return NEXT;
}
