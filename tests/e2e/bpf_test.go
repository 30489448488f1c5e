// SPDX-License-Identifier: Apache-2.0

//go:build e2e

package e2e

import (
	"errors"
	"fmt"
	"os"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
)

// loadedPrograms lists what the kernel holds of sidestep's programs, and the links of programs that
// steer.
func loadedPrograms() ([]string, error) {
	var found []string
	for id := ebpf.ProgramID(0); ; {
		next, err := ebpf.ProgramGetNextID(id)
		if errors.Is(err, os.ErrNotExist) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("list BPF programs: %w", err)
		}
		id = next
		program, err := ebpf.NewProgramFromID(id)
		if err != nil {
			continue // gone meanwhile
		}
		if program.Type() == ebpf.SkLookup {
			found = append(found, fmt.Sprintf("program %d %s", id, program))
		}
		program.Close()
	}
	links := new(link.Iterator)
	defer links.Close()
	for links.Next() {
		if info, err := links.Link.Info(); err == nil && info.NetNs() != nil {
			found = append(found, fmt.Sprintf("link %d to netns %d", info.ID, info.NetNs().NetnsInode))
		}
	}
	return found, links.Err()
}
