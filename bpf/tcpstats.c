//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// tcpstats counts the connections to intercepted ports. It runs in two kinds of cgroups: that of
// the node agent, whose listener accepts the connections that are steered, and those of
// intercepted pods, where the app accepts all others. The agent puts a note on its listeners,
// which the sockets that they accept inherit. So a steered connection is known by the socket
// itself, wherever it is.
//
// A connection is looked up when it is established and when it ends. Between the two nothing runs
// for a byte or a packet. For connections to other ports nothing runs after they are established.
//
// Nothing here alters a connection: the reply, which may be another program's, is not touched.
#include "ip.h"

#define MAX_PORTS 16384 // (address, port) pairs of all intercepted pods of the node
#define RTT_BUCKETS 13  // see rtt_bucket

// The kernel takes the reply of the last program that ran, if all of them return this.
#define DONE 1

// Who accepted a connection for whom.
enum way {
	WAY_STEERED, // the node agent, from a client
	WAY_DIRECT,  // the app, from a client
	WAY_LOCAL,   // the app, from the pod itself: so comes what the node agent passes on
	WAYS,
};

// An IPv6 socket has an IPv4-mapped address as such.
struct port_key {
	__u64 netns; // cookie of the network namespace, 0 where the kernel does not tell
	__u32 ip[4]; // network byte order
	__u32 port;  // host byte order
	__u32 zero;
};
_Static_assert(sizeof(struct port_key) == 32, "no padding: user space makes keys too");

// What was counted for the connections that one way brought to one port. Per CPU.
struct tally {
	__u64 opened;
	__u64 closed;   // opened - closed are open
	__u64 aborted;  // of those closed: by a reset or a timeout
	__u64 received; // bytes of connections that were closed, and so the rest
	__u64 sent;     // acknowledged by the peer
	__u64 retransmits;
	__u64 rtt_us;   // sum of the smoothed round-trip times at the end
	__u64 rtt[RTT_BUCKETS];
};

struct tallies {
	struct tally by_way[WAYS];
};

// On a listener of the node agent, and on each connection that is counted.
struct note {
	__u32 id;   // of its tallies; 0: not counted
	enum way way;
	__u64 received_at_fin; // bytes received when our FIN was acknowledged
};

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__type(key, struct port_key);
	__type(value, __u32);
} ports SEC(".maps");

// Set by user space before loading. Without it, two namespaces on one machine with the same address
// are one if they also share a cgroup.
const volatile __u8 knows_netns = 0;

// By an id that is never used again, so that a connection from before an intercept was left is not
// counted for the next one.
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__uint(max_entries, MAX_PORTS);
	__type(key, __u32);
	__type(value, struct tallies);
} counted SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC | BPF_F_CLONE);
	__type(key, int);
	__type(value, struct note);
} notes SEC(".maps");

// Atomic though per CPU: a connection that a process closes can be interrupted by packets of
// another.
static __always_inline void add(__u64 *to, __u64 n)
{
	__sync_fetch_and_add(to, n);
}

static __always_inline struct tally *tally_of(struct note *note)
{
	__u32 id = note->id;
	enum way way = note->way;
	struct tallies *all = bpf_map_lookup_elem(&counted, &id);

	if (!all)
		return 0; // the port is not intercepted any more
	if (way == WAY_STEERED)
		return &all->by_way[WAY_STEERED];
	if (way == WAY_DIRECT)
		return &all->by_way[WAY_DIRECT];
	return &all->by_way[WAY_LOCAL];
}

static __always_inline void established(struct bpf_sock_ops *ctx)
{
	struct port_key key = {};
	struct note fresh = {}, *note;
	struct bpf_sock *sk = ctx->sk;
	struct tally *tally;
	__be32 remote[4];
	__u32 *id;

	// Everything is loaded before the first branch: clang would otherwise merge loads of
	// different branches into one with a computed offset, and the verifier refuses to
	// dereference a modified pointer to a ctx.
	__u32 family = ctx->family, flags = ctx->bpf_sock_ops_cb_flags, port = ctx->local_port;
	__u32 l4 = ctx->local_ip4, r4 = ctx->remote_ip4;
	__u32 l0 = ctx->local_ip6[0], l1 = ctx->local_ip6[1];
	__u32 l2 = ctx->local_ip6[2], l3 = ctx->local_ip6[3];
	__u32 r0 = ctx->remote_ip6[0], r1 = ctx->remote_ip6[1];
	__u32 r2 = ctx->remote_ip6[2], r3 = ctx->remote_ip6[3];
	asm volatile("" : "+r"(l4), "+r"(r4), "+r"(l0), "+r"(l1), "+r"(l2), "+r"(l3), "+r"(port));
	asm volatile("" : "+r"(r0), "+r"(r1), "+r"(r2), "+r"(r3), "+r"(flags));

	if (!sk)
		return;
	if (family == AF_INET) {
		map_ip4(key.ip, l4);
		map_ip4(remote, r4);
	} else {
		key.ip[0] = l0, key.ip[1] = l1, key.ip[2] = l2, key.ip[3] = l3;
		remote[0] = r0, remote[1] = r1, remote[2] = r2, remote[3] = r3;
	}
	key.port = port;
	if (knows_netns)
		key.netns = bpf_get_netns_cookie(ctx);
	id = bpf_map_lookup_elem(&ports, &key);
	if (!id)
		return; // not intercepted: by far the most frequent way out

	note = bpf_sk_storage_get(&notes, sk, 0, 0);
	if (!note) {
		// Only a mesh's proxy comes that way to the node agent; the pod's own traffic is
		// nobody's business.
		if (is_mapped(key.ip) && is_loopback4(key.ip[3]))
			return;
		fresh.way = same_ip(key.ip, remote) ? WAY_LOCAL : WAY_DIRECT;
		note = bpf_sk_storage_get(&notes, sk, &fresh, BPF_SK_STORAGE_GET_F_CREATE);
		if (!note)
			return; // no memory: a connection that is not counted
	}
	// Where a control group and one above it both have this program, it runs twice.
	if (note->id)
		return;
	note->id = *id;
	// Other programs may have asked for callbacks of their own.
	if (bpf_sock_ops_cb_flags_set(ctx, flags | BPF_SOCK_OPS_STATE_CB_FLAG)) {
		note->id = 0; // its end would not be heard of
		return;
	}
	tally = tally_of(note);
	if (tally)
		add(&tally->opened, 1);
}

