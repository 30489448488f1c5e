// SPDX-License-Identifier: GPL-2.0
//
// Addresses and constants of IP, for programs of all kinds.
//
// Maps keep an IPv4 address as an IPv4-mapped IPv6 address (RFC 4291 §2.5.5.2), in network byte
// order, so that one map holds both families.
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

// Not in the UAPI headers in a form that could be included beside linux/bpf.h.
#define AF_INET 2
#define AF_INET6 10
#define SOCK_STREAM 1
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

static __always_inline void map_ip4(__be32 ip[4], __be32 ip4)
{
	ip[0] = ip[1] = 0;
	ip[2] = bpf_htonl(0xffff);
	ip[3] = ip4;
}

// Reports whether the address is an IPv4-mapped one.
static __always_inline int is_mapped(const __be32 ip[4])
{
	return !ip[0] && !ip[1] && ip[2] == bpf_htonl(0xffff);
}

// Reports whether the address is in 127.0.0.0/8.
static __always_inline int is_loopback4(__be32 ip4)
{
	return bpf_ntohl(ip4) >> 24 == 127;
}

// Reports whether the address is ::1.
static __always_inline int is_loopback6(const __be32 ip[4])
{
	return !ip[0] && !ip[1] && !ip[2] && ip[3] == bpf_htonl(1);
}

static __always_inline int same_ip(const __be32 a[4], const __be32 b[4])
{
	return a[0] == b[0] && a[1] == b[1] && a[2] == b[2] && a[3] == b[3];
}
