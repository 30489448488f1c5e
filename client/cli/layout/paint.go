// SPDX-License-Identifier: Apache-2.0

package layout

import "github.com/fatih/color"

// Paint colours words. The zero Paint leaves them plain, as is right for pipes and files.
type Paint struct{ On bool }

// Good is for what is as it should be.
func (p Paint) Good(s string) string { return p.with(s, color.FgGreen) }

// Bad is for what is wrong.
func (p Paint) Bad(s string) string { return p.with(s, color.FgRed) }

// Odd is for what deserves a look.
func (p Paint) Odd(s string) string { return p.with(s, color.FgYellow) }

func (p Paint) with(s string, attributes ...color.Attribute) string {
	if !p.On || s == "" {
		return s
	}
	c := color.New(attributes...)
	c.EnableColor()
	return c.Sprint(s)
}

func (p Paint) state(s string) string {
	switch s {
	case "ACTIVE":
		return p.Good(s)
	case "PENDING", "NO_PODS", "DISCONNECTED":
		return p.Odd(s)
	default:
		return p.Bad(s)
	}
}
