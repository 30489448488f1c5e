// SPDX-License-Identifier: Apache-2.0

package module

import (
	"bytes"
	"compress/gzip"
	"io/fs"
	"testing"
	"testing/fstest"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

func file(t *testing.T, compress bool, info string) *fstest.MapFile {
	t.Helper()
	data := []byte("\x7fELF\x00license=GPL\x00" + info + "\x00name=x\x00")
	if !compress {
		return &fstest.MapFile{Data: data}
	}
	var out bytes.Buffer
	w := gzip.NewWriter(&out)
	_, err := w.Write(data)
	require.NoError(t, err)
	require.NoError(t, w.Close())
	return &fstest.MapFile{Data: out.Bytes()}
}

func TestModulesComeAfterWhatTheyDependOn(t *testing.T) {
	tree := fstest.MapFS{
		"net/tcp_diag.ko":          file(t, false, "depends=inet-diag"),
		"net/inet_diag.ko.gz":      file(t, true, "depends="),
		"net/sched/act-bpf.ko":     file(t, false, "depends=b,a"),
		"lib/a.ko":                 file(t, false, "depends=b"),
		"lib/b.ko":                 file(t, false, "alias=depends"),
		"net/unwanted.ko":          file(t, false, "depends=b"),
		"modules.order":            {Data: []byte("net/tcp_diag.ko\n")},
		"net/a/directory.ko/x.txt": {},
	}
	got, err := Load(tree, "act_bpf", "tcp_diag", "built_in", "a")
	require.NoError(t, err)
	var names []string
	for _, m := range got {
		names = append(names, m.Name)
		assert.True(t, bytes.HasPrefix(m.Data, []byte("\x7fELF")), "%s is compressed", m.Name)
	}
	assert.Equal(t, []string{"b", "a", "act_bpf", "inet_diag", "tcp_diag"}, names)
}

func TestModulesThatNeedEachOtherAreLoadedOnce(t *testing.T) {
	got, err := Load(fstest.MapFS{"a.ko": file(t, false, "depends=b"),
		"b.ko": file(t, false, "depends=a")}, "a", "b")
	require.NoError(t, err)
	assert.Len(t, got, 2)
}

func TestBrokenModuleIsNamed(t *testing.T) {
	_, err := Load(fstest.MapFS{"net/veth.ko.gz": {Data: []byte("not compressed")}}, "veth")
	assert.ErrorContains(t, err, "veth")
	_, err = Load(fstest.MapFS{}, "veth")
	assert.NoError(t, err)
	_, err = Load(broken{}, "veth")
	assert.Error(t, err)
}

type broken struct{}

func (broken) Open(string) (fs.File, error) { return nil, fs.ErrPermission }
