//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// steer hands the new connections of a pod's intercepted ports to the node agent's listeners,
// which live in the pod's own network namespace. The kernel runs it there when a TCP packet has
// no established socket: once for a SYN, and once more for the ACK when SYN cookies are on. It
// does the same with the datagrams to intercepted UDP ports. The kernel runs it for each of them,
// unless the app has a socket that is connected to the sender.
//
// It never drops. Whatever is not certainly ours is passed on, and the kernel then finds the app's
// socket as if we were not here.
#include "steer.h"
#include "mesh.h"

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct target_key key = {};
	struct target_value *target;
	enum outcome became;
	int from_loopback;

	// Everything is loaded before the first branch: clang would otherwise merge the loads of
	// the IPv4 and IPv6 branches into one with a computed offset, and the verifier refuses to
	// dereference a modified ctx pointer.
	__u32 family = ctx->family, protocol = ctx->protocol, port = ctx->local_port;
	__u32 local4 = ctx->local_ip4, remote4 = ctx->remote_ip4;
	__u32 l0 = ctx->local_ip6[0], l1 = ctx->local_ip6[1];
	__u32 l2 = ctx->local_ip6[2], l3 = ctx->local_ip6[3];
	__u32 r0 = ctx->remote_ip6[0], r1 = ctx->remote_ip6[1];
	__u32 r2 = ctx->remote_ip6[2], r3 = ctx->remote_ip6[3];
	asm volatile("" : "+r"(local4), "+r"(remote4), "+r"(l0), "+r"(l1), "+r"(l2), "+r"(l3));
	asm volatile("" : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3));

	if (protocol != IPPROTO_TCP && protocol != IPPROTO_UDP)
		return SK_PASS;
	if (family == AF_INET) {
		// From the pod to itself. The agent dials the app this way, so this is also what
		// keeps it from meeting itself.
		if (remote4 == local4)
			return SK_PASS;
		// On loopback, everything is the app's but what a mesh's proxy was made to connect
		// from an address of its own.
		if (is_loopback4(local4) &&
		    (protocol != IPPROTO_TCP || remote4 != bpf_htonl(MESH_DIALS_FROM)))
			return SK_PASS;
		from_loopback = is_loopback4(remote4);
		map_ip4(key.ip, local4);
	} else {
		__be32 local[4] = { l0, l1, l2, l3 }, remote[4] = { r0, r1, r2, r3 };

		if (same_ip(remote, local) || is_loopback6(local))
			return SK_PASS;
		from_loopback = is_loopback6(remote);
		__builtin_memcpy(key.ip, local, sizeof(local));
	}
	key.port = port;
	key.protocol = protocol;

	target = bpf_map_lookup_elem(&targets, &key);
	if (!target)
		return SK_PASS; // not intercepted: by far the most frequent way out
	// Not assigned: EAFNOSUPPORT for an IPv6 packet to an IPv4-mapped address, EEXIST if
	// something else has chosen a socket.
	became = hand_over(ctx, target->slot);
	if (protocol == IPPROTO_UDP) {
		// From a loopback address to the pod's own only the agent sends, to see whether its
		// datagrams are steered.
		if (became == STEERED && from_loopback)
			became = PROBED;
		became += DATAGRAM;
	}
	count(became);
	return SK_PASS;
}
