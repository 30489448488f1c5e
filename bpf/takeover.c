//go:build ignore

// SPDX-License-Identifier: GPL-2.0
//
// watch looks at what arrives on connections that are older than the intercept of their port, and at nothing else. It holds
// back, that is: drops, the one packet that would complete the head of a request which may match a rule, and tells the node
// agent, which decides. TCP keeps what follows from the app until that packet has come.
//
// It may hold a request that does not match, never pass one that does, as long as the client sends one request at a time. A
// request begins where the client has acknowledged something of the app since it last sent data. Whatever follows without
// such an acknowledgement belongs to the same request, or is pipelined behind it, and passes unseen.
//
// The rules come as an automaton over bytes. It says when the head ends, and whether it held what each request that matches has to
// hold. Its state is kept from packet to packet, so that it makes no difference how a head was cut into packets.
#include <linux/bpf.h>
#include <linux/pkt_cls.h>
#include <bpf/bpf_endian.h>
#include <bpf/bpf_helpers.h>

#define MAX_FLOWS 65536          // connections of one port that are watched
#define MAX_STATES 512           // of the automaton; a power of two
#define CHUNK 1024               // bytes that are read at a time; a power of two
#define MAX_CHUNKS 64            // chunks of one packet that are read
#define MAX_HEAD 65536           // the longest head that the agent would understand
#define MAX_EXTENSIONS 6         // IPv6 extension headers before TCP
#define EVENTS_SIZE (512 * 1024) // holds a few of the largest packets
#define SMALL 2048               // sizes of the room for a packet in an event
#define MEDIUM 17408
#define LARGE 66560
#define MAX_LENGTH 0x1ffff       // more than LARGE; a power of two less one
#define STALE_NS 1000000000ULL   // an agent that has not beaten for so long is taken for dead

// Not in the UAPI headers in a form that this program could include beside linux/bpf.h.
#define ETH_P_IP 0x0800
#define ETH_P_IPV6 0x86dd
#define ETHERNET_HEADER 14
#define IPPROTO_HOPOPTS 0
#define IPPROTO_TCP 6
#define IPPROTO_ROUTING 43
#define IPPROTO_DSTOPTS 60
#define TCP_SYN 0x02
#define TCP_RST 0x04

#define PASS TC_ACT_UNSPEC // on to the next program, or to the pod; the same number as TCX_NEXT

// What an entry of the automaton says besides the next state.
enum entry { STATE_MASK = MAX_STATES - 1, FOUND = 1 << 14, ENDED = 1 << 15 };

// States that every automaton has.
enum state { START, MIDDLE };

// Where a flow is in its client's requests.
enum phase {
	UNKNOWN, // nothing has been seen of it
	HEAD,    // a head has begun
	REST,    // a head has ended, or what came was none
	HELD,    // the agent has been asked
};

enum flag {
	FLAG_FOUND = 1, // the head holds what it takes
	FLAG_GAP = 2,   // a packet came before the one that goes before it
};

enum event_kind { COPIED, WAITS };

// Counted in the metrics.
enum outcome { HELD_BACK, DROPPED_AGAIN, GAVE_UP, UNTOLD, OUTCOMES };

// As the client's packets have them. An IPv4 address is kept as IPv4-mapped IPv6 address.
struct flow_key {
	__u32 remote[4]; // network byte order
	__u32 local[4];
	__u16 remote_port; // host byte order
	__u16 local_port;
};
_Static_assert(sizeof(struct flow_key) == 36, "user space and kernel agree on the key without padding");

struct flow {
	__u64 held_at;    // CLOCK_MONOTONIC, nanoseconds
	__u32 next;       // the sequence number up to which everything was seen
	__u32 furthest;   // the highest sequence number that was seen
	__u32 ack;        // acknowledgement number of the last data that was seen
	__u32 head;       // where the head begins
	__u32 generation; // of the automaton that state is about
	__u16 state;
	__u8 phase;
	__u8 flags;
};

struct automaton {
	__u32 generation;
	__u16 next[MAX_STATES * 256]; // [state][byte]
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

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(max_entries, MAX_FLOWS);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct flow_key);
	__type(value, struct flow);
} flows SEC(".maps");

struct automaton_map {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__uint(key_size, sizeof(__u32));
	__uint(value_size, sizeof(struct automaton));
};

// The automaton in force is exchanged as a whole.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY_OF_MAPS);
	__uint(max_entries, 1);
	__type(key, __u32);
	__array(values, struct automaton_map);
} rules SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, EVENTS_SIZE);
} events SEC(".maps");

// CLOCK_MONOTONIC in nanoseconds at which the agent was last seen waiting for events.
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, __u64);
} beat SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, OUTCOMES);
	__type(key, enum outcome);
	__type(value, __u64);
} counts SEC(".maps");

