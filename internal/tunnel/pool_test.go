// SPDX-License-Identifier: Apache-2.0

package tunnel_test

import (
	"io"
	"sync"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
	"google.golang.org/grpc/mem"

	"sidestep.dev/sidestep/internal/tunnel"
)

// countingPool knows what it has given out. What comes back is overwritten, so that who still uses
// it finds other bytes than expected, and a buffer that comes back twice is noticed.
type countingPool struct {
	t testing.TB

	mu       sync.Mutex
	out      map[*byte]bool
	bytes    int
	most     int
	free     map[int][]*[]byte
	returned int
}

func newCountingPool(t testing.TB) *countingPool {
	return &countingPool{t: t, out: map[*byte]bool{}, free: map[int][]*[]byte{}}
}

func (p *countingPool) Get(length int) *[]byte {
	p.mu.Lock()
	defer p.mu.Unlock()
	size := max(2<<10, 1<<bits(length)) // above the size that mem does not pool
	var b *[]byte
	if list := p.free[size]; len(list) > 0 {
		b = list[len(list)-1]
		p.free[size] = list[:len(list)-1]
	} else {
		s := make([]byte, size)
		b = &s
	}
	*b = (*b)[:size]
	p.out[&(*b)[0]] = true
	p.bytes += size
	p.most = max(p.most, p.bytes)
	*b = (*b)[:length]
	return b
}

func bits(n int) (b int) {
	for 1<<b < n {
		b++
	}
	return b
}

func (p *countingPool) Put(b *[]byte) {
	p.mu.Lock()
	defer p.mu.Unlock()
	*b = (*b)[:cap(*b)]
	key := &(*b)[0]
	if !p.out[key] {
		p.t.Error("a buffer came back twice, or to another pool than its own")
		return
	}
	delete(p.out, key)
	for i := range *b {
		(*b)[i] = 0xa5
	}
	p.bytes -= cap(*b)
	p.returned++
	p.free[cap(*b)] = append(p.free[cap(*b)], b)
}

func (p *countingPool) outstanding() (buffers, bytes int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return len(p.out), p.bytes
}

func (p *countingPool) isEmpty() bool {
	n, _ := p.outstanding()
	return n == 0
}

// newCounted starts a manager that, with both ends, takes every buffer from counting pools.
func newCounted(t testing.TB) (m *manager, chunks, rest *countingPool) {
	chunks, rest = newCountingPool(t), newCountingPool(t)
	return newManagerWithPool(t, overTLS, rest, tunnel.Pools(chunks, rest)), chunks, rest
}

func TestEveryBufferComesBackOnceAndIsNotUsedAfterwards(t *testing.T) {
	m, chunks, rest := newCounted(t)
	client, app, agent, laptop := m.through(t)
	exchange(t, client, app, 24<<20)
	assert.NoError(t, soon(t, agent).err)
	assert.NoError(t, soon(t, laptop).err)
	near, far := m.pair(t)
	exchange(t, near, far, 4<<20)
	require.NoError(t, near.Close())
	require.NoError(t, far.Close())
	assert.Eventually(t, chunks.isEmpty, 10*time.Second, time.Millisecond, "chunks were lost")
	_ = m.agent.Close()
	_ = m.laptop.Close()
	m.server.Stop()
	assert.Eventually(t, rest.isEmpty, 10*time.Second, time.Millisecond, "buffers of gRPC were lost")
	assert.Positive(t, chunks.returned)
	assert.Positive(t, rest.returned)
}

// gRPC leaves what was queued for a stream that it has cancelled to the garbage collector; so this
// is about the tunnel's ends alone.
func TestBuffersOfResetTunnelsComeBack(t *testing.T) {
	chunks, rest := newCountingPool(t), newCountingPool(t)
	for i := range 60 {
		near, far := pipedPair(t, tunnel.Pools(chunks, rest))
		go func() { _, _ = io.Copy(near, noise(1, 64<<20)) }()
		go func() { _, _ = io.Copy(far, noise(2, 64<<20)) }()
		_, err := io.CopyN(io.Discard, far, int64(i)<<12)
		require.NoError(t, err)
		switch i % 4 {
		case 0:
			near.Reset("enough")
			_, _ = io.Copy(io.Discard, far)
			require.NoError(t, far.Close())
		case 1:
			require.NoError(t, far.Close())
			_, _ = io.Copy(io.Discard, near)
			require.NoError(t, near.Close())
		case 2:
			near.Reset("enough")
			far.Reset("enough")
		case 3:
			require.NoError(t, near.Close())
			require.NoError(t, far.Close())
		}
	}
	noGoroutines(t)
	assert.Eventually(t, chunks.isEmpty, 20*time.Second, time.Millisecond, "chunks were lost")
	assert.Eventually(t, rest.isEmpty, 20*time.Second, time.Millisecond, "small buffers were lost")
}

func TestIdleTCPConnectionsHoldNoChunk(t *testing.T) {
	m, chunks, _ := newCounted(t)
	client, app, _, _ := m.through(t)
	_, err := client.Write(make([]byte, 100<<10))
	require.NoError(t, err)
	_, err = io.ReadFull(app, make([]byte, 100<<10))
	require.NoError(t, err)
	assert.Eventually(t, chunks.isEmpty, 10*time.Second, time.Millisecond)
	require.NoError(t, client.Close())
	require.NoError(t, app.Close())
}

func TestFewBytesDoNotKeepAChunk(t *testing.T) {
	chunks, rest := newCountingPool(t), newCountingPool(t)
	for _, size := range []int{1, 1000, 10_000} {
		chunk := chunks.Get(tunnel.ChunkSize)
		(*chunk)[size-1] = 7
		for _, b := range []mem.Buffer{tunnel.CopyOf(chunks, rest, (*chunk)[:size]),
			tunnel.Filled(chunks, rest, chunk, size)} {
			assert.Equal(t, size, b.Len())
			assert.EqualValues(t, 7, b.ReadOnlyData()[size-1])
			_, bytes := rest.outstanding()
			assert.LessOrEqual(t, bytes, 2*32<<10)
			defer b.Free()
		}
		assert.True(t, chunks.isEmpty())
	}
}
