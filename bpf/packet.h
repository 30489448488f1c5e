// SPDX-License-Identifier: GPL-2.0
//
// Reading of TCP segments at the ingress of a device.
#pragma once
#include "ip.h"
#include <linux/if_ether.h>

#define MAX_EXTENSIONS 8 // IPv6 extension headers before TCP; a packet with more is not read
#define FRAGMENT 0x3fff  // more fragments follow, or this is not the first one

#define TCP_FIN 0x01
#define TCP_SYN 0x02
#define TCP_RST 0x04
#define TCP_ACK 0x10

enum { HOP_BY_HOP = 0, ROUTING = 43, DESTINATION = 60 }; // IPv6 extension headers

struct ip4_header {
	__u8 version_ihl, tos;
	__be16 length, id, fragment;
	__u8 ttl, protocol;
	__be16 check;
	__be32 source, dest;
};
_Static_assert(sizeof(struct ip4_header) == 20, "as on the wire, without options");

struct ip6_header {
	__be32 flow;
	__be16 length;
	__u8 next, hops;
	__be32 source[4], dest[4];
};
_Static_assert(sizeof(struct ip6_header) == 40, "as on the wire");

// The start of a hop-by-hop, routing or destination options header.
struct extension {
	__u8 next, length;   // length in 8 bytes, not counting the first
	__u8 type, segments; // of a routing header
};

struct tcp_header {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 offset, flags;
	__be16 window, check, urgent;
};
_Static_assert(sizeof(struct tcp_header) == 20, "as on the wire, without options");

// A connection as its client's packets have it.
struct flow_key {
	__u32 remote[4]; // network byte order
	__u32 local[4];
	__u16 remote_port; // host byte order
	__u16 local_port;
};
_Static_assert(sizeof(struct flow_key) == 36, "no padding: user space makes keys too");

// What matters of one packet.
struct segment {
	struct flow_key key;
	__u32 seq, end; // sequence numbers of the payload's begin and end
	__u32 ack;
	__u32 link;     // where the IP header begins
	__u32 payload;  // where the payload begins, from the IP header on
	__u32 length;   // of the packet, from the IP header on
	__u8 flags;
};

// Loads bytes, also from where the packet is not linear.
static __always_inline long load(struct __sk_buff *skb, __u32 offset, void *to, __u32 n)
{
	return bpf_skb_load_bytes(skb, offset, to, n);
}

// Loads the start of the IP header, and finds out where it begins: some devices (netkit, tun) have
// no link layer.
static __always_inline long load_ip(struct __sk_buff *skb, void *ip, __u32 n, __u32 *link)
{
	__u32 first[2], *start = ip;

	*link = ETH_HLEN;
	if (bpf_skb_load_bytes_relative(skb, 0, ip, n, BPF_HDR_START_NET))
		return load(skb, *link, ip, n); // it is not linear
	if (load(skb, 0, first, sizeof(first)))
		return -1;
	if (first[0] == start[0] && first[1] == start[1])
		*link = 0;
	return 0;
}

// Returns where the TCP header begins, from the IP header on, or 0 if there is none to be read.
static __always_inline __u32 read_ip4(struct __sk_buff *skb, struct segment *s)
{
	struct ip4_header ip;

	if (load_ip(skb, &ip, sizeof(ip), &s->link))
		return 0;
	// Only the first fragment has ports, and TCP does not fragment.
	if (ip.protocol != IPPROTO_TCP || ip.fragment & bpf_htons(FRAGMENT))
		return 0;
	map_ip4(s->key.remote, ip.source);
	map_ip4(s->key.local, ip.dest);
	// A packet that is too long for the length field has 0 there (BIG TCP).
	s->length = ip.length ? bpf_ntohs(ip.length) : skb->len - s->link;
	return (ip.version_ihl & 0xf) * 4;
}

// Does the same for IPv6, and skips extension headers.
static __always_inline __u32 read_ip6(struct __sk_buff *skb, struct segment *s)
{
	struct ip6_header ip;
	struct extension e;
	__u32 at = sizeof(ip);
	__u8 next;

	if (load_ip(skb, &ip, sizeof(ip), &s->link))
		return 0;
	// On the wire these are nobody's addresses. In a map they would be those of IPv4.
	if (is_mapped(ip.source) || is_mapped(ip.dest))
		return 0;
	__builtin_memcpy(s->key.remote, ip.source, sizeof(ip.source));
	__builtin_memcpy(s->key.local, ip.dest, sizeof(ip.dest));
	s->length = ip.length ? sizeof(ip) + bpf_ntohs(ip.length) : skb->len - s->link;
	next = ip.next;
	for (int i = 0; i <= MAX_EXTENSIONS; i++) {
		if (next == IPPROTO_TCP)
			return at;
		// Anything else, fragments among it, is for the kernel alone to read.
		if (next != HOP_BY_HOP && next != ROUTING && next != DESTINATION)
			return 0;
		if (load(skb, s->link + at, &e, sizeof(e)))
			return 0;
		// The packet has not reached its last destination.
		if (next == ROUTING && e.segments)
			return 0;
		next = e.next;
		at += (e.length + 1) * 8;
	}
	return 0;
}

// Reports whether the packet is a whole TCP segment, and reads its headers.
static __always_inline int read_segment(struct __sk_buff *skb, struct segment *s)
{
	struct tcp_header tcp;
	__u32 at;

	if (skb->protocol == bpf_htons(ETH_P_IP))
		at = read_ip4(skb, s);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		at = read_ip6(skb, s);
	else
		return 0;
	if (!at || load(skb, s->link + at, &tcp, sizeof(tcp)))
		return 0;
	s->key.remote_port = bpf_ntohs(tcp.source);
	s->key.local_port = bpf_ntohs(tcp.dest);
	s->flags = tcp.flags;
	s->ack = bpf_ntohl(tcp.ack);
	s->seq = bpf_ntohl(tcp.seq);
	s->payload = at + (tcp.offset >> 4) * 4;
	if (s->payload > s->length)
		return 0;
	s->end = s->seq + s->length - s->payload;
	return 1;
}
