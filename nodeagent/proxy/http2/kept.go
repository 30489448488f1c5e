// SPDX-License-Identifier: Apache-2.0

package http2

import (
	"encoding/binary"

	"golang.org/x/net/http2/hpack"
)

// keptFields is a list of header fields in as many bytes as it takes, and in one piece. A field that
// a peer names by one byte would otherwise be held in forty.
type keptFields []byte

// keepFields packs fields. The result is not nil.
func keepFields(fields []hpack.HeaderField) keptFields {
	size := 0
	for i := range fields {
		size += len(fields[i].Name) + len(fields[i].Value) + 2*binary.MaxVarintLen16 + 1
	}
	k := make(keptFields, 0, size)
	for i := range fields {
		k = append(binary.AppendUvarint(k, uint64(len(fields[i].Name))), fields[i].Name...)
		k = append(binary.AppendUvarint(k, uint64(len(fields[i].Value))), fields[i].Value...)
		if fields[i].Sensitive {
			k = append(k, 1)
		} else {
			k = append(k, 0)
		}
	}
	return k
}

// fields unpacks the list.
func (k keptFields) fields() (list []hpack.HeaderField) {
	text := func() string {
		n, w := binary.Uvarint(k)
		s := string(k[w : w+int(n)])
		k = k[w+int(n):]
		return s
	}
	for len(k) > 0 {
		f := hpack.HeaderField{Name: text(), Value: text()}
		f.Sensitive = k[0] == 1
		k = k[1:]
		list = append(list, f)
	}
	return list
}
