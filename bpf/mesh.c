//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// mesh makes the connections of a mesh's proxy to the app known to the steering. A proxy that
// runs in the pod connects like anybody there, from the pod's address to the pod's address or on
// loopback. By addresses, steering cannot tell it from the app's own traffic. So its sockets are
// bound to another address before they connect: the loopback address where they go to the pod's
// address, and one that nobody else uses where they go to the loopback address.
//
// They run in the cgroup of an intercepted pod. The proxy is known by its user.
#include "ip.h"
#include "mesh.h"

#define MAX_MESH_TARGETS 16384 // (address, port) pairs of a node

// Go on connecting.
#define GO_ON 1

// For user space: an enum of which only values are used is not in the BTF.
const enum mesh_address *mesh_address_type __attribute__((unused));

struct mesh_target {
	// Cookie of the pod's network namespace: pods may share a cgroup, and loopback addresses
	// are everywhere.
	__u64 netns;
	__u32 ip[4]; // network byte order
	__u32 port;  // network byte order, as in bpf_sock_addr
	__u32 zero;
};
_Static_assert(sizeof(struct mesh_target) == 32, "no padding: user space makes keys too");

struct mesh_proxy {
	__u64 missed; // how many of its connections could not be made known
	__u32 uid;
	__u32 zero;
};
_Static_assert(sizeof(struct mesh_proxy) == 16, "no padding: user space makes values too");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_MESH_TARGETS);
	__type(key, struct mesh_target);
	__type(value, struct mesh_proxy);
} mesh_targets SEC(".maps");

struct address4 {
	__u16 family;
	__be16 port;
	__be32 ip;
	__u8 zero[8];
};
_Static_assert(sizeof(struct address4) == 16, "a struct sockaddr_in");

struct address6 {
	__u16 family;
	__be16 port;
	__be32 flow;
	__be32 ip[4];
	__u32 scope;
};
_Static_assert(sizeof(struct address6) == 28, "a struct sockaddr_in6");

// Returns the proxy, if it is who connects to this target.
static __always_inline struct mesh_proxy *connects(struct bpf_sock_addr *ctx,
						   struct mesh_target *to)
{
	struct mesh_proxy *proxy;

	to->netns = bpf_get_netns_cookie(ctx);
	proxy = bpf_map_lookup_elem(&mesh_targets, to);
	if (!proxy || proxy->uid != (__u32)bpf_get_current_uid_gid())
		return 0;
	return proxy;
}

SEC("cgroup/connect4")
int mesh4(struct bpf_sock_addr *ctx)
{
	struct address4 from = { .family = AF_INET };
	struct mesh_target to = {};
	struct mesh_proxy *proxy;

	if (ctx->type != SOCK_STREAM)
		return GO_ON;
	map_ip4(to.ip, ctx->user_ip4);
	to.port = ctx->user_port;
	proxy = connects(ctx, &to);
	// A socket that is bound already has an address of its own that tells it from the pod's.
	if (!proxy || !ctx->sk || ctx->sk->src_ip4)
		return GO_ON;
	from.ip = bpf_htonl(is_loopback4(to.ip[3]) ? MESH_DIALS_FROM : LOOPBACK4);
	if (bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from)))
		__sync_fetch_and_add(&proxy->missed, 1);
	return GO_ON;
}

SEC("cgroup/connect6")
int mesh6(struct bpf_sock_addr *ctx)
{
	struct address6 from = { .family = AF_INET6, .ip = { 0, 0, 0, bpf_htonl(1) } };
	struct mesh_target to = {};
	struct mesh_proxy *proxy;
	struct bpf_sock *sk = ctx->sk;
	__u32 s0, s1, s2, s3;

	if (ctx->type != SOCK_STREAM || !sk)
		return GO_ON;
	// Everything is loaded before the first branch on it: clang would otherwise merge loads,
	// and the verifier refuses to dereference a modified pointer to a ctx or a socket.
	to.ip[0] = ctx->user_ip6[0];
	to.ip[1] = ctx->user_ip6[1];
	to.ip[2] = ctx->user_ip6[2];
	to.ip[3] = ctx->user_ip6[3];
	to.port = ctx->user_port;
	s0 = sk->src_ip6[0], s1 = sk->src_ip6[1], s2 = sk->src_ip6[2], s3 = sk->src_ip6[3];
	asm volatile("" : "+r"(s0), "+r"(s1), "+r"(s2), "+r"(s3));
	proxy = connects(ctx, &to);
	if (!proxy || s0 | s1 | s2 | s3)
		return GO_ON;
	// IPv6 has one loopback address only: from there to there, a mesh's proxy is like anybody.
	if ((!to.ip[0] && !to.ip[1] && !to.ip[2]) ||
	    bpf_bind(ctx, (struct sockaddr *)&from, sizeof(from)))
		__sync_fetch_and_add(&proxy->missed, 1);
	return GO_ON;
}

char _license[] SEC("license") = "GPL";
