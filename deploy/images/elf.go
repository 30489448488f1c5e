// SPDX-License-Identifier: Apache-2.0

package main

import (
	"debug/elf"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
)

var architectures = map[elf.Machine]string{
	elf.EM_X86_64:  "amd64",
	elf.EM_AARCH64: "arm64",
}

// staticArchitecture returns the GOARCH of a program, and an error when the program could not run
// in an image that holds nothing else.
func staticArchitecture(path string) (string, error) {
	program, err := elf.Open(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("%s is missing: build it with CGO_ENABLED=0 go build, or all with make images", path)
	}
	if err != nil {
		return "", fmt.Errorf("read program %s: %w", path, err)
	}
	defer program.Close()
	for _, segment := range program.Progs {
		if segment.Type == elf.PT_INTERP {
			return "", fmt.Errorf("%s is dynamically linked and its image would have no libraries: build it with CGO_ENABLED=0", filepath.Base(path))
		}
	}
	architecture, known := architectures[program.Machine]
	if !known {
		return "", fmt.Errorf("%s is built for %s, for which there are no images", filepath.Base(path),
			program.Machine)
	}
	return architecture, nil
}
