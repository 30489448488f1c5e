// SPDX-License-Identifier: GPL-2.0
//
// What the two steering programs share: the maps, and the choice of a listener. Each pod has one program and maps of its own; only
// the heartbeat is shared.
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_TARGETS 512          // (address, port) pairs of one pod
#define MAX_LISTENERS 4          // of IPv4 and of IPv6, one for TCP and one for UDP
#define STALE_NS 1000000000ULL   // an agent that has not beaten for so long is taken for dead; it beats ten times as often
#define LOOPBACK_NET 127         // 127.0.0.0/8

// Not in the UAPI headers in a form that these programs could include beside linux/bpf.h.
#define AF_INET 2
#define IPPROTO_TCP 6
#define IPPROTO_UDP 17

// An IPv4 address is kept as IPv4-mapped IPv6 address, so that one map holds both families.
struct target_key {
	__u32 ip[4];     // network byte order
	__u16 port;      // host byte order, as in bpf_sk_lookup
	__u16 protocol;  // IPPROTO_TCP or IPPROTO_UDP
};
_Static_assert(sizeof(struct target_key) == 20, "user space and kernel agree on the key without padding");

// The slots of the listeners, and of the sockets that get datagrams. Family and protocol of the packet decide, since the kernel refuses a socket
// of another.
enum listener_slot { LISTENER_IP4, LISTENER_IP6, DATAGRAMS_IP4, DATAGRAMS_IP6 };

// Why a connection to a target was, or was not, steered. DATAGRAM and the same for datagrams; PROBED is for those of the agent itself.
enum outcome { STEERED, AGENT_SILENT, NO_LISTENER, NOT_ASSIGNED, TIME_WAIT, PROBED, DATAGRAM, OUTCOMES = 2 * DATAGRAM };

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

static __always_inline void count(enum outcome why)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &why);

	if (n)
		(*n)++;
}

static __always_inline int agent_is_silent(void)
{
	__u32 zero = 0;
	__u64 *beat = bpf_map_lookup_elem(&heartbeat, &zero);
	__u64 now = bpf_ktime_get_ns();

	// The agent may beat between one line and the next: a beat that is younger than now is not a silent agent's.
	return !beat || (now > *beat && now - *beat > STALE_NS);
}

// Says what became of the packet or lookup in ctx, which goes to the app unless it is STEERED.
static __always_inline enum outcome hand_over(void *ctx, __u32 slot)
{
	struct bpf_sock *listener;
	long err;

	// A stopped or stuck agent's listener still exists and would let connections queue up unanswered.
	if (agent_is_silent())
		return AGENT_SILENT;
	listener = bpf_map_lookup_elem(&listeners, &slot);
	// The kernel has taken a dead agent's listener out of the map.
	if (!listener)
		return NO_LISTENER;
	err = bpf_sk_assign(ctx, listener, 0);
	bpf_sk_release(listener);
	return err ? NOT_ASSIGNED : STEERED;
}

char _license[] SEC("license") = "GPL";