struct chunk {
	__u8 bytes[CHUNK];
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__uint(max_entries, 1);
	__type(key, __u32);
	__type(value, struct chunk);
} scratch SEC(".maps");

// The port that is watched.
volatile const __u16 port;

// For how long a packet is held while the agent decides, in nanoseconds. The agent relies on its not being passed on before.
volatile const __u64 hold_ns;

// Types that are not in the BTF by themselves, for user space.
const struct automaton *automaton_type __attribute__((unused));
const struct event *event_type __attribute__((unused));
const enum entry *entry_type __attribute__((unused));
const enum state *state_type __attribute__((unused));
const enum phase *phase_type __attribute__((unused));
const enum flag *flag_type __attribute__((unused));
const enum event_kind *event_kind_type __attribute__((unused));

// segment is what matters of one packet.
struct segment {
	struct flow_key key;
	__u32 seq, end; // sequence numbers of the payload
	__u32 ack;
	__u32 link;     // where the IP header begins
	__u32 payload;  // where it begins, from the IP header on
	__u32 length;   // of the packet, from the IP header on
	__u8 flags;
};

struct tcp_header {
	__be16 source, dest;
	__be32 seq, ack;
	__u8 offset, flags;
	__be16 window, check, urgent;
};

struct ip4_header {
	__u8 version, tos;
	__be16 length, id, fragment;
	__u8 ttl, protocol;
	__be16 check;
	__be32 source, dest;
};

struct ip6_header {
	__be32 label;
	__be16 length;
	__u8 next, hops;
	__be32 source[4], dest[4];
};

static __always_inline void count(enum outcome what)
{
	__u64 *n = bpf_map_lookup_elem(&counts, &what);

	if (n)
		(*n)++;
}

static __always_inline int agent_is_silent(__u64 now)
{
	__u32 zero = 0;
	__u64 *last = bpf_map_lookup_elem(&beat, &zero);

	return !last || (now > *last && now - *last > STALE_NS);
}

// Sequence numbers wrap around.
static __always_inline int after(__u32 a, __u32 b)
{
	return (__s32)(a - b) > 0;
}

static __always_inline int load(struct __sk_buff *skb, __u32 offset, void *to, __u32 n)
{
	return bpf_skb_load_bytes(skb, offset, to, n); // also from where the packet is not linear
}

// link_header is the length of what comes before the IP header. Some devices (netkit, tun) have no link layer.
static __always_inline __u32 link_header(struct __sk_buff *skb)
{
	__u64 first, network;

	if (load(skb, 0, &first, sizeof(first)))
		return ETHERNET_HEADER;
	if (bpf_skb_load_bytes_relative(skb, 0, &network, sizeof(network), BPF_HDR_START_NET))
		return ETHERNET_HEADER;
	return first == network ? 0 : ETHERNET_HEADER;
}

// read_ip4 gives the length of the IP header, or 0 if there is no TCP header behind it.
static __always_inline __u32 read_ip4(struct __sk_buff *skb, struct segment *s)
{
	struct ip4_header ip;

	if (load(skb, s->link, &ip, sizeof(ip)))
		return 0;
	if (ip.protocol != IPPROTO_TCP)
		return 0;
	if (ip.fragment & bpf_htons(0x3fff)) // TCP does not fragment
		return 0;
	s->key.remote[2] = s->key.local[2] = bpf_htonl(0xffff);
	s->key.remote[3] = ip.source;
	s->key.local[3] = ip.dest;
	// A packet that is too long for its own length field has none (BIG TCP).
	s->length = ip.length ? bpf_ntohs(ip.length) : skb->len - s->link;
	return (ip.version & 0x0f) * 4;
}

static __always_inline __u32 read_ip6(struct __sk_buff *skb, struct segment *s)
{
	struct ip6_header ip;
	__u32 offset = sizeof(ip);
	__u8 extension[2];
	__u8 next;

	if (load(skb, s->link, &ip, sizeof(ip)))
		return 0;
	__builtin_memcpy(s->key.remote, ip.source, sizeof(ip.source));
	__builtin_memcpy(s->key.local, ip.dest, sizeof(ip.dest));
	s->length = ip.length ? sizeof(ip) + bpf_ntohs(ip.length) : skb->len - s->link;
	next = ip.next;
#pragma unroll
	for (int i = 0; i < MAX_EXTENSIONS; i++) {
		if (next == IPPROTO_TCP)
			return offset;
		if (next != IPPROTO_HOPOPTS && next != IPPROTO_ROUTING && next != IPPROTO_DSTOPTS)
			return 0;
		if (load(skb, s->link + offset, extension, sizeof(extension)))
			return 0;
		next = extension[0];
		offset += 8 * (extension[1] + 1);
	}
	return 0;
}

