// SPDX-License-Identifier: Apache-2.0

// Package envfile writes environments in the syntaxes of the programs that read them, so that these
// get every value byte for byte.
package envfile

import (
	"bytes"
	"cmp"
	"slices"
)

// Variable is one of an environment. Value may hold anything but NUL, in any encoding.
type Variable struct{ Name, Value string }

// Parse splits NAME=VALUE, and sorts by name. If a name occurs twice, the first one counts, as for
// getenv(3).
func Parse(entries [][]byte) []Variable {
	var all []Variable
	seen := map[string]bool{}
	for _, e := range entries {
		name, value, ok := bytes.Cut(e, []byte{'='})
		if ok && len(name) > 0 && !seen[string(name)] {
			seen[string(name)] = true
			all = append(all, Variable{string(name), string(value)})
		}
	}
	slices.SortFunc(all, func(a, b Variable) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// With adds variables, or replaces those of the same name.
func With(all []Variable, more ...Variable) []Variable {
	all = slices.DeleteFunc(slices.Clone(all), func(v Variable) bool {
		return slices.ContainsFunc(more, func(m Variable) bool { return m.Name == v.Name })
	})
	all = append(all, more...)
	slices.SortFunc(all, func(a, b Variable) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Left is a variable that is left out.
type Left struct {
	Variable
	Why string
}

// Format returns variables in a syntax, and those that the syntax cannot express.
func Format(s Syntax, all []Variable) (text []byte, left []Left) {
	if s == JSON {
		return formatJSON(all)
	}
	write := writers[s]
	var out bytes.Buffer
	for _, v := range all {
		line, why := write(v.Name, v.Value)
		if why != "" {
			left = append(left, Left{v, why})
			continue
		}
		out.WriteString(line)
	}
	return out.Bytes(), left
}
