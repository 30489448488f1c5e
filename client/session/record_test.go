// SPDX-License-Identifier: Apache-2.0

package session_test

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"

	"sidestep.dev/sidestep/client/session"
)

func TestStore(t *testing.T) {
	store := session.Store{Path: filepath.Join(t.TempDir(), "deep", "session.json")}
	none, err := store.Load()
	require.NoError(t, err)
	assert.Nil(t, none, "no session is no error")

	record, err := session.NewRecord()
	require.NoError(t, err)
	record.Namespaces = []string{"a", "b"}
	record.Access.Flags = map[string]string{"context": "test"}
	require.NoError(t, store.Save(record))
	record.Namespace = "shop"
	require.NoError(t, store.Save(record))
	got, err := store.Load()
	require.NoError(t, err)
	assert.Equal(t, record, got)
	info, err := os.Stat(store.Path)
	require.NoError(t, err)
	assert.Equal(t, os.FileMode(0o600), info.Mode().Perm())
	files, err := os.ReadDir(filepath.Dir(store.Path))
	require.NoError(t, err)
	assert.Len(t, files, 1, "no temporary file stays")

	require.NoError(t, os.WriteFile(store.Path, []byte(`{"version": 99}`), 0o600))
	_, err = store.Load()
	assert.ErrorContains(t, err, "written by another version (99)")
	assert.FileExists(t, store.Path+".broken")
	require.NoError(t, store.Remove(), "removing what is not there is fine")
}

func TestRecordsDiffer(t *testing.T) {
	a, err := session.NewRecord()
	require.NoError(t, err)
	b, err := session.NewRecord()
	require.NoError(t, err)
	assert.NotEqual(t, a.ID, b.ID)
	assert.NotEqual(t, a.Key, b.Key)
	assert.Len(t, a.Key, 64)
	assert.Regexp(t, `^[0-9a-f]{8}(-[0-9a-f]{4}){3}-[0-9a-f]{12}$`, a.ID)
}
