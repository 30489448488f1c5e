// SPDX-License-Identifier: Apache-2.0

package deploy

import (
	"io/fs"
	"os"
)

// copyChart writes the embedded chart to dir, for what only reads charts from disk.
func copyChart(dir string) error {
	chart, err := fs.Sub(Chart, "chart")
	if err != nil {
		return err
	}
	return os.CopyFS(dir, chart)
}
