// SPDX-License-Identifier: Apache-2.0

package tap

import "golang.org/x/net/http2/hpack"

// Copies are those of one request, one for each tap that wants it.
type Copies []*Copy

// Write adds p to all.
func (cs Copies) Write(p []byte) {
	for _, c := range cs {
		c.Write(p)
	}
}

// Trailers adds the fields behind a body, which ends all.
func (cs Copies) Trailers(fields []hpack.HeaderField) {
	for _, c := range cs {
		c.Trailers(fields)
	}
}

// End says that all are complete.
func (cs Copies) End() {
	for _, c := range cs {
		c.End()
	}
}

// Cut says that there is no more of what is copied, although it is not complete.
func (cs Copies) Cut() {
	for _, c := range cs {
		c.Cut()
	}
}

// Over reports whether none takes anything more.
func (cs Copies) Over() bool {
	for _, c := range cs {
		if !c.Over() {
			return false
		}
	}
	return true
}
