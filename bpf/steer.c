//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// steer hands the new connections of a pod's intercepted ports to the node agent's listeners, which live in the pod's own
// network namespace. The kernel runs it there when a TCP packet has no established socket: once for a SYN, and once more for
// the ACK when SYN cookies are on. Each pod has a program and maps of its own; only the heartbeat is shared.
//
// It never drops. Whatever is not certainly ours is passed on, and the kernel then finds the app's socket as if we were not here.
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_TARGETS 512          // (address, port) pairs of one pod
#define MAX_LISTENERS 2          // one of IPv4, one of IPv6
#define STALE_NS 1000000000ULL   // an agent that has not beaten for so long is taken for dead; it beats ten times as often
#define LOOPBACK_NET 127         // 127.0.0.0/8

// Not in the UAPI headers in a form that this program could include beside linux/bpf.h.
#define AF_INET 2
#define IPPROTO_TCP 6

// An IPv4 address is kept as IPv4-mapped IPv6 address, so that one map holds both families.
struct target_key {
	__u32 ip[4];     // network byte order
	__u16 port;      // host byte order, as in bpf_sk_lookup
	__u16 protocol;
};
_Static_assert(sizeof(struct target_key) == 20, "user space and kernel agree on the key without padding");

// The listeners' slots. The family of the packet decides, since the kernel refuses a socket of the other family.
enum listener_slot { LISTENER_IP4, LISTENER_IP6 };

// Why a connection to a target was, or was not, steered.
enum outcome { STEERED, AGENT_SILENT, NO_LISTENER, NOT_ASSIGNED, OUTCOMES };

struct target_value {
	enum listener_slot slot;
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_TARGETS);
	__type(key, struct target_key);
	__type(value, struct target_value);
} targets SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SOCKMAP);
	__uint(max_entries, MAX_LISTENERS);
	__type(key, __u32);
	__type(value, __u64);
} listeners SEC(".maps");

// CLOCK_MONOTONIC in nanoseconds at which the agent was last known to accept connections.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, enum outcome);
	__type(value, __u64);
} outcomes SEC(".maps");

static __always_inline int pass(enum outcome why)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &why);

	if (n)
		(*n)++;
	return SK_PASS;
}

static __always_inline int agent_is_silent(void)
{
	__u32 zero = 0;
	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &zero);

	return !beat || bpf_ktime_get_ns() - *beat > STALE_NS;
}

SEC("sk_lookup")
int steer(struct bpf_sk_lookup *ctx)
{
	struct target_key key = {};
	struct target_value *target;
	struct bpf_sock *listener;
	__u32 slot;
	long err;

	// Everything is loaded before the first branch: clang would otherwise merge the loads of the IPv4 and IPv6 branches into
	// one with a computed offset, and the verifier refuses to dereference a modified ctx pointer.
	__u32 family = ctx->family, protocol = ctx->protocol, port = ctx->local_port;
	__u32 local4 = ctx->local_ip4, remote4 = ctx->remote_ip4;
	__u32 l0 = ctx->local_ip6[0], l1 = ctx->local_ip6[1], l2 = ctx->local_ip6[2], l3 = ctx->local_ip6[3];
	__u32 r0 = ctx->remote_ip6[0], r1 = ctx->remote_ip6[1], r2 = ctx->remote_ip6[2], r3 = ctx->remote_ip6[3];
	asm volatile("" : "+r"(local4), "+r"(remote4), "+r"(l0), "+r"(l1), "+r"(l2), "+r"(l3));
	asm volatile("" : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3));

	if (protocol != IPPROTO_TCP)
		return SK_PASS;
	if (family == AF_INET) {
		// From the pod to itself. The agent dials the app this way, so this is also what keeps it from meeting itself.
		if (remote4 == local4)
			return SK_PASS;
		if (bpf_ntohl(local4) >> 24 == LOOPBACK_NET)
			return SK_PASS;
		key.ip[2] = bpf_htonl(0xffff);
		key.ip[3] = local4;
	} else {
		if (r0 == l0 && r1 == l1 && r2 == l2 && r3 == l3)
			return SK_PASS;
		if (!l0 && !l1 && !l2 && l3 == bpf_htonl(1))
			return SK_PASS;
		key.ip[0] = l0;
		key.ip[1] = l1;
		key.ip[2] = l2;
		key.ip[3] = l3;
	}
	key.port = port;
	key.protocol = IPPROTO_TCP;

	target = bpf_map_lookup_elem(&targets, &key);
	if (!target)
		return SK_PASS; // not intercepted: by far the most frequent way out
	// A stopped or stuck agent's listener still exists and would let connections queue up unanswered.
	if (agent_is_silent())
		return pass(AGENT_SILENT);
	slot = target->slot;
	listener = bpf_map_lookup_elem(&listeners, &slot);
	// The kernel has taken a dead agent's listener out of the map.
	if (!listener)
		return pass(NO_LISTENER);
	err = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	// EAFNOSUPPORT for an IPv6 packet to an IPv4-mapped address, EEXIST if something else has chosen a socket: not ours then.
	return pass(err ? NOT_ASSIGNED : STEERED);
}

char _license[] SEC("license") = "GPL";
