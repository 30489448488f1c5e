// SPDX-License-Identifier: Apache-2.0

package features

import "encoding/binary"

// le is the byte order of everything that this runs on.
var le = binary.LittleEndian

// netlinkMessage puts the header of netlink(7) before a payload.
func netlinkMessage(kind, flags uint16, payload []byte) []byte {
	header := make([]byte, 16)
	le.PutUint32(header, uint32(len(header)+len(payload)))
	le.PutUint16(header[4:], kind)
	le.PutUint16(header[6:], flags)
	le.PutUint32(header[8:], 1)
	return append(header, payload...)
}