// Returns the first bucket with an upper bound that is no less: 50 µs, doubled with each bucket.
// The last bucket has none.
static __always_inline __u32 rtt_bucket(__u32 us)
{
	__u32 bound = 50;

#pragma unroll
	for (__u32 i = 0; i < RTT_BUCKETS - 1; i++) {
		if (us <= bound)
			return i;
		bound *= 2;
	}
	return RTT_BUCKETS - 1;
}

static __always_inline void measure_rtt(struct tally *tally, __u32 us)
{
	__u32 bucket = rtt_bucket(us);

	if (bucket >= RTT_BUCKETS)
		return; // for the verifier
	add(&tally->rtt_us, us);
	add(&tally->rtt[bucket], 1);
}

// The kernel counts a FIN as a byte, in both directions. from is the state before the end.
static __always_inline __u64 fin_received(__u32 from, __u64 received, struct note *note)
{
	switch (from) {
	case BPF_TCP_CLOSE_WAIT:
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		return 1;
	case BPF_TCP_FIN_WAIT2:
		// The usual end is that nobody reads any longer: then the socket ends here, and a
		// lesser one waits for the FIN.
		return received > note->received_at_fin;
	}
	return 0;
}

static __always_inline __u64 fin_acknowledged(__u32 from, __u32 unacknowledged)
{
	switch (from) {
	case BPF_TCP_FIN_WAIT2:
		return 1;
	case BPF_TCP_LAST_ACK:
	case BPF_TCP_CLOSING:
		return !unacknowledged;
	}
	return 0;
}

static __always_inline void ended(struct bpf_sock_ops *ctx, __u32 from, struct note *note)
{
	__u64 received = ctx->bytes_received, sent = ctx->bytes_acked;
	__u32 unacknowledged = ctx->snd_nxt - ctx->snd_una;
	__u32 rtt = ctx->srtt_us >> 3; // the kernel keeps eight times the value
	__u32 retransmits = ctx->total_retrans;
	struct tally *tally = tally_of(note);
	__u64 fin;

	note->id = 0; // counted once
	if (!tally)
		return;
	add(&tally->closed, 1);
	if (from == BPF_TCP_ESTABLISHED || from == BPF_TCP_CLOSE_WAIT ||
	    from == BPF_TCP_FIN_WAIT1 || from == BPF_TCP_SYN_RECV)
		add(&tally->aborted, 1);
	fin = fin_received(from, received, note);
	if (received > fin)
		add(&tally->received, received - fin);
	fin = fin_acknowledged(from, unacknowledged);
	if (sent > fin)
		add(&tally->sent, sent - fin);
	if (retransmits)
		add(&tally->retransmits, retransmits);
	if (rtt)
		measure_rtt(tally, rtt);
}

static __always_inline void changed(struct bpf_sock_ops *ctx)
{
	__u32 from = ctx->args[0], to = ctx->args[1];
	struct bpf_sock *sk = ctx->sk;
	struct note *note;

	if (!sk || (to != BPF_TCP_CLOSE && to != BPF_TCP_FIN_WAIT2))
		return;
	note = bpf_sk_storage_get(&notes, sk, 0, 0);
	// The callbacks may be another program's, or those that a former agent has left on the
	// socket.
	if (!note || !note->id)
		return;
	if (to == BPF_TCP_FIN_WAIT2)
		note->received_at_fin = ctx->bytes_received;
	else
		ended(ctx, from, note);
}

SEC("sockops")
int tcpstats(struct bpf_sock_ops *ctx)
{
	switch (ctx->op) {
	case BPF_SOCK_OPS_PASSIVE_ESTABLISHED_CB:
		established(ctx);
		break;
	case BPF_SOCK_OPS_STATE_CB:
		changed(ctx);
		break;
	}
	return DONE;
}

char _license[] SEC("license") = "GPL";
