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

// Parse takes NAME=VALUE apart, and sorts by name. Of a name that comes twice the first counts, as
// for getenv(3).
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

// aboutThePlace are variables that say where a process runs, and not what it is to do: somewhere
// else they are wrong.
var aboutThePlace = map[string]bool{
	"PATH": true, "HOME": true, "HOSTNAME": true, "PWD": true, "OLDPWD": true, "SHLVL": true, "_": true,
	"SHELL": true, "USER": true, "LOGNAME": true,
	"TERM": true, "TMPDIR": true, "LD_LIBRARY_PATH": true, "LD_PRELOAD": true,
	"CLASSPATH": true, "GEM_HOME": true, "GEM_PATH": true, "GOPATH": true, "GOROOT": true,
	"JAVA_HOME": true, "NODE_PATH": true, "PYTHONHOME": true,
	"PYTHONPATH": true,
}

// Elsewhere leaves out what is about the place where the container's process runs: its home, its
// search paths. What the pod's specification declares stays, since somebody meant it.
func Elsewhere(all []Variable, declared []string) []Variable {
	return slices.DeleteFunc(slices.Clone(all), func(v Variable) bool {
		return aboutThePlace[v.Name] && !slices.Contains(declared, v.Name)
	})
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

// Left is a variable that a syntax cannot express.
type Left struct {
	Variable
	Why string
}

// Inherits says of a variable that Docker's syntax cannot express whether docker run can take it
// from its own environment instead.
func (l Left) Inherits() bool { return l.Why == whyNewline || l.Why == whyLong }

// Format writes variables in a syntax, and gives those that it had to leave out.
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
