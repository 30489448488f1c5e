// SPDX-License-Identifier: GPL-2.0
//
// The automaton that runs over the bytes of request heads. It says where a head ends, and whether
// the head holds what each request that matches a rule has to hold. User space builds it.
#pragma once
#include "packet.h"

#define MAX_PORTS 512   // watched ports of one pod
#define MAX_STATES 512  // of an automaton; a power of two
#define CHUNK 1024      // bytes that are read at a time; a power of two
#define MAX_CHUNKS 64   // chunks of one packet that are read

// What an entry of the automaton is made of: the next state, and what was seen.
enum entry {
	START = 0,  // the state at the beginning of a head
	MIDDLE = 1, // the state somewhere among a head's fields
	STATE_MASK = MAX_STATES - 1,
	FOUND = 1 << 14,
	ENDED = 1 << 15,
};

struct automaton {
	__u32 generation; // differs from that of any other automaton of the pod
	// Whether all connections of the port are watched, not just those in flows.
	__u32 all_flows;
	__u16 next[MAX_STATES * 256]; // [state][byte]
};
_Static_assert(sizeof(struct automaton) == 8 + 2 * MAX_STATES * 256, "no padding");

struct automaton_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct automaton));
};

// The automaton in force for a port, in host byte order. It is exchanged as a whole.
struct {
	__uint(type, BPF_MAP_TYPE_HASH_OF_MAPS);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u16);
	__array(values, struct automaton_map);
} ports SEC(".maps");

struct chunk {
	__u8 bytes[CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chunk);
} scratch SEC(".maps");

// Types that are not in the BTF by themselves, for user space.
const struct automaton *automaton_type __attribute__((unused));
const enum entry *entry_type __attribute__((unused));

static __always_inline struct automaton *automaton_of(__u16 port)
{
	__u32 zero = 0;
	void *inner = bpf_map_lookup_elem(&ports, &port);

	return inner ? bpf_map_lookup_elem(inner, &zero) : 0;
}

// The two scan functions are neither inlined nor static, so that the verifier goes through their
// loops once, and not once for each path that leads to them.

// scan runs the automaton over at most CHUNK bytes, and returns the last state with the flags of
// all entries.
__attribute__((noinline)) __u32 scan(struct __sk_buff *skb, __u32 offset, __u64 n, __u32 entry,
				     __u32 port)
{
	__u32 zero = 0, seen = 0;
	struct chunk *c = bpf_map_lookup_elem(&scratch, &zero);
	struct automaton *a = automaton_of(port);
	__u64 at;

	if (!c || !a)
		return ENDED;
	if (n == 0 || n > CHUNK)
		return ENDED;
	// n stays the same. Linux 5.10's verifier does not learn from a comparison with 0 that it
	// is not 0.
	asm volatile("" : "+r"(n));
	n = ((n - 1) & (CHUNK - 1)) + 1;
	if (load(skb, offset, c->bytes, n))
		return ENDED; // no such bytes
	for (__u64 i = 0; i < CHUNK; i++) {
		if (i >= n)
			break;
		// Both indexes stay the same. Linux 5.10's verifier needs to see their bounds
		// where they are used.
		at = i;
		asm volatile("" : "+r"(at));
		at = (entry & STATE_MASK) << 8 | c->bytes[at & (CHUNK - 1)];
		asm volatile("" : "+r"(at));
		entry = a->next[at & (MAX_STATES * 256 - 1)];
		seen |= entry;
	}
	return (entry & STATE_MASK) | (seen & (FOUND | ENDED));
}

// scan_all runs the automaton over n bytes. What it returns after the end of a head is not a state.
__attribute__((noinline)) __u32 scan_all(struct __sk_buff *skb, __u32 offset, __u32 n, __u32 state,
					 __u32 port)
{
	__u32 entry = state, seen = 0, step;

	for (int i = 0; i < MAX_CHUNKS; i++) {
		step = n < CHUNK ? n : CHUNK;
		if (!step)
			break;
		entry = scan(skb, offset, step, entry & STATE_MASK, port);
		seen |= entry;
		if (entry & ENDED)
			return seen;
		offset += step;
		n -= step;
	}
	if (n)
		return FOUND | ENDED; // longer than what is read: the agent is to look at it
	return (entry & STATE_MASK) | (seen & FOUND);
}
