// SPDX-License-Identifier: Apache-2.0

// Package machine boots kernels in QEMU, and finds out whether this computer can do so with its
// processor's help.
package machine

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"
	"time"
)

// Accelerators.
const (
	KVM = "kvm"
	TCG = "tcg" // in software: slow, and works everywhere
)

// Machine is one that boots, does what its initramfs says, and powers off.
type Machine struct {
	Image, Initramfs string
	Accelerator      string
	Memory           int // MiB
	CPUs             int
}

// ErrRunning is given for a machine that did not power off in time.
var ErrRunning = errors.New("the machine was still running")

// consoleEnd is how many bytes of a console are shown.
const consoleEnd = 6 << 10

// Run boots the machine and copies its second serial port to results until it has ended, which it
// must within limit. It returns the end of the kernel's console. A kernel that panics ends its
// machine without an error.
func (m Machine) Run(ctx context.Context, limit time.Duration, results io.Writer) (console string, err error) {
	dir, err := os.MkdirTemp("", "vmtest-")
	if err != nil {
		return "", err
	}
	defer os.RemoveAll(dir)
	log := filepath.Join(dir, "console")
	ctx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("%w after %s", ErrRunning, limit))
	defer cancel()
	cmd := exec.CommandContext(ctx, "qemu-system-x86_64", m.arguments(log)...)
	cmd.WaitDelay = 5 * time.Second
	cmd.Stdout = results
	var said strings.Builder
	cmd.Stderr = &said
	err = cmd.Run()
	if ctx.Err() != nil {
		err = context.Cause(ctx)
	}
	if text := strings.TrimSpace(said.String()); err != nil && text != "" {
		err = fmt.Errorf("%w: %s", err, text)
	}
	return end(log), err
}

func (m Machine) arguments(console string) []string {
	// One thread per processor would be faster, but QEMU 7.2 does not survive kernels that rewrite
	// code which another processor is running.
	accelerator, cpu := "tcg,thread=single", "max"
	if m.Accelerator == KVM {
		accelerator, cpu = "kvm", "host"
	}
	return []string{
		"-accel", accelerator, "-cpu", cpu, "-m", strconv.Itoa(m.Memory), "-smp", strconv.Itoa(m.CPUs),
		"-nodefaults", "-no-reboot", "-display", "none", "-serial", "file:" + console, "-serial", "stdio",
		"-kernel", m.Image, "-initrd", m.Initramfs, "-append",
		"console=ttyS0 quiet panic=-1 loglevel=4 mitigations=off",
	}
}

var escapes = regexp.MustCompile(`\x1b(c|\[[0-9;?]*[A-Za-z])|\r`)

// end returns the last part of the kernel's console.
func end(console string) string {
	data, err := os.ReadFile(console)
	if err != nil {
		return ""
	}
	text := escapes.ReplaceAllString(string(data), "")
	if len(text) > consoleEnd {
		text = text[len(text)-consoleEnd:]
	}
	return strings.TrimSpace(text)
}
