// SPDX-License-Identifier: GPL-2.0
//
// What the two steering programs share: the maps, and the choice of a listener. Each pod has one
// program and maps of its own; only the heartbeat is shared. It says that the agent accepts
// connections.
#pragma once
#include "heartbeat.h"
#include "ip.h"

#define MAX_TARGETS 512 // (address, port) pairs of one pod
#define MAX_LISTENERS 4 // of IPv4 and of IPv6, one for TCP and one for UDP

struct target_key {
	__u32 ip[4];    // network byte order
	__u16 port;     // host byte order, as in bpf_sk_lookup
	__u16 protocol; // IPPROTO_TCP or IPPROTO_UDP
};
_Static_assert(sizeof(struct target_key) == 20, "no padding: user space makes keys too");

// The slots of the listeners, and of the sockets that get datagrams. Family and protocol of the
// packet decide, since the kernel refuses a socket of another.
enum listener_slot { LISTENER_IP4, LISTENER_IP6, DATAGRAMS_IP4, DATAGRAMS_IP6 };

// Why a connection to a target was, or was not, steered. DATAGRAM and the same for datagrams;
// PROBED is for those of the agent itself.
enum outcome {
	STEERED,
	AGENT_SILENT,
	NO_LISTENER,
	NOT_ASSIGNED,
	TIME_WAIT,
	PROBED,
	DATAGRAM,
	OUTCOMES = 2 * DATAGRAM,
};

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

// Returns what became of the packet or lookup in ctx, which goes to the app unless it is STEERED.
static __always_inline enum outcome hand_over(void *ctx, __u32 slot)
{
	struct bpf_sock *listener;
	long err;

	// The listener of a stopped or stuck agent still exists, and would queue connections that
	// nobody accepts.
	if (agent_is_silent(bpf_ktime_get_ns()))
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
