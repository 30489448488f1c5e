// SPDX-License-Identifier: Apache-2.0

// Package layout writes what people read (the block of an intercept, the list, the status) and the
// records that programs read in its place (JSON, YAML).
package layout

import (
	"fmt"
	"io"
	"strings"
	"unicode/utf8"
)

// Block is a list of labels and values. Labels are padded to the longest one, so that the colons
// stand in one column.
type Block struct {
	Indent string // before each label
	Hang   string // before each further line of a value
	rows   []row
}

type row struct {
	label string
	lines []string
}

// Add appends a label with its value and the lines that belong under it. A row with an empty value
// and no lines is left out.
func (b *Block) Add(label, value string, more ...string) {
	if value == "" && len(more) == 0 {
		return
	}
	lines := append(strings.Split(value, "\n"), more...)
	b.rows = append(b.rows, row{label: label, lines: lines})
}

// WriteTo writes the block with a line ending after each line.
func (b *Block) WriteTo(w io.Writer) (int64, error) {
	width := 0
	for _, r := range b.rows {
		width = max(width, utf8.RuneCountInString(r.label))
	}
	var text strings.Builder
	for _, r := range b.rows {
		pad := strings.Repeat(" ", width-utf8.RuneCountInString(r.label))
		line := fmt.Sprintf("%s%s%s: %s", b.Indent, r.label, pad, r.lines[0])
		fmt.Fprintln(&text, strings.TrimRight(line, " "))
		for _, more := range r.lines[1:] {
			fmt.Fprintf(&text, "%s%s\n", b.Hang, more)
		}
	}
	n, err := io.WriteString(w, text.String())
	return int64(n), err
}
