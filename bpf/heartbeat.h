// SPDX-License-Identifier: GPL-2.0
//
// The heartbeat by which a program knows that its agent is alive. What an agent promises by it, the
// program says.
#pragma once
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

// Agents send a heartbeat at least every 200 ms. After 1 s without a heartbeat, programs bypass them.
#define STALE_NS 1000000000ULL

// CLOCK_MONOTONIC in nanoseconds.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} heartbeat SEC(".maps");

static __always_inline int agent_is_silent(__u64 now)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&heartbeat, &zero);

	// The agent may send one after now was read: a heartbeat from the future is a live agent's.
	return !last || (now > *last && now - *last > STALE_NS);
}
