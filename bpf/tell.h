// SPDX-License-Identifier: GPL-2.0
//
// The telling of packets to the agent, with their bytes.
#pragma once
#include "packet.h"

#define EVENTS_SIZE (512 * 1024) // holds a few of the largest packets
#define SMALL 2048               // sizes of the room for a packet in an event
#define MEDIUM 17408
#define LARGE 66560
#define MAX_LENGTH 0x1ffff       // more than LARGE; a power of two less one

enum event_kind {
	COPIED,  // the packet has passed, and the agent needs it for a later verdict
	WAITING, // the packet is queued until the verdict
};

struct event {
	struct flow_key key;
	__u32 head;    // sequence number at which the head begins
	__u32 seq;     // of the packet's payload
	__u32 ack;
	__u32 length;  // of the packet, from the IP header on
	__u32 payload; // where the payload begins in it
	__u32 kind;
};
_Static_assert(sizeof(struct event) == 60, "no padding: the packet follows");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_SIZE);
} events SEC(".maps");

// Types that are not in the BTF by themselves, for user space.
const struct event *event_type __attribute__((unused));
const enum event_kind *event_kind_type __attribute__((unused));

// The ring buffer's reservations have constant sizes.
#define TELL(size)                                                                             \
	static __always_inline int tell_##size(struct __sk_buff *skb, __u32 link,              \
					       struct event *head, __u64 n)                    \
	{                                                                                      \
		struct {                                                                       \
			struct event event;                                                    \
			__u8 packet[size];                                                     \
		} *e;                                                                          \
		if (n == 0)                                                                    \
			return 0;                                                              \
		e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);                               \
		if (!e)                                                                        \
			return 0;                                                              \
		__builtin_memcpy(&e->event, head, sizeof(*head));                              \
		/* As in scan. */                                                              \
		asm volatile("" : "+r"(n));                                                    \
		n = ((n - 1) & MAX_LENGTH) + 1;                                                \
		if (n > size || load(skb, link, e->packet, n)) {                               \
			bpf_ringbuf_discard(e, 0);                                             \
			return 0;                                                              \
		}                                                                              \
		bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);                                    \
		return 1;                                                                      \
	}
TELL(SMALL)
TELL(MEDIUM)
TELL(LARGE)

// Sends the packet to the agent, and reports whether there was room.
static __always_inline int tell(struct __sk_buff *skb, struct segment *s, __u32 head,
				enum event_kind kind)
{
	struct event e = {
		.key = s->key, .head = head, .seq = s->seq, .ack = s->ack,
		.length = s->length, .payload = s->payload, .kind = kind,
	};
	__u32 n = s->length;

	if (n <= SMALL)
		return tell_SMALL(skb, s->link, &e, n);
	if (n <= MEDIUM)
		return tell_MEDIUM(skb, s->link, &e, n);
	// Of a longer one the agent gets the beginning. No head is longer.
	return tell_LARGE(skb, s->link, &e, n < LARGE ? n : LARGE);
}
