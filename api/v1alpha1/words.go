// SPDX-License-Identifier: Apache-2.0

package v1alpha1

import "regexp"

// maxName is the length of spec.name that the API server admits.
const maxName = 253

// validName is the pattern of spec.name.
var validName = regexp.MustCompile(`^[a-z0-9]([-a-z0-9.]*[a-z0-9])?$`)

// ValidName reports whether the API server admits name as spec.name.
func ValidName(name string) bool { return len(name) <= maxName && validName.MatchString(name) }

// ExistingWords returns the values of spec.existing, the default first.
func ExistingWords() []string { return []string{"auto", "idle", "all", "none"} }
