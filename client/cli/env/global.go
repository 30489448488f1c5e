// SPDX-License-Identifier: Apache-2.0

package env

import (
	"strings"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/internal/names"
)

// DefaultManagerNamespace is where the traffic manager is unless --manager-namespace says
// otherwise.
const DefaultManagerNamespace = names.Sidestep

// Global are the values of the flags that every command has.
type Global struct {
	Kube             *pflag.FlagSet
	Namespace        string
	ManagerNamespace string
	Quiet            bool
	Progress         string

	Format string          // of the output
	Said   strings.Builder // what a command without a record has said when another format than text is wanted
}
