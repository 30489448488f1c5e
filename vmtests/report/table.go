// SPDX-License-Identifier: Apache-2.0

package report

import (
	"fmt"
	"regexp"
	"strings"
)

// Row is one of the table's: all tests whose package and name match stand for it. Some must match,
// except on kernels that are older than Since, if that is given.
type Row struct {
	Title   string
	Pattern string
	Since   string // such as 6.6
}

// What a cell says.
const (
	yes     = "yes"
	absent  = "–" // the kernel is too old for it
	no      = "**FAILS**"
	unknown = "not run"
)

type line struct {
	title string
	cells []string
}

func rows(of []Row, kernels []*Kernel) (all []line) {
	for _, row := range of {
		pattern := regexp.MustCompile(row.Pattern)
		l := line{title: row.Title}
		for _, k := range kernels {
			l.cells = append(l.cells, k.cell(row, pattern))
		}
		all = append(all, l)
	}
	return all
}

func (k *Kernel) cell(row Row, pattern *regexp.Regexp) string {
	passed, lacking := 0, 0
	for _, t := range k.Tests {
		switch {
		case t.Name == "" || !pattern.MatchString(t.Package+" "+t.Name):
		case t.Outcome == Pass:
			passed++
		case t.Outcome == Skip && excused.MatchString(strings.Join(t.Output, "")):
		case t.Outcome == Skip && k.mayLack(t):
			lacking++
		default:
			return no
		}
	}
	switch {
	case lacking > 0:
		return absent
	case passed > 0:
		return yes
	case row.Since != "" && k.Older(row.Since):
		return absent
	case k.Partial:
		return unknown
	}
	return no
}

// Missing lists what the rows of a complete run have found not to work, or not to be tested.
func Missing(of []Row, kernels []*Kernel) (all []string) {
	for _, l := range rows(of, kernels) {
		for i, cell := range l.cells {
			if cell == no {
				all = append(all, fmt.Sprintf("%s: %s does not work, or nothing tests it",
					kernels[i].Name, l.title))
			}
		}
	}
	return all
}

// Markdown returns the table of what works on which kernel.
func Markdown(product, features []Row, kernels []*Kernel) string {
	var b strings.Builder
	write := func(title string, cells []string) {
		fmt.Fprintf(&b, "| %s | %s |\n", title, strings.Join(cells, " | "))
	}
	each := func(fn func(*Kernel) string) (cells []string) {
		for _, k := range kernels {
			cells = append(cells, fn(k))
		}
		return cells
	}
	section := func(title string, of []Row) {
		write("**"+title+"**", each(func(*Kernel) string { return "" }))
		for _, l := range rows(of, kernels) {
			write(l.title, l.cells)
		}
	}
	write("", each(func(k *Kernel) string { return "Linux " + k.short() }))
	b.WriteString(strings.Repeat("|---", len(kernels)+1) + "|\n")
	write("Debian's package", each(func(k *Kernel) string { return k.Version }))
	write("tests passed", each(func(k *Kernel) string {
		passed, _,
			_ := k.Counts()
		return fmt.Sprint(passed)
	}))
	write("tests failed", each(func(k *Kernel) string {
		_, failed,
			_ := k.Counts()
		return fmt.Sprint(failed)
	}))
	section("What sidestep does", product)
	section("What the kernel offers", features)
	return b.String()
}

// short is the kernel's version in two numbers.
func (k *Kernel) short() string {
	major, minor := numbers(k.Release)
	return fmt.Sprintf("%d.%d", major, minor)
}
