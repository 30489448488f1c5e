// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"bytes"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"
	"google.golang.org/protobuf/proto"

	"sidestep.dev/sidestep/api/clientpb"
	"sidestep.dev/sidestep/api/tunnelpb"
	"sidestep.dev/sidestep/internal/tunnel"
)

// scattered cuts data into buffers of the pool, each of at most size bytes, as a transport might.
func scattered(pool mem.BufferPool, data []byte, size int) mem.BufferSlice {
	var out mem.BufferSlice
	for len(data) > 0 {
		n := min(size, len(data))
		b := pool.Get(n)
		copy(*b, data)
		out = append(out, mem.NewBuffer(b, pool))
		data = data[n:]
	}
	return out
}

func TestFramesAreProtobufOnTheWire(t *testing.T) {
	tests := map[string]*tunnelpb.Frame{
		"the empty frame":         {},
		"a frame without data":    {Kind: tunnelpb.Frame_FIN},
		"a frame with data":       {Data: []byte("hello")},
		"a frame with both":       {Kind: tunnelpb.Frame_RESET, Data: []byte("why")},
		"a frame with all":        {Kind: tunnelpb.Frame_RESET, Data: []byte("why"), Gone: true},
		"a large frame":           {Data: bytes.Repeat([]byte("0123456789abcdef"), 8<<10)},
		"a kind of the future":    {Kind: 99, Data: []byte("x")},
		"a kind that is negative": {Kind: -1, Data: []byte("x")},
	}
	for name, frame := range tests {
		t.Run(name, func(t *testing.T) {
			pool := newCountingPool(t)
			data := scattered(pool, frame.Data, 5000)
			sent := &tunnel.Frame{Kind: frame.Kind, Data: data, Gone: frame.Gone}
			wire, err := tunnel.Codec{}.Marshal(sent)
			require.NoError(t, err)
			sent.Free()
			want, err := proto.Marshal(frame)
			require.NoError(t, err)
			assert.True(t, bytes.Equal(want, wire.Materialize()), "the bytes differ from protobuf's")

			var received tunnel.Frame
			require.NoError(t, tunnel.Codec{}.Unmarshal(wire, &received))
			wire.Free()
			assert.Equal(t, frame.Kind, received.Kind)
			assert.Equal(t, frame.Gone, received.Gone)
			assert.True(t, bytes.Equal(frame.Data, received.Data.Materialize()))
			received.Free()
			assert.True(t, pool.isEmpty(), "a reference was lost")
		})
	}
}

func TestDataOfFramesIsNotCopied(t *testing.T) {
	data := mem.SliceBuffer(bytes.Repeat([]byte("x"), 1<<16))
	wire, err := tunnel.Codec{}.Marshal(&tunnel.Frame{Data: mem.BufferSlice{data}})
	require.NoError(t, err)
	require.Len(t, wire, 2)
	assert.Same(t, &data[0], &wire[1].ReadOnlyData()[0])
	var received tunnel.Frame
	require.NoError(t, tunnel.Codec{}.Unmarshal(wire, &received))
	require.Len(t, received.Data, 1)
	assert.Same(t, &data[0], &received.Data[0].ReadOnlyData()[0])
}

func TestOtherMessagesAreOrdinaryProtobuf(t *testing.T) {
	assert.Equal(t, "proto", tunnel.Codec{}.Name())
	hello := &clientpb.ClientHello{Session: "s", Holder: "me@laptop", Protocol: 1}
	wire, err := tunnel.Codec{}.Marshal(hello)
	require.NoError(t, err)
	received := &clientpb.ClientHello{}
	require.NoError(t, tunnel.Codec{}.Unmarshal(wire, received))
	assert.True(t, proto.Equal(hello, received))
	_, err = tunnel.Codec{}.Marshal("not a message")
	assert.Error(t, err)
	assert.Error(t, tunnel.Codec{}.Unmarshal(wire, "not a message"))
}

func TestAFrameOfManyGroupsIsSkippedQuickly(t *testing.T) {
	wire := bytes.Repeat([]byte{0x1b, 0x1c}, 1<<19)
	var f tunnel.Frame
	within(t, 10*time.Second, func() {
		assert.NoError(t, tunnel.Codec{}.Unmarshal(scattered(mem.NopBufferPool{}, wire, 1000), &f))
	})
}

