// SPDX-License-Identifier: Apache-2.0

package install

import (
	"fmt"
	"io/fs"
	"strings"

	"github.com/Masterminds/semver/v3"
	"helm.sh/helm/v3/pkg/chart"
	"helm.sh/helm/v3/pkg/chart/loader"
)

// load reads the chart and sets its version to that of this program, which is the images' tag
// unless the values have another.
func load(files fs.FS, version string) (*chart.Chart, error) {
	var buffered []*loader.BufferedFile
	err := fs.WalkDir(files, ".", func(path string, entry fs.DirEntry, err error) error {
		if err != nil || entry.IsDir() {
			return err
		}
		content, err := fs.ReadFile(files, path)
		buffered = append(buffered, &loader.BufferedFile{Name: path, Data: content})
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	c, err := loader.LoadFiles(buffered)
	if err != nil {
		return nil, fmt.Errorf("read the chart: %w", err)
	}
	if version != "" {
		c.Metadata.AppVersion = version
		// If the version is not semantic, as that of a build without tags, the chart keeps its own.
		if v, err := semver.NewVersion(strings.TrimPrefix(version, "v")); err == nil {
			c.Metadata.Version = v.String()
		}
	}
	return c, nil
}
