//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// peername tells an app who its client is. What the node agent does not send to a laptop, it
// passes on by a connection of its own, from the pod's address to the pod's address. A note on
// that connection's socket names the client. When the app calls accept or getpeername, these
// programs find the socket at the other end, which is in the same network namespace, and answer
// with the note. The notes are nowhere but on the sockets, so a note can neither outlive its
// connection nor be taken for another's.
//
// They run in the cgroup of an intercepted pod, for sockets that were made in it or accepted from
// such.
#include "ip.h"

// The kernel takes no other answer from these programs.
#define DONE 1

// An IPv6 socket shows an IPv4-mapped address as such.
struct client {
	__u32 ip[4]; // network byte order
	__u16 port;  // network byte order
	__u16 zero;
};
_Static_assert(sizeof(struct client) == 20, "no padding: user space makes notes");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct client);
} clients SEC(".maps");

// Returns the client on whose behalf this connection was opened, from the note on the socket at the
// other end, which has the app's address as its destination.
static __always_inline struct client *find4(struct bpf_sock_addr *ctx, __u32 ip, __u32 app_port,
					    __u32 peer_port)
{
	struct bpf_sock_tuple tuple = {};
	struct client *client;
	struct bpf_sock *peer;

	tuple.ipv4.saddr = ip;
	tuple.ipv4.sport = bpf_htons(app_port);
	tuple.ipv4.daddr = ip;
	tuple.ipv4.dport = peer_port;
	peer = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv4), BPF_F_CURRENT_NETNS, 0);
	if (!peer)
		return 0;
	client = bpf_sk_storage_get(&clients, peer, 0, 0);
	bpf_sk_release(peer);
	return client;
}

SEC("cgroup/getpeername4")
int peername4(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *app = ctx->sk;
	struct client *client;
	__u32 ip, port;

	if (!app || ctx->type != SOCK_STREAM)
		return DONE;
	ip = ctx->user_ip4;
	port = ctx->user_port;
	// Not from the pod to itself, so not by the node agent: by far the most frequent way out.
	if (app->src_ip4 != ip)
		return DONE;
	client = find4(ctx, ip, app->src_port, port);
	if (!client || !is_mapped(client->ip))
		return DONE;
	ctx->user_ip4 = client->ip[3];
	ctx->user_port = client->port;
	return DONE;
}

SEC("cgroup/getpeername6")
int peername6(struct bpf_sock_addr *ctx)
{
	struct bpf_sock *app = ctx->sk, *peer;
	struct bpf_sock_tuple tuple = {};
	struct client *client = 0;
	__u32 p0, p1, p2, p3, port, app_port, l4, l0, l1, l2, l3;

	if (!app || ctx->type != SOCK_STREAM)
		return DONE;
	// Everything is loaded before the first branch: clang would otherwise merge loads of
	// different branches into one with a computed offset, and the verifier refuses to
	// dereference a modified pointer to a ctx or a socket.
	p0 = ctx->user_ip6[0], p1 = ctx->user_ip6[1], p2 = ctx->user_ip6[2], p3 = ctx->user_ip6[3];
	l0 = app->src_ip6[0], l1 = app->src_ip6[1], l2 = app->src_ip6[2], l3 = app->src_ip6[3];
	port = ctx->user_port;
	l4 = app->src_ip4, app_port = app->src_port;
	asm volatile("" : "+r"(p0), "+r"(p1), "+r"(p2), "+r"(p3), "+r"(l4));
	asm volatile("" : "+r"(l0), "+r"(l1), "+r"(l2), "+r"(l3), "+r"(app_port));

	if (!p0 && !p1 && p2 == bpf_htonl(0xffff)) {
		// An IPv4 connection to a listener of both families.
		if (l4 != p3)
			return DONE;
		client = find4(ctx, p3, app_port, port);
	} else {
		if (l0 != p0 || l1 != p1 || l2 != p2 || l3 != p3)
			return DONE;
		tuple.ipv6.saddr[0] = tuple.ipv6.daddr[0] = p0;
		tuple.ipv6.saddr[1] = tuple.ipv6.daddr[1] = p1;
		tuple.ipv6.saddr[2] = tuple.ipv6.daddr[2] = p2;
		tuple.ipv6.saddr[3] = tuple.ipv6.daddr[3] = p3;
		tuple.ipv6.sport = bpf_htons(app_port);
		tuple.ipv6.dport = port;
		peer = bpf_sk_lookup_tcp(ctx, &tuple, sizeof(tuple.ipv6), BPF_F_CURRENT_NETNS, 0);
		if (peer) {
			client = bpf_sk_storage_get(&clients, peer, 0, 0);
			bpf_sk_release(peer);
		}
	}
	if (!client)
		return DONE;
	ctx->user_ip6[0] = client->ip[0];
	ctx->user_ip6[1] = client->ip[1];
	ctx->user_ip6[2] = client->ip[2];
	ctx->user_ip6[3] = client->ip[3];
	ctx->user_port = client->port;
	return DONE;
}

char _license[] SEC("license") = "GPL";