// FuzzFrame holds the codec against protobuf's own: the same bytes decode to the same frame or fail
// in both, however they are scattered, and no buffer is lost or freed twice.
func FuzzFrame(f *testing.F) {
	for _, seed := range frameSeeds() {
		f.Add(seed, 1)
		f.Add(seed, 3000)
	}
	f.Fuzz(func(t *testing.T, wire []byte, size int) {
		size = max(size, 1, len(wire)/100)
		pool := newCountingPool(t)
		buffers := scattered(pool, wire, size)
		want := &tunnelpb.Frame{}
		wantErr := proto.Unmarshal(wire, want)
		var got tunnel.Frame
		err := tunnel.Codec{}.Unmarshal(buffers, &got)
		buffers.Free()
		if wantErr != nil {
			assert.Error(t, err, "protobuf says: %v", wantErr)
			assert.Empty(t, got.Data)
			assert.True(t, pool.isEmpty(), "a reference was lost after an error")
			return
		}
		require.NoError(t, err)
		assert.Equal(t, want.Kind, got.Kind)
		assert.Equal(t, want.Gone, got.Gone)
		assert.True(t, bytes.Equal(want.Data, got.Data.Materialize()))

		again, err := tunnel.Codec{}.Marshal(&got)
		require.NoError(t, err)
		got.Free()
		canonical, err := proto.Marshal(&tunnelpb.Frame{Kind: want.Kind, Data: want.Data, Gone: want.Gone})
		require.NoError(t, err)
		assert.True(t, bytes.Equal(canonical, again.Materialize()))
		again.Free()
		assert.True(t, pool.isEmpty(), "a reference was lost")
	})
}

func frameSeeds() [][]byte {
	valid := func(f *tunnelpb.Frame) []byte {
		b, err := proto.Marshal(f)
		if err != nil {
			panic(err)
		}
		return b
	}
	return [][]byte{
		{},
		valid(&tunnelpb.Frame{Data: []byte("hello")}),
		valid(&tunnelpb.Frame{Kind: tunnelpb.Frame_RESET, Data: bytes.Repeat([]byte("r"), 300)}),
		valid(&tunnelpb.Frame{Kind: -1}),
		valid(&tunnelpb.Frame{Kind: tunnelpb.Frame_RESET, Data: []byte("r"), Gone: true}),
		{0x12, 0x02, 'a', 'b', 0x12, 0x01, 'c', 0x08, 0x03, 0x08, 0x04}, // the last of several values counts
		{0x12, 0x05, 'a'}, // cut off
		// a length of 2^64-1
		{0x12, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01},
		// a varint of 65 bits
		{0x08, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02},
		// a tag longer than it has to be
		{0x88, 0x80, 0x80, 0x80, 0x00, 0x02},
		{0x00, 0x00}, // field 0
		// a field number that is too large
		{0xf8, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x01, 0x00},
		// the known fields with each other's wire types
		{0x0a, 0x01, 'x', 0x10, 0x05},
		// unknown fields, then nothing
		{0x18, 0x01, 0x21, 1, 2, 3, 4, 5, 6, 7, 8, 0x2d, 1, 2, 3, 4, 0x32, 0x01, 'u', 0x08},
		{0x1b, 0x08, 0x01, 0x23, 0x24, 0x1c, 0x08, 0x03}, // groups
		// a group without an end
		{0x1b, 0x08, 0x01},
		// an end without a group
		{0x1c},
		// wire types that do not exist
		{0x0e, 0x0f},
	}
}

func TestSizeIsTheLengthOfTheEncodedFrame(t *testing.T) {
	for _, f := range []tunnel.Frame{
		{}, {Kind: tunnelpb.Frame_DATA}, {Kind: tunnelpb.Frame_RESET, Gone: true},
		{Kind: tunnelpb.Frame_DATA, Data: mem.BufferSlice{mem.SliceBuffer(make([]byte, 1))}},
		{Kind: tunnelpb.Frame_DATA, Data: mem.BufferSlice{mem.SliceBuffer(make([]byte, 200)),
			mem.SliceBuffer(make([]byte, 65000))}},
	} {
		encoded, err := tunnel.Codec{}.Marshal(&f)
		require.NoError(t, err)
		assert.Equal(t, encoded.Len(), f.Size())
	}
}
