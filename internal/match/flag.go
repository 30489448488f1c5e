// SPDX-License-Identifier: Apache-2.0

package match

import (
	"fmt"
	"strings"

	"sidestep.dev/sidestep/api/v1alpha1"
)

// metacharacters make the value of a header flag a regular expression.
const metacharacters = `\.+*?()|[]{}^$`

// ParseHeaderFlag reads a header condition from the command line: NAME=VALUE, or NAME: VALUE as
// curl has it. The first of "=" and ":" separates, as neither can be part of a name. VALUE is exact
// unless it holds a metacharacter of regular expressions; then it is an RE2 expression for the
// whole value.
func ParseHeaderFlag(flag string) (v1alpha1.HeaderMatch, error) {
	at := strings.IndexAny(flag, "=:")
	if at < 0 {
		return v1alpha1.HeaderMatch{},
			fmt.Errorf("header condition %q has no value: write NAME=VALUE or \"NAME: VALUE\"", flag)
	}
	name, value := strings.Trim(flag[:at], " \t"), strings.Trim(flag[at+1:], " \t")
	if name == "" {
		return v1alpha1.HeaderMatch{},
			fmt.Errorf("header condition %q has no name: write NAME=VALUE or \"NAME: VALUE\"", flag)
	}
	if value == "" {
		return v1alpha1.HeaderMatch{},
			fmt.Errorf("header condition %q has an empty value: write %s=VALUE, or %s=.* for any value",
				flag, name, name)
	}
	m := v1alpha1.HeaderMatch{Name: name}
	if strings.ContainsAny(value, metacharacters) {
		m.Regex = &value
	} else {
		m.Value = &value
	}
	if _, err := newHeader(m.Name, m.Value, m.Regex); err != nil {
		return v1alpha1.HeaderMatch{}, fmt.Errorf("header condition %q: %w", flag, err)
	}
	return m, nil
}
