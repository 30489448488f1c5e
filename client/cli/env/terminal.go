// SPDX-License-Identifier: Apache-2.0

package env

import (
	"os"

	"golang.org/x/term"
)

// IsTerminal reports whether the stream is a terminal, and returns its columns.
func IsTerminal(stream any) (int, bool) {
	f, ok := stream.(*os.File)
	if !ok || !term.IsTerminal(int(f.Fd())) {
		return 0, false
	}
	columns, _, err := term.GetSize(int(f.Fd()))
	if err != nil {
		columns = 80
	}
	return columns, true
}
