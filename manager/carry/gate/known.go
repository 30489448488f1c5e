// SPDX-License-Identifier: Apache-2.0

package gate

import (
	"sync"
	"time"
)

const (
	// knownFor is how long an address is known after a peer there was proven.
	knownFor = time.Hour
	maxKnown = 20_000
)

// Known are the addresses from which peers come that are proven. The API server's is among them,
// through which laptops come, and those of node agents. Where there is no room, strangers give way to
// who comes from there, and not the other way round. It is safe for concurrent use.
type Known struct {
	now func() time.Time

	mu sync.Mutex
	at map[string]time.Time
}

// NewKnown returns Known without addresses. Gates share it.
func NewKnown() *Known { return &Known{now: time.Now, at: map[string]time.Time{}} }

func (k *Known) add(host string) {
	k.mu.Lock()
	defer k.mu.Unlock()
	now := k.now()
	if _, present := k.at[host]; !present && len(k.at) >= maxKnown {
		for host, at := range k.at {
			if now.Sub(at) >= knownFor {
				delete(k.at, host)
			}
		}
		if len(k.at) >= maxKnown {
			return
		}
	}
	k.at[host] = now
}

func (k *Known) has(host string) bool {
	k.mu.Lock()
	defer k.mu.Unlock()
	at, present := k.at[host]
	return present && k.now().Sub(at) < knownFor
}
