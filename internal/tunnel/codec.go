// SPDX-License-Identifier: Apache-2.0

package tunnel

import (
	"encoding/binary"
	"errors"
	"fmt"

	"google.golang.org/grpc/encoding"
	"google.golang.org/grpc/encoding/proto"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/encoding/protowire"

	"sidestep.dev/sidestep/api/tunnelpb"
)

// Frame is tunnelpb.Frame with its data in the transport's own buffers. Whoever holds a Frame owns
// a reference to its data and gives it back with Free: the receiver of a frame, and its sender
// after SendMsg, whether that failed or not, since gRPC takes references of its own.
type Frame struct {
	Kind tunnelpb.Frame_Kind
	Data mem.BufferSlice
	Gone bool // of RESET: what carried the tunnel is gone
}

// Free gives the data back.
func (f *Frame) Free() {
	f.Data.Free()
	f.Data = nil
}

// Size is the length of the encoded frame.
func (f *Frame) Size() int {
	size := 0
	if f.Kind != 0 {
		size = 1 + protowire.SizeVarint(uint64(f.Kind))
	}
	if n := f.Data.Len(); n > 0 {
		size += 1 + protowire.SizeVarint(uint64(n)) + n
	}
	if f.Gone {
		size += 2
	}
	return size
}

// Codec encodes *Frame without copying its data, on the wire the same as tunnelpb.Frame, and every
// other message as protobuf.
type Codec struct{}

var _ encoding.CodecV2 = Codec{}

// Name is that of the protobuf codec, since the bytes are protobuf.
func (Codec) Name() string { return proto.Name }

// Marshal gives a message's bytes; those of a Frame share its data.
func (Codec) Marshal(v any) (mem.BufferSlice, error) {
	f, ok := v.(*Frame)
	if !ok {
		return encoding.GetCodecV2(proto.Name).Marshal(v)
	}
	head := make([]byte, 0, 16)
	if f.Kind != 0 {
		head = append(head, tagKind)
		head = binary.AppendUvarint(head, uint64(f.Kind))
	}
	if n := f.Data.Len(); n > 0 {
		head = append(head, tagData)
		head = binary.AppendUvarint(head, uint64(n))
	}
	out := make(mem.BufferSlice, 0, 2+len(f.Data))
	out = append(out, mem.SliceBuffer(head))
	f.Data.Ref()
	out = append(out, f.Data...)
	if f.Gone {
		out = append(out, mem.SliceBuffer{tagGone, 1})
	}
	return out, nil
}

// Unmarshal fills a message; a Frame keeps references to the bytes instead of copies.
func (Codec) Unmarshal(data mem.BufferSlice, v any) error {
	f, ok := v.(*Frame)
	if !ok {
		return encoding.GetCodecV2(proto.Name).Unmarshal(data, v)
	}
	f.Kind, f.Data, f.Gone = 0, nil, false
	if data.Len() > maxMessage { // servers take in larger messages of other kinds
		return errLarge
	}
	c := cursor{rest: data}
	if err := f.decode(&c); err != nil {
		f.Free()
		return fmt.Errorf("decode tunnel frame: %w", err)
	}
	return nil
}

// The fields of Frame on the wire: number<<3 | wire type.
const (
	tagKind = 1 << 3 // a varint: type 0
	tagData = 2<<3 | 2
	tagGone = 3 << 3
)

var (
	errMalformed = errors.New("malformed message")
	errLarge     = errors.New("larger than a tunnel frame may be")
)

func (f *Frame) decode(c *cursor) error {
	for !c.done() {
		tag, err := c.uvarint()
		if err != nil {
			return err
		}
		if tag>>3 == 0 || tag>>3 > 1<<29-1 {
			return errMalformed
		}
		switch {
		case tag == tagKind:
			kind, err := c.uvarint()
			if err != nil {
				return err
			}
			f.Kind = tunnelpb.Frame_Kind(int32(kind))
		case tag == tagGone:
			gone, err := c.uvarint()
			if err != nil {
				return err
			}
			f.Gone = gone != 0
		case tag == tagData:
			n, err := c.uvarint()
			if err != nil {
				return err
			}
			f.Data.Free() // the last of several wins, as in protobuf
			if f.Data, err = c.take(n, true); err != nil {
				return err
			}
		default:
			if err := c.skip(tag>>3, tag&7); err != nil {
				return err
			}
		}
	}
	return nil
}

// cursor reads through a BufferSlice.
type cursor struct {
	rest mem.BufferSlice
	off  int // into rest[0]
}

func (c *cursor) done() bool {
	for len(c.rest) > 0 && c.off == c.rest[0].Len() {
		c.rest, c.off = c.rest[1:], 0
	}
	return len(c.rest) == 0
}

func (c *cursor) uvarint() (uint64, error) {
	var x uint64
	for shift := 0; shift < 64; shift += 7 {
		if c.done() {
			return 0, errMalformed
		}
		b := c.rest[0].ReadOnlyData()[c.off]
		c.off++
		if shift == 63 && b > 1 {
			return 0, errMalformed
		}
		x |= uint64(b&0x7f) << shift
		if b < 0x80 {
			return x, nil
		}
	}
	return 0, errMalformed
}

// take passes n bytes, and returns references to them if they are wanted.
func (c *cursor) take(n uint64, want bool) (mem.BufferSlice, error) {
	var out mem.BufferSlice
	for n > 0 {
		if c.done() {
			out.Free()
			return nil, errMalformed
		}
		size := min(n, uint64(c.rest[0].Len()-c.off))
		if want {
			if out == nil {
				out = make(mem.BufferSlice, 0, len(c.rest))
			}
			out = append(out, c.rest[0].Slice(c.off, c.off+int(size)))
		}
		c.off += int(size)
		n -= size
	}
	return out, nil
}

// skip passes a field that this version does not know.
func (c *cursor) skip(field, wireType uint64) error {
	n := uint64(0)
	var err error
	switch wireType {
	case 0:
		_, err = c.uvarint()
		return err
	case 1:
		n = 8
	case 2:
		if n, err = c.uvarint(); err != nil {
			return err
		}
	case 5:
		n = 4
	default:
		return c.skipGroup(field, wireType)
	}
	_, err = c.take(n, false)
	return err
}

// skipGroup passes a group, which only a peer with a stranger schema than ours would send: it may
// cost a copy, but one only.
func (c *cursor) skipGroup(field, wireType uint64) error {
	if len(c.rest) > 1 {
		joined := c.rest.Materialize()[c.off:]
		c.rest, c.off = mem.BufferSlice{mem.SliceBuffer(joined)}, 0
	}
	var ahead []byte
	if len(c.rest) > 0 {
		ahead = c.rest[0].ReadOnlyData()[c.off:]
	}
	n := protowire.ConsumeFieldValue(protowire.Number(field), protowire.Type(wireType), ahead)
	if n < 0 {
		return protowire.ParseError(n)
	}
	c.off += n
	return nil
}
