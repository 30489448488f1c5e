//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// steer_tc does what steer does, at the ingress of each of a pod's devices, for kernels that cannot run steer or where it is not
// wanted. It sees every packet, so it first finds those that have no connection yet; the kernel delivers what it has assigned to a
// listener as if the socket lookup had found that.
//
// It never drops, and it never ends the chain: other programs on the device see all packets.
#include "steer.h"
#include <linux/if_ether.h>
#include <linux/if_packet.h>
#include <linux/pkt_cls.h>

#define NEXT TC_ACT_UNSPEC       // the same number as TCX_NEXT
#define MAX_EXTENSIONS 8         // IPv6 headers before the one of TCP; what has more is passed

// The start of an IPv4 header; its options do not matter here.
struct ip4_start {
	__u8 version_ihl, tos;
	__be16 length, id, fragment;
	__u8 ttl, protocol;
	__be16 checksum;
	__be32 from, to;
};
_Static_assert(sizeof(struct ip4_start) == 20, "as on the wire");

struct ip6_start {
	__be32 flow;
	__be16 length;
	__u8 next, hops;
	__be32 from[4], to[4];
};
_Static_assert(sizeof(struct ip6_start) == 40, "as on the wire");

// The start of a hop-by-hop, routing or destination options header.
struct extension {
	__u8 next, length;       // length in 8 bytes, not counting the first
	__u8 type, segments;     // of a routing header
};

// The start of a TCP header, up to the flags.
struct tcp_start {
	__be16 from, to;
	__be32 seq, ack;
	__u8 offset, flags;
} __attribute__((packed));
_Static_assert(sizeof(struct tcp_start) == 14, "as on the wire");

enum { SYN = 0x02, RST = 0x04, ACK = 0x10 };
enum { HOP_BY_HOP = 0, ROUTING = 43, DESTINATION = 60 };

#define FRAGMENT 0x3fff          // more fragments, or not the first one

struct packet {
	struct target_key to;
	struct bpf_sock_tuple tuple;
	__u32 tuple_size;
	__u32 transport;         // where the TCP header begins, from the IP header on
	__u32 slot;
};

// Reads from the IP header on, which is not at a fixed place: a device may have a link header or none.
static __always_inline long load(struct __sk_buff *skb, __u32 offset, void *to, __u32 size)
{
	return bpf_skb_load_bytes_relative(skb, offset, to, size, BPF_HDR_START_NET);
}

// Both say whether the packet is one of TCP that could be steered.
static __always_inline int read_ip4(struct __sk_buff *skb, struct packet *p)
{
	struct ip4_start ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return 0;
	// A fragment tells its ports once all have come: that is not here.
	if (ip.protocol != IPPROTO_TCP || ip.fragment & bpf_htons(FRAGMENT))
		return 0;
	// From the pod to itself. The agent dials the app this way, so this is also what keeps it from meeting itself.
	if (ip.from == ip.to || bpf_ntohl(ip.to) >> 24 == LOOPBACK_NET)
		return 0;
	p->to.ip[2] = bpf_htonl(0xffff);
	p->to.ip[3] = ip.to;
	p->tuple.ipv4.saddr = ip.from;
	p->tuple.ipv4.daddr = ip.to;
	p->tuple_size = sizeof(p->tuple.ipv4);
	p->transport = (ip.version_ihl & 0xf) * 4;
	p->slot = LISTENER_IP4;
	return 1;
}

// Gives the place of the TCP header, or 0.
static __always_inline __u32 skip_extensions(struct __sk_buff *skb, __u8 next)
{
	__u32 at = sizeof(struct ip6_start);
	struct extension e;

	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		if (next == IPPROTO_TCP)
			return at;
		// Anything else, fragments among it, is for the kernel alone to read.
		if (next != HOP_BY_HOP && next != ROUTING && next != DESTINATION)
			return 0;
		if (load(skb, at, &e, sizeof(e)))
			return 0;
		// Its destination is not yet the one it is meant for.
		if (next == ROUTING && e.segments)
			return 0;
		next = e.next;
		at += (e.length + 1) * 8;
	}
	return 0;
}

