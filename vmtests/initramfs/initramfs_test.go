// SPDX-License-Identifier: Apache-2.0

package initramfs

import (
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

type entry struct {
	mode, major, minor int64
	data               string
}

// read reads an archive as the kernel does.
func read(t *testing.T, archive []byte) (names []string, entries map[string]entry) {
	t.Helper()
	entries = map[string]entry{}
	align := func(n int64) int64 { return (n + 3) &^ 3 }
	for at := int64(0); ; {
		require.Zero(t, at%4)
		require.Equal(t, "070701", string(archive[at:at+6]))
		field := func(i int64) int64 {
			n, err := strconv.ParseInt(string(archive[at+6+8*i:at+14+8*i]), 16, 64)
			require.NoError(t, err)
			return n
		}
		size, length := field(6), field(11)
		name, ok := strings.CutSuffix(string(archive[at+110:at+110+length]), "\x00")
		require.True(t, ok, "names end in 0")
		if name == "TRAILER!!!" {
			return names, entries
		}
		start := align(at + 110 + length)
		entries[name] = entry{field(1), field(9), field(10), string(archive[start : start+size])}
		names = append(names, name)
		at = align(start + size)
	}
}

func TestArchive(t *testing.T) {
	from := filepath.Join(t.TempDir(), "x")
	require.NoError(t, os.WriteFile(from, []byte("copied"), 0o600))
	var out bytes.Buffer
	w := NewWriter(&out)
	w.File("/init", []byte("#!"))
	w.File("/a/b/c", []byte("12345"))
	w.File("a/b/empty", nil)
	w.Link("/lib64/ld", "/a/b/c")
	w.Dir("/a/b")
	require.NoError(t, w.Copy("/a/copy", from))
	require.NoError(t, w.Close())
	names, entries := read(t, out.Bytes())
	assert.Equal(t, []string{"dev", "dev/console", "dev/null", "init", "a", "a/b", "a/b/c", "a/b/empty",
		"lib64", "lib64/ld", "a/copy"}, names)
	assert.Equal(t, entry{mode: 0o20600, major: 5, minor: 1}, entries["dev/console"])
	assert.Equal(t, entry{mode: 0o40755}, entries["a/b"])
	assert.Equal(t, entry{mode: 0o100755, data: "12345"}, entries["a/b/c"])
	assert.Equal(t, entry{mode: 0o120777, data: "/a/b/c"}, entries["lib64/ld"])
	assert.Equal(t, "copied", entries["a/copy"].data)
}

type full struct{}

func (full) Write([]byte) (int, error) { return 0, errors.New("disk full") }

func TestFullDiskIsReported(t *testing.T) {
	w := NewWriter(full{})
	w.File("big", make([]byte, 2<<20))
	assert.ErrorContains(t, w.Close(), "disk full")
	assert.Error(t, NewWriter(full{}).Copy("x", "/nowhere"))
}
