// SPDX-License-Identifier: Apache-2.0

package nodeagent

import (
	"errors"
	"fmt"
	"math"
	"runtime"
	"runtime/debug"
	"runtime/metrics"
)

const (
	// goShare is the part of GOMEMLIMIT, the container's limit, that Go may use: the kernel charges
	// the container for its sockets, too.
	goShare = 0.8
	// liveShare is the part of Go's own limit from which on no connections are taken. Above it,
	// ever more time goes into collecting garbage, and then the kernel kills the process, with all
	// connections.
	liveShare = 0.7
)

var errMemory = errors.New("too little memory")

// reserveMemory leaves a part of the memory limit to the kernel.
func reserveMemory() {
	if limit := debug.SetMemoryLimit(-1); limit < math.MaxInt64 {
		debug.SetMemoryLimit(int64(goShare * float64(limit)))
	}
}

// enoughMemory says whether there is memory for more connections.
func enoughMemory() error {
	limit := debug.SetMemoryLimit(-1)
	if limit == math.MaxInt64 {
		return nil
	}
	most := uint64(liveShare * float64(limit))
	used := inUse("/gc/heap/live:bytes")
	if used <= most && inUse("/memory/classes/heap/objects:bytes") > most {
		runtime.GC() // how much of what was allocated since the last collection is garbage?
		used = inUse("/gc/heap/live:bytes")
	}
	if used > most {
		return fmt.Errorf("%w: %d of the %d MiB of memory that Go may have are in use (give the node agent more, see nodeagent.resources of the chart)", errMemory, used>>20, limit>>20)
	}
	return nil
}

// inUse sums up what cannot be given back, with the heap as the metric counts it. In bytes.
func inUse(heap string) (sum uint64) {
	used := []metrics.Sample{{Name: heap}, {Name: "/memory/classes/heap/stacks:bytes"},
		{Name: "/memory/classes/metadata/other:bytes"}}
	metrics.Read(used)
	for _, s := range used {
		sum += s.Value.Uint64()
	}
	return sum
}
