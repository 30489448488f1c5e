//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// headwatch watches the heads of requests on some of a pod's connections. It queues the one packet
// that would complete the head of a request which may match a rule: it drops the packet and tells
// the node agent, which gives a verdict. TCP keeps what follows from the app until that packet has
// come. When the agent has not decided in time, the packet passes with its next repetition.
//
// It may queue a request that does not match, never pass one that does, as long as the client sends
// one request at a time. A request begins where the client has acknowledged something of the app
// since it last sent data. Whatever follows without such an acknowledgement belongs to the same
// request, or is pipelined behind it, and passes unseen.
//
// The rules of a port come as an automaton over bytes, whose state is kept from packet to packet:
// it makes no difference how a head was cut into packets.
//
// The heartbeat says that the agent waits for packets to decide on.
#include "automaton.h"
#include "heartbeat.h"
#include "tell.h"
#include <linux/pkt_cls.h>

#define MAX_FLOWS 65536 // connections of one pod that are watched
#define MAX_HEAD 65536  // the longest head that the agent would understand

#define PASS TC_ACT_UNSPEC // on to the next program, or to the pod; the same number as TCX_NEXT

// Where a flow is in its client's requests.
enum phase {
	UNKNOWN, // nothing has been seen of it
	HEAD,    // a head has begun
	REST,    // a head has ended, or what came was none
	QUEUED,  // a packet waits for the agent's verdict
};

enum flag {
	FLAG_FOUND = 1, // the head holds what it takes
	FLAG_GAP = 2,   // a packet came before the one that goes before it
};

// Counted in the metrics.
enum outcome { PACKET_QUEUED, REPEAT_DROPPED, TIMED_OUT, NO_ROOM, OUTCOMES };

struct flow {
	__u64 queued_at;  // CLOCK_MONOTONIC, nanoseconds
	__u32 next;       // the sequence number up to which everything was seen
	__u32 furthest;   // the highest sequence number that was seen
	__u32 ack;        // acknowledgement number of the last data that was seen
	__u32 head;       // where the head begins
	__u32 generation; // of the automaton that state is about
	__u16 state;
	__u8 phase;
	__u8 flags;
};
_Static_assert(sizeof(struct flow) == 32, "no padding: user space writes flows too");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, enum outcome);
	__type(value, __u64);
} outcomes SEC(".maps");

// For how long a packet is queued while the agent decides, in nanoseconds. The agent relies on its
// not being passed on before.
volatile const __u64 timeout_ns;

// Types that are not in the BTF by themselves, for user space.
const enum phase *phase_type __attribute__((unused));
const enum flag *flag_type __attribute__((unused));

static __always_inline void count(enum outcome what)
{
	__u64 *n = bpf_map_lookup_elem(&outcomes, &what);

	if (n)
		(*n)++;
}

// Sequence numbers wrap around.
static __always_inline int after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

// Reports whether a single byte on a connection of which nothing was seen is rather a keep-alive
// probe, which repeats a byte or makes one up, than the beginning of a request.
static __always_inline int is_probe(struct __sk_buff *skb, struct segment *s)
{
	__u8 byte;

	if (load(skb, s->link + s->payload, &byte, 1))
		return 1;
	return byte < 'A' || byte > 'Z';
}

// Passes what concerns nobody until the client has heard from the app again.
static __always_inline int rest(struct flow *f, struct segment *s)
{
	if (after(s->end, f->next))
		f->next = s->end;
	f->ack = s->ack;
	f->phase = REST;
	return PASS;
}

static __always_inline int queued(struct flow *f, struct segment *s, __u64 now)
{
	if (!after(s->end, f->next))
		return PASS; // the app has it already
	if (after(s->seq, f->next))
		return PASS; // the app does not get it before the one that is queued
	if (now < f->queued_at + timeout_ns) { // the agent may just have prolonged it
		count(REPEAT_DROPPED);
		return TC_ACT_SHOT;
	}
	count(TIMED_OUT);
	f->next = f->furthest;
	return rest(f, s);
}

static __always_inline void begin(struct flow *f, struct segment *s, __u32 at)
{
	f->head = f->next = at;
	f->ack = s->ack;
	f->phase = HEAD;
	f->state = START;
	f->flags = 0;
}

// Looks at the next bytes of a head.
static __always_inline int head(struct __sk_buff *skb, struct automaton *a, struct flow *f,
				struct segment *s, __u64 now)
{
	__u32 skip = f->next - s->seq, entry; // the bytes of the payload that were seen before

