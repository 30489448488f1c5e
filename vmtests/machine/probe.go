// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// probeLimit is how long a machine that does nothing may take. In software it takes three seconds.
const probeLimit = 10 * time.Second

// Accelerator chooses for a machine. /dev/kvm may be there and still not run this kernel, so KVM
// has to prove itself: the machine, with an initramfs that does nothing but write what ok looks
// for, must boot and power off. What was found out is kept in dir until this computer boots again.
func Accelerator(ctx context.Context, log *slog.Logger, dir string, m Machine,
	ok func(results string) bool) (string, error) {
	kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return TCG, nil
	}
	_ = kvm.Close()
	known := filepath.Join(dir, "accelerator-"+key(m.Image))
	if text, err := os.ReadFile(known); err == nil && (string(text) == KVM || string(text) == TCG) {
		return string(text), nil
	}
	m.Accelerator = KVM
	var out strings.Builder
	_, err = m.Run(ctx, probeLimit, &out)
	if ctx.Err() != nil {
		return "", ctx.Err()
	}
	found := KVM
	if err != nil || !ok(out.String()) {
		log.Info("KVM does not run this kernel here; going on without", "kernel",
			filepath.Base(m.Image), "error", err)
		found = TCG
	}
	if err := os.WriteFile(known, []byte(found), 0o644); err != nil {
		return "", fmt.Errorf("keep what is known of KVM: %w", err)
	}
	return found, nil
}

// key stands for a kernel on this computer since it has booted.
func key(image string) string {
	boot, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	sum := sha256.New()
	_, _ = io.WriteString(sum, image+"\x00"+string(boot))
	return hex.EncodeToString(sum.Sum(nil)[:8])
}