// read says whether the packet is a segment for the port.
static __always_inline int read(struct __sk_buff *skb, struct segment *s)
{
	struct tcp_header tcp;
	__u32 offset;

	s->link = link_header(skb);
	if (skb->protocol == bpf_htons(ETH_P_IP))
		offset = read_ip4(skb, s);
	else if (skb->protocol == bpf_htons(ETH_P_IPV6))
		offset = read_ip6(skb, s);
	else
		return 0;
	if (!offset || load(skb, s->link + offset, &tcp, sizeof(tcp)))
		return 0;
	if (tcp.dest != bpf_htons(port))
		return 0;
	s->key.remote_port = bpf_ntohs(tcp.source);
	s->key.local_port = port;
	s->flags = tcp.flags;
	s->ack = bpf_ntohl(tcp.ack);
	s->seq = bpf_ntohl(tcp.seq);
	s->payload = offset + (tcp.offset >> 4) * 4;
	if (s->payload > s->length)
		return 0;
	s->end = s->seq + s->length - s->payload;
	return 1;
}

// The two scan functions are not inlined, and not static, so that the verifier goes through their loops once instead of once for each way
// that leads there.

// scan runs the automaton over at most CHUNK bytes, and gives the last entry with the flags of all.
__attribute__((noinline)) __u32 scan(struct __sk_buff *skb, __u32 offset, __u64 n, __u32 entry)
{
	__u32 zero = 0, seen = 0;
	struct chunk *c = bpf_map_lookup_elem(&scratch, &zero);
	void *inner = bpf_map_lookup_elem(&rules, &zero);
	struct automaton *a;
	__u64 at;

	if (!c || !inner)
		return ENDED;
	a = bpf_map_lookup_elem(inner, &zero);
	if (!a)
		return ENDED;
	if (n == 0 || n > CHUNK)
		return ENDED;
	// It stays the same. The verifier of Linux 5.10 does not see from a comparison with 0 that it is not 0.
	asm volatile("" : "+r"(n));
	n = ((n - 1) & (CHUNK - 1)) + 1;
	if (load(skb, offset, c->bytes, n))
		return ENDED; // no such bytes
	for (__u64 i = 0; i < CHUNK; i++) {
		if (i >= n)
			break;
		// Both indexes stay the same. The verifier of Linux 5.10 has to be shown their bounds where they are used.
		at = i;
		asm volatile("" : "+r"(at));
		at = (entry & STATE_MASK) << 8 | c->bytes[at & (CHUNK - 1)];
		asm volatile("" : "+r"(at));
		entry = a->next[at & (MAX_STATES * 256 - 1)];
		seen |= entry;
	}
	return (entry & STATE_MASK) | (seen & (FOUND | ENDED));
}

