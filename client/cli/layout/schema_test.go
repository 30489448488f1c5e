// SPDX-License-Identifier: Apache-2.0

package layout

import (
	"os"
	"reflect"
	"strings"
	"testing"

	"github.com/stretchr/testify/assert"
	"github.com/stretchr/testify/require"
)

// fields are the names of all fields of a record, and of the records in it.
func fields(t reflect.Type) []string {
	switch t.Kind() {
	case reflect.Slice, reflect.Pointer:
		return fields(t.Elem())
	case reflect.Struct:
	default:
		return nil
	}
	var names []string
	for i := range t.NumField() {
		name, _, _ := strings.Cut(t.Field(i).Tag.Get("json"), ",")
		names = append(append(names, name), fields(t.Field(i).Type)...)
	}
	return names
}

func TestEveryFieldOfARecordIsDocumented(t *testing.T) {
	text, err := os.ReadFile("../../../docs/output.md")
	require.NoError(t, err)
	for _, record := range []any{Status{}, Workload{}, Intercept{}} {
		for _, name := range fields(reflect.TypeOf(record)) {
			assert.Contains(t, string(text), "`"+name+"`", "%T", record)
		}
	}
}
