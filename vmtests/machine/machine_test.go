// SPDX-License-Identifier: Apache-2.0

package machine

import (
	"context"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// qemu puts a script in QEMU's place. $console is the file of the first serial port.
func qemu(t *testing.T, script string) {
	t.Helper()
	dir := t.TempDir()
	script = "#!/bin/sh\nfor a; do case $a in file:*) console=${a#file:};; esac; done\n" + script
	require.NoError(t, os.WriteFile(filepath.Join(dir, "qemu-system-x86_64"), []byte(script), 0o755))
	t.Setenv("PATH", dir+":"+os.Getenv("PATH"))
}

func TestRun(t *testing.T) {
	for _, tc := range []struct {
		name, script  string
		limit         time.Duration
		results, said string
		err           string
		is            error
	}{
		{name: "it powers off", script: `echo results; printf '\033c\033[2Jbooting\r\n' > $console`,
			results: "results\n", said: "booting"},
		{name: "it panics", script: `echo half; echo Kernel panic > $console`, results: "half\n",
			said: "Kernel panic"},
		{name: "QEMU fails", script: `echo cannot set an MSR >&2; exit 1`,
			err: "exit status 1: cannot set an MSR"},
		{name: "it hangs", script: `echo half; echo stuck > $console; exec sleep 60`,
			limit: 500 * time.Millisecond, results: "half\n", said: "stuck", is: ErrRunning},
	} {
		t.Run(tc.name, func(t *testing.T) {
			qemu(t, tc.script)
			if tc.limit == 0 {
				tc.limit = time.Minute
			}
			var out strings.Builder
			console, err := Machine{Image: "vmlinuz", Accelerator: TCG}.Run(t.Context(), tc.limit, &out)
			assert.Equal(t, tc.results, out.String())
			assert.Equal(t, tc.said, console)
			switch {
			case tc.is != nil:
				assert.ErrorIs(t, err, tc.is)
			case tc.err != "":
				assert.ErrorContains(t, err, tc.err)
			default:
				assert.NoError(t, err)
			}
		})
	}
}

func TestConsoleIsCutToItsEnd(t *testing.T) {
	qemu(t, `i=0; while [ $i -lt 2000 ]; do echo "line $i" >> $console; i=$((i+1)); done`)
	console, err := Machine{}.Run(t.Context(), time.Minute, &strings.Builder{})
	require.NoError(t, err)
	assert.True(t, strings.HasSuffix(console, "line 1999"))
	assert.LessOrEqual(t, len(console), consoleEnd)
}

func TestKVMHasToProveItself(t *testing.T) {
	if kvm, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0); err != nil {
		found, err := Accelerator(t.Context(), slog.New(slog.DiscardHandler), t.TempDir(), Machine{},
			func(string) bool { return true })
		require.NoError(t, err)
		assert.Equal(t, TCG, found, "there is no KVM")
		return
	} else {
		_ = kvm.Close()
	}
	dir := t.TempDir()
	choose := func(image, script string) string {
		qemu(t, script)
		found, err := Accelerator(t.Context(), slog.New(slog.DiscardHandler), dir,
			Machine{Image: image}, func(out string) bool { return out == "done\n" })
		require.NoError(t, err)
		return found
	}
	assert.Equal(t, KVM, choose("a", "echo done"))
	assert.Equal(t, TCG, choose("b", "echo half"))
	assert.Equal(t, TCG, choose("c", "echo done; exit 1"))
	assert.Equal(t, KVM, choose("a", "exit 1"), "it is known")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	_, err := Accelerator(ctx, slog.New(slog.DiscardHandler), dir, Machine{Image: "d"}, nil)
	assert.True(t, errors.Is(err, context.Canceled))
}
