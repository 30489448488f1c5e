// SPDX-License-Identifier: Apache-2.0

package podnet

import (
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// timeWait is how long the kernel keeps an ended connection in TIME_WAIT (TCP_TIMEWAIT_LEN).
	timeWait = time.Minute
	// boundsFor is how long the port range is cached.
	boundsFor = 10 * time.Second
)

// ports is what is known about the local ports of a namespace.
type ports struct {
	next atomic.Uint32 // the next port to try

	mu          sync.Mutex
	low         uint16
	count       uint32
	read        time.Time // when low and count were
	began       time.Time // the present period of timeWait
	now, before uint32    // dials in it, and in the one before
}

// bounds returns the namespace's net.ipv4.ip_local_port_range, which is for both families.
func (p *ports) bounds(n *Namespace) (low uint16, count uint32, err error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if time.Since(p.read) < boundsFor {
		return p.low, p.count, nil
	}
	var text []byte
	if err := n.Do(func() (err error) {
		text, err = os.ReadFile("/proc/sys/net/ipv4/ip_local_port_range")
		return err
	}); err != nil {
		return 0, 0, fmt.Errorf("read the pod's range of local ports: %w", err)
	}
	var high uint16
	if _, err := fmt.Sscan(string(text), &low, &high); err != nil || low > high {
		return 0, 0, fmt.Errorf("read the pod's range of local ports: %q: %w", text, err)
	}
	p.low, p.count, p.read = low, uint32(high-low)+1, time.Now()
	return p.low, p.count, nil
}

// scarce counts a dial. It reports whether connections in TIME_WAIT may occupy so many ports that
// the kernel would search long for a free one.
func (p *ports) scarce(count uint32) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	switch since := time.Since(p.began); {
	case since > 2*timeWait:
		p.began, p.now, p.before = time.Now(), 0, 0
	case since > timeWait:
		p.began, p.now, p.before = p.began.Add(timeWait), 0, p.now
	}
	p.now++
	return p.now+p.before > count/4
}