static __always_inline int read_ip6(struct __sk_buff *skb, struct packet *p)
{
	struct ip6_start ip;

	if (load(skb, 0, &ip, sizeof(ip)))
		return 0;
	if (ip.from[0] == ip.to[0] && ip.from[1] == ip.to[1] && ip.from[2] == ip.to[2] && ip.from[3] == ip.to[3])
		return 0;
	// ::1, and IPv4-mapped addresses, which would look like an IPv4 target: a listener of IPv4 must never meet such a packet.
	if (!ip.to[0] && !ip.to[1] && (ip.to[2] == bpf_htonl(0xffff) || (!ip.to[2] && ip.to[3] == bpf_htonl(1))))
		return 0;
	p->transport = skip_extensions(skb, ip.next);
	if (!p->transport)
		return 0;
	__builtin_memcpy(p->to.ip, ip.to, sizeof(ip.to));
	__builtin_memcpy(p->tuple.ipv6.saddr, ip.from, sizeof(ip.from));
	__builtin_memcpy(p->tuple.ipv6.daddr, ip.to, sizeof(ip.to));
	p->tuple_size = sizeof(p->tuple.ipv6);
	p->slot = LISTENER_IP6;
	return 1;
}

// Gives the state of the socket that the kernel would find.
static __always_inline __u32 state_of(struct __sk_buff *skb, struct packet *p)
{
	struct bpf_sock *sk;
	__u32 state;

	if (p->tuple_size == sizeof(p->tuple.ipv4))
		sk = bpf_skc_lookup_tcp(skb, &p->tuple, sizeof(p->tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	else
		sk = bpf_skc_lookup_tcp(skb, &p->tuple, sizeof(p->tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
	if (!sk)
		return BPF_TCP_LISTEN; // nobody listens: as good as somebody, for us
	state = sk->state;
	bpf_sk_release(sk);
	return state;
}

SEC("tc")
int steer_tc(struct __sk_buff *skb)
{
	struct packet p = {};
	struct tcp_start tcp;
	enum outcome became;
	__u32 state;

	// A bridge's port and the like also see what is not for the pod; a device of its own will see what is in a VLAN.
	if (skb->pkt_type != PACKET_HOST || skb->vlan_present)
		return NEXT;
	if (skb->protocol == bpf_htons(ETH_P_IP)) {
		if (!read_ip4(skb, &p))
			return NEXT;
	} else if (skb->protocol == bpf_htons(ETH_P_IPV6)) {
		if (!read_ip6(skb, &p))
			return NEXT;
	} else {
		return NEXT;
	}
	if (load(skb, p.transport, &tcp, sizeof(tcp)))
		return NEXT;
	// All that can make a connection: a SYN, or the ACK to a SYN cookie, with data or even a FIN.
	if (tcp.flags & RST || !(tcp.flags & SYN) == !(tcp.flags & ACK))
		return NEXT;
	p.to.port = bpf_ntohs(tcp.to);
	p.to.protocol = IPPROTO_TCP;
	if (!bpf_map_lookup_elem(&targets, &p.to))
		return NEXT; // not intercepted
	if (p.slot == LISTENER_IP4) {
		p.tuple.ipv4.sport = tcp.from;
		p.tuple.ipv4.dport = tcp.to;
	} else {
		p.tuple.ipv6.sport = tcp.from;
		p.tuple.ipv6.dport = tcp.to;
	}
	state = state_of(skb, &p);
	// A socket that waits for late packets gives way to a SYN of the same addresses, but only if the kernel finds it first: since Linux
	// 6.10 (ff46e3b44219) a SYN that was assigned to a listener past it would be dropped. So this connection is the app's.
	if (state == BPF_TCP_TIME_WAIT && tcp.flags & SYN)
		count(TIME_WAIT);
	// Packets of a connection must find its socket, be it only a request that waits for its last ACK.
	if (state != BPF_TCP_LISTEN)
		return NEXT;
	became = hand_over(skb, p.slot);
	if (tcp.flags & SYN)
		count(became);
	return NEXT;
}