__attribute__((noinline)) __u32 scan_all(struct __sk_buff *skb, __u32 offset, __u32 n, __u32 state)
{
	__u32 entry = state, seen = 0, step;

	for (int i = 0; i < MAX_CHUNKS; i++) {
		step = n < CHUNK ? n : CHUNK;
		if (!step)
			break;
		entry = scan(skb, offset, step, entry & STATE_MASK);
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

#define TELL(size)                                                                                              \
	static __always_inline int tell_##size(struct __sk_buff *skb, __u32 link, struct event *head, __u64 n)  \
	{                                                                                                       \
		struct {                                                                                        \
			struct event event;                                                                     \
			__u8 packet[size];                                                                      \
		} *e;                                                                                           \
		if (n == 0)                                                                                     \
			return 0;                                                                               \
		e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);                                                \
		if (!e)                                                                                         \
			return 0;                                                                               \
		__builtin_memcpy(&e->event, head, sizeof(*head));                                               \
		/* As in scan. */                                                                               \
		asm volatile("" : "+r"(n));                                                                     \
		n = ((n - 1) & MAX_LENGTH) + 1;                                                                 \
		if (n > size || load(skb, link, e->packet, n)) {                                                \
			bpf_ringbuf_discard(e, 0);                                                              \
			return 0;                                                                               \
		}                                                                                               \
		bpf_ringbuf_submit(e, BPF_RB_FORCE_WAKEUP);                                                     \
		return 1;                                                                                       \
	}
TELL(SMALL)
TELL(MEDIUM)
TELL(LARGE)

// tell sends the packet to the agent, and says whether there was room.
static __always_inline int tell(struct __sk_buff *skb, struct segment *s, struct flow *f, enum event_kind kind)
{
	struct event e = {
		.key = s->key, .head = f->head, .seq = s->seq, .ack = s->ack,
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

// is_probe says whether a single byte on a connection of which nothing was seen is rather a keep-alive probe, which repeats a byte or
// makes one up, than the beginning of a request.
static __always_inline int is_probe(struct __sk_buff *skb, struct segment *s)
{
	__u8 byte;

	if (load(skb, s->link + s->payload, &byte, 1))
		return 1;
	return byte < 'A' || byte > 'Z';
}

// rest passes what does not concern anybody until the client has heard from the app again.
static __always_inline int rest(struct flow *f, struct segment *s)
{
	if (after(s->end, f->next))
		f->next = s->end;
	f->ack = s->ack;
	f->phase = REST;
	return PASS;
}

static __always_inline int held(struct flow *f, struct segment *s, __u64 now)
{
	if (!after(s->end, f->next))
		return PASS; // the app has it already
	if (after(s->seq, f->next))
		return PASS; // the app does not get it before the one that is held
	if (now < f->held_at + hold_ns) { // the agent may just have prolonged it
		count(DROPPED_AGAIN);
		return TC_ACT_SHOT;
	}
	count(GAVE_UP);
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

// head looks at the next bytes of a head, which begin skip bytes into the payload.
static __always_inline int head(struct __sk_buff *skb, struct flow *f, struct segment *s, __u64 now)
{
	__u32 skip = f->next - s->seq, zero = 0, entry;
	void *inner = bpf_map_lookup_elem(&rules, &zero);
	struct automaton *a;

	if (!inner)
		return rest(f, s);
	a = bpf_map_lookup_elem(inner, &zero);
	if (!a)
		return rest(f, s);
	if (f->generation != a->generation) {
		// The rules have changed in the middle of a head. Nothing is known about its first part.
		if (f->state != START || f->next != f->head) {
			f->state = MIDDLE;
			f->flags |= FLAG_FOUND;
		}
		f->generation = a->generation;
	}
	entry = scan_all(skb, s->link + s->payload + skip, s->end - f->next, f->state);
	if (entry & FOUND)
		f->flags |= FLAG_FOUND;
	if (!(entry & ENDED) && !(f->flags & FLAG_GAP)) {
		// The app cannot act on a head without an end, so this may pass. The agent will need it in order to decide.
		if (s->end - f->head > MAX_HEAD)
			return rest(f, s);
		f->state = entry & STATE_MASK;
		f->next = s->end;
		tell(skb, s, f, COPIED);
		return PASS;
	}
	if (!(f->flags & (FLAG_FOUND | FLAG_GAP)))
		return rest(f, s);
	// The agent may decide before tell has returned, and changes the flow then.
	f->held_at = now;
	f->phase = HELD;
	if (!tell(skb, s, f, WAITS)) {
		count(UNTOLD);
		return rest(f, s);
	}
	count(HELD_BACK);
	return TC_ACT_SHOT;
}

// gap deals with a packet that has overtaken another. The app does not get it before that other has come, which is then held.
static __always_inline int gap(struct __sk_buff *skb, struct flow *f, struct segment *s)
{
	f->flags |= FLAG_GAP;
	tell(skb, s, f, COPIED);
	return PASS;
}

SEC("tc")
int watch(struct __sk_buff *skb)
{
	struct segment s = {};
	struct flow *f;
	__u64 now;
	int heard;

	if (!read(skb, &s))
		return PASS;
	f = bpf_map_lookup_elem(&flows, &s.key);
	if (!f)
		return PASS; // by far the most frequent way out
	if (s.flags & (TCP_SYN | TCP_RST)) {
		// The connection has ended, and another one may begin between the same addresses.
		bpf_map_delete_elem(&flows, &s.key);
		return PASS;
	}
	if (s.end == s.seq)
		return PASS;
	now = bpf_ktime_get_ns();
	if (agent_is_silent(now)) {
		f->phase = UNKNOWN;
		return PASS;
	}
	if (f->phase == UNKNOWN) {
		if (s.end - s.seq == 1 && is_probe(skb, &s))
			return PASS;
		begin(f, &s, s.seq);
		f->furthest = s.end;
		return head(skb, f, &s, now);
	}
	if (after(s.end, f->furthest))
		f->furthest = s.end;
	if (f->phase == HELD)
		return held(f, &s, now);
	if (!after(s.end, f->next))
		return PASS; // the app has it already
	heard = after(s.ack, f->ack);
	if (!heard && f->phase == REST)
		return rest(f, &s);
	if (heard) {
		int missing = after(s.seq, f->next);
		// A gap that is still there although the app has spoken was never one for the app: something went by unseen.
		int lasting = f->phase == HEAD && (f->flags & FLAG_GAP);

		begin(f, &s, missing && lasting ? s.seq : f->next);
	}
	if (after(s.seq, f->next))
		return gap(skb, f, &s);
	return head(skb, f, &s, now);
}

char _license[] SEC("license") = "GPL";