	if (f->generation != a->generation) {
		// The rules have changed in the middle of a head. Nothing is known about its
		// first part.
		if (f->state != START || f->next != f->head) {
			f->state = MIDDLE;
			f->flags |= FLAG_FOUND;
		}
		f->generation = a->generation;
	}
	entry = scan_all(skb, s->link + s->payload + skip, s->end - f->next, f->state,
			 s->key.local_port);
	if (entry & FOUND)
		f->flags |= FLAG_FOUND;
	if (!(entry & ENDED) && !(f->flags & FLAG_GAP)) {
		// The app cannot act on a head without an end, so this may pass. The agent will
		// need it in order to decide.
		if (s->end - f->head > MAX_HEAD)
			return rest(f, s);
		f->state = entry & STATE_MASK;
		f->next = s->end;
		tell(skb, s, f->head, COPIED);
		return PASS;
	}
	if (!(f->flags & (FLAG_FOUND | FLAG_GAP)))
		return rest(f, s);
	// The agent may decide before tell has returned, and changes the flow then.
	f->queued_at = now;
	f->phase = QUEUED;
	if (!tell(skb, s, f->head, WAITING)) {
		count(NO_ROOM);
		return rest(f, s);
	}
	count(PACKET_QUEUED);
	return TC_ACT_SHOT;
}

// Deals with a packet that has overtaken another. The app does not get it before that other has
// come, which is then queued.
static __always_inline int gap(struct __sk_buff *skb, struct flow *f, struct segment *s)
{
	f->flags |= FLAG_GAP;
	tell(skb, s, f->head, COPIED);
	return PASS;
}

// Looks at what a client sends on a connection, at whatever point that is.
static __always_inline int data(struct __sk_buff *skb, struct automaton *a, struct flow *f,
				struct segment *s)
{
	__u64 now = bpf_ktime_get_ns();
	int heard;

	if (agent_is_silent(now)) {
		// The queued packet passes for the same reason as one after its timeout.
		if (f->phase == QUEUED && after(s->end, f->next) && !after(s->seq, f->next))
			count(TIMED_OUT);
		f->phase = UNKNOWN;
		return PASS;
	}
	if (f->phase == UNKNOWN) {
		if (s->end - s->seq == 1 && is_probe(skb, s))
			return PASS;
		begin(f, s, s->seq);
		f->furthest = s->end;
		return head(skb, a, f, s, now);
	}
	if (after(s->end, f->furthest))
		f->furthest = s->end;
	if (f->phase == QUEUED)
		return queued(f, s, now);
	if (!after(s->end, f->next))
		return PASS; // the app has it already
	heard = after(s->ack, f->ack);
	if (!heard && f->phase == REST)
		return rest(f, s);
	if (heard) {
		int missing = after(s->seq, f->next);
		// A gap that is still there although the app has spoken was never one for the app:
		// something went by unseen.
		int lasting = f->phase == HEAD && (f->flags & FLAG_GAP);

		begin(f, s, missing && lasting ? s->seq : f->next);
	}
	if (after(s->seq, f->next))
		return gap(skb, f, s);
	return head(skb, a, f, s, now);
}

// Returns the flow of a connection, which begins with its first data where all connections of the
// port are watched.
static __always_inline struct flow *flow_of(struct automaton *a, struct segment *s)
{
	struct flow *f = bpf_map_lookup_elem(&flows, &s->key), fresh = {};

	if (f || !a->all_flows || s->end == s->seq)
		return f;
	if (bpf_map_update_elem(&flows, &s->key, &fresh, BPF_NOEXIST))
		return 0; // no room: a connection that is not watched
	return bpf_map_lookup_elem(&flows, &s->key);
}

SEC("tc")
int headwatch(struct __sk_buff *skb)
{
	struct segment s = {};
	struct automaton *a;
	struct flow *f;

	if (!read_segment(skb, &s))
		return PASS;
	a = automaton_of(s.key.local_port);
	if (!a)
		return PASS; // by far the most frequent way out
	if (s.flags & (TCP_SYN | TCP_RST)) {
		// The connection has ended, and another one may begin between the same addresses.
		bpf_map_delete_elem(&flows, &s.key);
		return PASS;
	}
	f = flow_of(a, &s);
	if (!f)
		return PASS;
	if (s.end != s.seq)
		return data(skb, a, f, &s);
	// The client will send no more, and the app has all of it. A listed flow is the agent's
	// to remove.
	if (s.flags & TCP_FIN && a->all_flows && f->phase == REST && !after(s.seq, f->next))
		bpf_map_delete_elem(&flows, &s.key);
	return PASS;
}

char _license[] SEC("license") = "GPL";
