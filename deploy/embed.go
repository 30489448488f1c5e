// SPDX-License-Identifier: Apache-2.0

// Package deploy holds the Helm chart, so that the command line can install the cluster's side by
// itself.
package deploy

import "embed"

// Chart has the files of the Helm chart under "chart/".
//
//go:embed all:chart
var Chart embed.FS
