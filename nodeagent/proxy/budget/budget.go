// SPDX-License-Identifier: Apache-2.0

// Package budget bounds the memory that all connections of a node agent hold for their clients, so
// that no client can take the node agent, which the pods of a node share, to its memory limit.
//
// What is counted is what a peer can make the proxy keep: heads that are not complete, requests
// that may have to be sent again, what waits for a peer that does not read. Beyond the budget
// connections turn raw, which costs nothing, and requests go to the app.
package budget

import "sync/atomic"

// Bytes is what all connections of a node agent may hold together. With Go's garbage beside it,
// this is a third of the chart's memory limit of 512 MiB.
const Bytes = 64 << 20

// Limit is a bound that a connection can meet.
type Limit int

const (
	Memory  Limit = iota // Bytes
	Streams              // diverted streams of one HTTP/2 connection
	Resets               // streams that a client resets before they are answered
	Fields               // decoded header fields of one request or response
	Frames               // CONTINUATION frames of one header block, or bytes of one frame
	limits
)

// String returns the value of the label limit in metrics.
func (l Limit) String() string {
	return [...]string{"memory", "streams", "resets", "fields", "frames"}[l]
}

// All returns all limits.
func All() (all []Limit) {
	for l := range limits {
		all = append(all, l)
	}
	return all
}

// Budget is shared by all connections. The zero value is ready; nil has no bounds.
type Budget struct {
	held atomic.Int64
	met  [limits]atomic.Uint64
}

// Held returns how many bytes connections hold.
func (b *Budget) Held() int64 { return b.held.Load() }

// Met counts that a connection met a limit.
func (b *Budget) Met(l Limit) {
	if b != nil {
		b.met[l].Add(1)
	}
}

// Times returns how often a limit was met.
func (b *Budget) Times(l Limit) uint64 { return b.met[l].Load() }

// Account is what one connection holds. Its user sees to it that calls do not overlap.
type Account struct {
	Budget *Budget
	held   int64
}

// Set says that the connection holds n bytes. It reports whether the budget has room for them: if
// not, nothing has changed. Less is always possible.
func (a *Account) Set(n int) bool {
	more := int64(n) - a.held
	if more == 0 || a.Budget == nil {
		return true
	}
	if total := a.Budget.held.Add(more); more > 0 && total > Bytes {
		a.Budget.held.Add(-more)
		a.Budget.Met(Memory)
		return false
	}
	a.held = int64(n)
	return true
}

// Room reports whether the budget has room for n bytes more.
func (a *Account) Room(n int) bool {
	return a.Budget == nil || a.Budget.held.Load()+int64(n) <= Bytes
}

// Owe says that the connection holds n bytes, whether or not there is room. It is for what has
// already happened, and is small.
func (a *Account) Owe(n int) {
	if a.Budget != nil {
		a.Budget.held.Add(int64(n) - a.held)
		a.held = int64(n)
	}
}
