// SPDX-License-Identifier: Apache-2.0

package env

import (
	"strings"

	"github.com/spf13/pflag"

	"sidestep.dev/sidestep/internal/names"
)

// DefaultManagerNamespace is the namespace of the traffic manager without --manager-namespace.
const DefaultManagerNamespace = names.Sidestep

// Global is the values of the flags that every command has.
type Global struct {
	Kube             *pflag.FlagSet
	Namespace        string
	ManagerNamespace string
	Quiet            bool
	Progress         string

	Format string          // of the output
	Said   strings.Builder // what a command without a record has printed, if the format is not text
}
